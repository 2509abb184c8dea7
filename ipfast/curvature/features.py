"""The features and labels of the training data, met several times: read from a file, or made by a backbone once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data import ArraySource, Source
from ..engines import HeadEngine, Labels, TokenLabels
from ..errors import InputError

ROWS = 8192
"""Rows at once: enough that the small operations between the products cost little."""
HELD_BYTES = 2 * 2**30
"""Features of a backbone that are kept in memory; more go to a temporary file."""


class TrainRows:
    """One pass after another over (h [b, d], labels [b] or [b, C], shares [b] or None) in blocks of at most ROWS rows.

    Rows of token data are the counted tokens, and a share is the weight of one in the loss of its sequence.

    Attributes:
        samples: N, known after the first pass: of token data the sequences in which a token counts.
        of_tokens: whether the rows are tokens.
        complete: whether all are kept, so that neither the source nor the model is needed any more.
        nbytes: of what is kept.
    """

    def __init__(self, engine: HeadEngine, source: Source) -> None:
        self.engine, self.source = engine, source
        array = isinstance(source, ArraySource) and engine.last.backbone is None
        self._held: list[tuple[int, Tensor, Labels]] | None = None if array else []
        self.complete = False
        self._samples: int | None = None
        self.of_tokens = bool(engine.of_tokens.get("train"))

    @property
    def samples(self) -> int:
        if self._samples is None:
            for _ in self:
                pass
        assert self._samples is not None
        return self._samples

    @property
    def nbytes(self) -> int:
        return sum(h.nbytes for _, h, _ in self._held or ())

    def blocks(self) -> Iterator[tuple[int, Tensor, Labels]]:
        """(first sample, features, labels) of what is kept, in the blocks in which the engine gave them."""
        assert self.complete
        assert self._held is not None
        return iter(self._held)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for _, h, labels in self.blocks() if self.complete else self._read():
            tokens = labels if isinstance(labels, TokenLabels) else None
            y, shares = (labels, None) if tokens is None else (tokens.labels, tokens.shares())
            assert isinstance(y, Tensor)
            for first in range(0, len(h), ROWS):
                rows = slice(first, first + ROWS)
                yield h[rows], y[rows], None if shares is None else shares[rows]

    def _read(self) -> Iterator[tuple[int, Tensor, Labels]]:
        """From the source; what a backbone has made is kept for later passes."""
        seen, rows, size = 0, 0, 0
        held: list[tuple[int, Tensor, Labels]] = []
        for start, block, labels in self.engine.blocks("train", self.source):
            h, tokens = block, labels if isinstance(labels, TokenLabels) else None
            self.of_tokens = self.of_tokens or tokens is not None
            seen += len(h) if tokens is None else int((tokens.counts > 0).sum())
            rows += len(h)
            if self._samples is None:
                # Summed, so that NaN of one entry shows; which row it is is told by the engine.
                sums = h.sum(dim=1, dtype=torch.promote_types(h.dtype, torch.float32))
                self.engine.require_finite("train", start, h, sums, tokens)
            if self._held is not None:
                h = h.clone()  # the engine's blocks share a buffer
                size += h.nbytes
                if size > HELD_BYTES and h.device.type == "cpu":
                    h = _on_disk(h)
                labels = labels.clone() if isinstance(labels, Tensor) else labels
                held.append((start, h, labels))
            yield start, h, labels
        if not rows:
            raise InputError(
                f"{self.engine.where}: expected at least one sample in train; it is empty, or can be read only once."
            )
        self._samples = seen
        if self._held is not None:
            self._held, self.complete = held, True


def _on_disk(h: Tensor) -> Tensor:
    """The same features in a file without a name, which is gone when they are."""
    bits = h.view(torch.uint16) if h.dtype == torch.bfloat16 else h
    array = bits.numpy()
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle
        mapped = np.memmap(file, dtype=array.dtype, mode="w+", shape=array.shape)
    mapped[:] = array
    return torch.from_numpy(mapped).view(h.dtype)
