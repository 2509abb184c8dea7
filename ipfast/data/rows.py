"""Rows of an array, read block by block, without holding a file in memory.

A memory-mapped array that is larger than memory can be walked by touching its pages, but touched pages count as resident until
the system needs them. So blocks are copied into a few reused buffers, one ahead of the reader, and the pages are given back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor, native
from ..errors import InputTypeError
from .frames import array_of, column_names


def backing_map(array: np.ndarray) -> np.memmap | None:
    """The memory map behind an array, through any number of views."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return base
        base = base.base
    return None


def _shares_pages_with_file(mapped: np.memmap) -> bool:
    """Whether dropping the pages loses nothing: a copy-on-write map keeps its changes only in its pages."""
    return getattr(mapped, "mode", None) in ("r", "r+", "w+")


class Rows:
    """An array [N, ...] that is read in order, in blocks of rows."""

    def __init__(self, where: str, argument: str, array: Any) -> None:
        self.columns = column_names(array)
        """Names of the columns, where a table has them."""
        if hasattr(array, "to_numpy") and not isinstance(array, Tensor):  # pandas
            array = array_of(where, argument, array)
        if isinstance(array, (list, tuple)):
            try:
                array = np.asarray(array)
            except ValueError as error:
                raise InputTypeError(
                    f"{where}: expected {argument} to be an array, with rows of one length; {str(error).rstrip('.')}. Pad them."
                ) from error
        sparse = array.layout != torch.strided if isinstance(array, Tensor) else hasattr(array, "toarray")
        if sparse:
            raise InputTypeError(
                f"{where}: expected {argument} to be a dense array; got a sparse {type(array).__name__}. Convert it with "
                f"{'to_dense' if isinstance(array, Tensor) else 'toarray'}(), all of it, or block by block for ipfast.Scorer."
            )
        if not isinstance(array, (np.ndarray, Tensor)):
            raise InputTypeError(
                f"{where}: expected {argument} to be an array or tensor; got {type(array).__name__}. "
                "Convert it with numpy.asarray."
            )
        if isinstance(array, Tensor) and array.dtype.is_complex:
            raise InputTypeError(f"{where}: expected {argument} to hold real numbers; got {array.dtype}. Encode it first.")
        if isinstance(array, np.ndarray) and array.dtype.kind not in "fiub":
            raise InputTypeError(
                f"{where}: expected {argument} to hold numbers; got dtype {array.dtype}. Encode it as numbers first."
            )
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.dtype.itemsize > 8:
            raise InputTypeError(
                f"{where}: expected {argument} of at most 64 bits a number; got {array.dtype}. Convert it to float64."
            )
        self.array = array
        self.map = backing_map(array) if isinstance(array, np.ndarray) else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> torch.dtype:
        piece = self.array[:0]
        return piece.dtype if isinstance(piece, Tensor) else as_tensor(piece).dtype

    @property
    def resident(self) -> bool:
        """Whether the rows lie in memory and can be handed out without a copy."""
        return self.map is None

    def tensor(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a resident array, without a copy where NumPy's layout allows it."""
        piece = self.array[start:stop]
        return piece.detach() if isinstance(piece, Tensor) else as_tensor(piece)

    def taken(self, rows: np.ndarray) -> Tensor:
        """A copy of the rows with these numbers, in their order."""
        piece = self.array[rows]
        return piece.detach() if isinstance(piece, Tensor) else as_tensor(piece)

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """(start, rows) for blocks of `size` rows. A block is valid until the next is asked for."""
        count = self.shape[0]
        if self.resident:
            for start in range(0, count, size):
                yield start, self.tensor(start, min(start + size, count))
            return
        assert isinstance(self.array, np.ndarray)
        buffers = [np.empty((min(size, count), *self.shape[1:]), native(self.array.dtype)) for _ in range(2)]

        def load(start: int, buffer: np.ndarray) -> np.ndarray:
            rows = buffer[: min(start + size, count) - start]
            np.copyto(rows, self.array[start : start + len(rows)])
            self._release()
            return rows

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ipfast-reader") as reader:
            pending = reader.submit(load, 0, buffers[0])
            for index, start in enumerate(range(0, count, size)):
                rows = pending.result()
                # The next block goes to the other buffer, which the consumer has finished with when it asks for more.
                if start + size < count:
                    pending = reader.submit(load, start + size, buffers[(index + 1) % 2])
                yield start, as_tensor(rows)

    def _release(self) -> None:
        if self.map is not None and _shares_pages_with_file(self.map) and hasattr(mmap, "MADV_DONTNEED"):
            pages: mmap.mmap = self.map._mmap  # type: ignore[attr-defined]
            pages.madvise(mmap.MADV_DONTNEED)
