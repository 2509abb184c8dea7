"""The unit of an experiment: one method, at one setting, with one seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What is run once and never again.

    Attributes:
        part: of the experiment, a table or a figure of its own.
        setting: data, noise level, rate: what the part varies.
        method: a method's name, as tables show it.
        seed: of retraining, splits or masks; shared by all methods, so that their differences are paired.
    """

    part: str
    setting: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.part}, {self.setting}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """What a cell gave: numbers, or lists of numbers."""

    cell: Cell
    values: Mapping[str, Any]
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)  # device and versions


class Records(Mapping[Cell, Record]):
    """All finished cells, which tables ask many times for those of one part, setting and method."""

    def __init__(self, finished: Mapping[Cell, Record]) -> None:
        self._finished = finished
        self._alike: dict[tuple[str, ...], list[Record]] = {}
        for cell in sorted(finished):
            self._alike.setdefault(cell[:3], []).append(finished[cell])

    def __getitem__(self, cell: Cell) -> Record:
        return self._finished[cell]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._finished)

    def __len__(self) -> int:
        return len(self._finished)

    def alike(self, part: str, setting: str, method: str) -> list[Record]:
        """By seed."""
        return self._alike.get((part, setting, method), [])


def by_seed(records: Records, part: str, setting: str, method: str, name: str) -> dict[int, float]:
    """Seed -> the value called `name`, of the cells that are finished and have it."""
    return {
        record.cell.seed: float(record.values[name])
        for record in records.alike(part, setting, method)
        if record.values.get(name) is not None
    }
