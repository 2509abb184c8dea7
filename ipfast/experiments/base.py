"""What an experiment is: cells, how to run one, and what is shown of the finished ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..errors import MissingFileError
from .cells import Cell, Records


@dataclass(frozen=True)
class Surroundings:
    """Where an experiment runs.

    Attributes:
        folder: of this experiment at this scale: results, and what cells share, such as a trained model.
        data: the folder of the data sets, where the experiment reads any.
        scale: "small" or "paper".
        progress: whether bars are shown.
        model: the pretrained model, where an experiment starts from one and another than its own was asked for.
    """

    folder: Path
    data: Path | None
    scale: str
    device: torch.device
    progress: bool = True
    model: str | None = None

    def data_folder(self, what: str) -> Path:
        """The folder with the data sets, or an error that says what belongs there."""
        if self.data is None:
            raise MissingFileError(f"experiment: expected --data to be the folder with {what}; got none. Pass --data DIR.")
        if not self.data.is_dir():
            raise MissingFileError(
                f"experiment: expected --data to be the folder with {what}; {str(self.data)!r} is not a folder. Check the path."
            )
        return self.data


class Experiment(ABC):
    """One command. A subclass is made for each run, and may keep between cells what they share.

    What a cell computes must depend on the cell, the recipe and the data alone, never on other cells: they are run in any
    order, in several sittings. Files of `surroundings.folder` must appear only when complete (`written_whole`).
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    """Names of all methods in the order of the tables, controls last."""
    seeds: ClassVar[dict[str, tuple[int, ...]]]
    """Seeds by scale."""
    takes_model: ClassVar[bool] = False
    """Whether it starts from a pretrained model."""
    trains_networks: ClassVar[bool] = True
    """Whether networks are trained on the device. Of others cells are computed in float64 on the processor, wherever they
    run."""
    unpinned: ClassVar[tuple[str, ...]] = ()
    """Folders of `surroundings.folder` whose files fit every recipe and all data, because nothing reads them or each is named
    after a digest of what it is made from."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings

    @property
    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """All numbers that results depend on, as JSON; a folder holds results of one recipe."""

    @abstractmethod
    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        """All cells, in the order in which they are worth running."""

    def every_cell(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        """Also those of optional data sets that are not there, which are run where they are asked for by name."""
        return self.cells(methods, seeds)

    def left_out(self) -> list[str]:
        """Of each optional data set that is not there a line that says what is missing."""
        return []

    def compared(self, cell: Cell) -> Hashable:
        """Of cells whose networks are compared by pairs the same, so that they must be trained alike; None: of no others."""
        return cell[:2] if self.trains_networks else None

    @abstractmethod
    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse, before any work, data files that are missing or foreign, and a model that cannot be loaded."""

    def data_digest(self, setting: str) -> str | None:
        """`pins.digest` of all data that the cells of a setting are computed from: samples and labels of every part.

        It must be the same on every machine, and so be made of what was read, not of what was computed in floating point. It is
        asked for once a run and setting. None: nothing is pinned, and other data under the same --out go unnoticed.
        """
        return None

    @abstractmethod
    def run(self, cell: Cell) -> dict[str, Any]:
        """The values of one cell."""

    @abstractmethod
    def tables(self, records: Records) -> Iterator[str]:
        """What was found, in blocks of Markdown."""

    @abstractmethod
    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        """Write figures, and tell their files."""
