"""What happens around the passes of a fit: progress, and sums that are kept, so that an interrupted fit can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.writers import written_whole
from ..errors import InputError

T = TypeVar("T")
KEPT_EVERY = 60.0
"""Seconds after which the sums of a pass are written."""


@dataclass
class Stage:
    """Sums over the first rows of a pass.

    Attributes:
        rows: how many; None: all. block: rows of the first block.
        sums: and the state of the generator, if there is one, as the last of them.
    """

    rows: int | None
    block: int
    sums: list[Tensor]


class Journal:
    """The stages of a fit, in a file that is written now and then.

    Args:
        where: the calling function, for messages.
        file: written, and read where it exists.
        about: what is fitted; a file of something else is refused.
    """

    def __init__(self, where: str, file: Path, about: str) -> None:
        self.where, self.file, self.about = where, file, about
        self.stages: dict[str, Stage] = {}
        self._written = monotonic()
        if file.exists():
            self._read()

    def restore(self, name: str, sums: Sequence[Tensor], generator: torch.Generator | None) -> Stage | None:
        """Put what a stage has summed so far into `sums`; None: it was not begun."""
        stage = self.stages.get(name)
        if stage is None:
            return None
        kept = stage.sums[:-1] if generator is not None else stage.sums
        for target, value in zip(sums, kept, strict=True):
            target.copy_(value)
        if generator is not None:
            generator.set_state(stage.sums[-1])
        return stage

    def keep(
        self, name: str, rows: int | None, block: int, sums: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> None:
        """Remember a stage that is over (rows None), or one on its way, if the last writing was a while ago."""
        if rows is not None and monotonic() - self._written < KEPT_EVERY:
            return
        held = [value.detach().to("cpu", copy=True) for value in sums]
        if generator is not None:
            held.append(generator.get_state())
        self.stages[name] = Stage(rows, block, held)
        self._write()

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        tensors = {
            f"{name}/{index}": value.contiguous()
            for name, stage in self.stages.items()
            for index, value in enumerate(stage.sums)
        }
        stages = {name: [stage.rows, stage.block, len(stage.sums)] for name, stage in self.stages.items()}
        with written_whole(self.file) as beside:
            save_file(tensors, beside, metadata={"ipfast": "fit 1", "about": self.about, "stages": json.dumps(stages)})
        self._written = monotonic()

    def _read(self) -> None:
        try:
            with safe_open(str(self.file), framework="pt") as archive:
                found = archive.metadata() or {}
                stages, about = json.loads(found["stages"]), found["about"]
                for name, (rows, block, count) in stages.items():
                    self.stages[name] = Stage(rows, block, [archive.get_tensor(f"{name}/{index}") for index in range(count)])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"{self.where}: expected {str(self.file)!r} to be what an interrupted fit has left; it cannot be read "
                f"({error}). Remove it to begin anew."
            ) from error
        if about != self.about:
            raise InputError(
                f"{self.where}: expected {str(self.file)!r} to be what this fit has left; it is of {about}, and this is "
                f"{self.about}. Remove it to begin anew, or choose another out."
            )


@dataclass(frozen=True)
class Passes:
    """How passes over the training data are shown and kept.

    Attributes:
        where, name: the calling function, and what is fitted, beside the progress bar.
        progress: whether a bar is shown. rows: samples of a pass, where they are known.
        journal: where sums are kept; None: nowhere. key: of the point, before the names of its stages.
    """

    where: str = "score"
    name: str = ""
    progress: bool = False
    rows: int | None = None
    journal: Journal | None = None
    key: str = field(default="")

    def at(self, key: str) -> Passes:
        """The same at a point."""
        return replace(self, key=key)

    def over(
        self,
        stage: str,
        sums: Sequence[Tensor],
        blocks: Iterable[T],
        count: Callable[[T], int],
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[T]:
        """The blocks of a pass that `sums` do not hold yet; what an earlier run had summed is put into them first.

        Args:
            stage: a name. sums: added to in place after each block. blocks: all, in the same order in every run.
            count: rows of a block. generator: from which the caller draws for each block.
        """
        done, block = 0, 0
        if self.journal is not None:
            known = self.journal.restore(self._name(stage), sums, generator)
            if known is not None and known.rows is None:
                return
            done = 0 if known is None or known.rows is None else known.rows
            block = 0 if known is None else known.block
        seen = 0
        options = {"desc": f"{self.name} {stage}", "unit": " samples", "unit_scale": True, "delay": 1, "leave": False}
        with tqdm(total=self.rows, disable=not self.progress, **options) as bar:
            for each in blocks:
                rows = count(each)
                if seen < done < seen + rows:
                    raise InputError(
                        f"{self.where}: expected batches as in the interrupted fit, the first of which had {block} samples; "
                        f"got others. Pass batch_size={block}."
                    )
                seen += rows
                block = block or rows
                if seen > done:
                    yield each
                    if self.journal is not None:
                        self.journal.keep(self._name(stage), seen, block, sums, generator)
                bar.update(rows)
        if seen < done:
            raise InputError(
                f"{self.where}: expected the training data of the interrupted fit, of which {done} samples have been read; got "
                f"{seen}. Remove {str(self.journal.file) if self.journal else ''!r} to begin anew."
            )
        if self.journal is not None:
            self.journal.keep(self._name(stage), None, block, sums, generator)

    def _name(self, stage: str) -> str:
        return f"{self.key}/{stage}"
