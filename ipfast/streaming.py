"""A pass over the training data: scores of one block after another, with progress, and the sum over points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from .combine import by_deviation, combined, deviations
from .data import Source
from .errors import InputError
from .terms import Term


def stream(
    parts: Iterable[tuple[int, Tensor]],
    source: Source,
    name: str,
    progress: bool,
    *,
    by_sample: bool = True,
    ragged: bool = False,
) -> Tensor:
    """The scores of all blocks, one after another, on the CPU.

    Args:
        parts: (number of samples, scores [B, ...]) of each block.
        name: beside the progress bar.
        by_sample: whether each sample has one row of scores; otherwise any number.
        ragged: whether the last but one dimension may differ from block to block; the shorter ones end in zeros then.
    """
    values: Tensor | None = None
    pieces: list[Tensor] = []
    done = 0
    with tqdm(total=source.rows, desc=name, unit=" samples", unit_scale=True, delay=1, disable=not progress) as bar:
        for samples, part in parts:
            start, done = done, done + samples
            if source.rows is not None and done > source.rows:
                break
            if source.rows is None or not by_sample or ragged:
                pieces.append(part.cpu())
            else:
                if values is None:
                    values = torch.empty(source.rows, *part.shape[1:], dtype=part.dtype)
                values[start:done] = part
            bar.update(samples)
    if source.rows not in (None, done):
        raise InputError(
            f"score: expected {source.rows} samples, the length of train; it gave {'more' if done > source.rows else done}. "
            "Check its __len__ and its sampler."
        )
    if pieces:
        longest = max(piece.shape[-2] for piece in pieces) if ragged else 0
        values = torch.cat([F.pad(p, (0, 0, 0, longest - p.shape[-2])) for p in pieces] if ragged else pieces)
    if values is None:
        raise InputError("score: expected at least one sample in train; it is empty.")
    return values


class Result:
    """Scores of one group of points after another, added up, or kept for each point where they are needed alone.

    Args:
        combine: "mean", "zscore" or "rank" of the points.
        keep_members: whether the scores at each point are asked for.
    """

    def __init__(self, combine: str, keep_members: bool) -> None:
        self.combine, self.keep_members = combine, keep_members
        self.terms: list[Term] = []
        self.weights: list[float] = []
        self._kept: list[Tensor] = []
        self._total: Tensor | None = None

    def alone(self, terms: Sequence[Term]) -> bool:
        """Whether the scores of a group's points are needed one by one, [B, T, Q], and not their weighted sum [B, Q]."""
        return self.keep_members or self.combine != "mean" or by_deviation(terms)

    def add(self, part: Tensor, terms: Sequence[Term], weights: Sequence[float]) -> None:
        """The scores of a group: [N, T, Q] where they are needed alone, else [N, Q]."""
        before = self._total if self._total is not None else self._kept[0] if self._kept else part
        if len(before) != len(part):
            raise InputError(
                f"score: expected train to give the same samples at each point; it gave {len(before)}, then {len(part)}. Pass "
                "a Dataset, or arrays."
            )
        if self.alone(terms):
            self._kept.append(part)
        else:
            self._total = part if self._total is None else self._total.add_(part)
        self.terms += terms
        self.weights += weights

    def finish(self, has_loss: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(scores [N, Q], scores at each point [N, T, Q] if asked for); `has_loss` as in `combined`."""
        if self._total is not None:
            return self._total, None
        members = self._kept[0] if len(self._kept) == 1 else torch.cat(self._kept, dim=1)
        if by_deviation(self.terms):
            members, self.weights = deviations(members, self.terms), self.weights[1:]
        return combined(members, self.weights, self.combine, has_loss), members if self.keep_members else None
