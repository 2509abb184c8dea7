"""What `train` and `val` may be: pairs of arrays or paths, Datasets, DataLoaders. Always read in order."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..errors import InputError, InputTypeError
from .batch import Batch, split_batch
from .files import read_arrays, read_npy
from .frames import array_of
from .order import check_order, is_spent_by_reading, sampling
from .rows import Rows

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Source(ABC):
    """Samples in a fixed order."""

    rows: int | None
    """Number of samples; None for a stream of unknown length."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in order; `size` rows each where the source does not come with its own batches."""

    def first(self, size: int) -> Batch:
        """The first of `batches`, which gives it again when it is read next."""
        return next(self.batches(size))

    @abstractmethod
    def drawn_twice(self, rows: int) -> tuple[Batch, Batch] | None:
        """The first few samples, read twice; None for a stream, which may be read only once."""


class ArraySource(Source):
    """Inputs [N, ...] and labels [N] or [N, C], addressed by row."""

    def __init__(self, where: str, argument: str, inputs: Any, labels: Any) -> None:
        self.inputs = Rows(where, f"{argument} features", _from_path(where, argument, inputs))
        self.labels = _label_array(where, argument, _from_path(where, argument, labels))
        if not self.inputs.shape:
            raise InputError(f"{where}: expected {argument} features of shape [N, d]; got a single number.")
        self.rows = self.inputs.shape[0]
        if len(self.labels) != self.rows:
            raise InputError(
                f"{where}: expected as many labels as features in {argument}; got {self.rows} rows of features and "
                f"{len(self.labels)} labels. Check that both come from the same samples."
            )
        if self.rows == 0:
            raise InputError(f"{where}: expected at least one sample in {argument}; it is empty.")

    def batches(self, size: int) -> Iterator[Batch]:
        for start, block in self.inputs.blocks(size):
            yield Batch(block, self.labels[start : start + len(block)])

    def drawn_twice(self, rows: int) -> tuple[Batch, Batch]:
        few = next(self.batches(rows))
        return few, few


class LoaderSource(Source):
    """Batches of a DataLoader, as it makes them."""

    def __init__(self, where: str, argument: str, loader: DataLoader[Any], labels_key: str = "labels") -> None:
        self.where, self.argument, self.loader, self.labels_key = where, argument, loader, labels_key
        self._begun: tuple[Batch, Iterator[Batch]] | None = None  # a stream that has been looked at
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        # Where the data set makes the batches, or a batch sampler of the user's own, the lengths known here are not N.
        countable = loader.batch_size is not None and not isinstance(loader.dataset, IterableDataset)
        self.rows = len(sampler) if countable and isinstance(sampler, Sized) else None
        if isinstance(sampler, _SHUFFLING) or (isinstance(sampler, DistributedSampler) and sampler.shuffle):
            raise InputError(
                f"{where}: expected {argument} to be a DataLoader that keeps the order of its data; it shuffles "
                f"({type(sampler).__name__}), so scores could not be matched to samples. Build it with shuffle=False."
            )
        if self.rows == 0:
            raise InputError(f"{where}: expected at least one sample in {argument}; it is empty.")
        if loader.drop_last and self.rows is not None and self.rows % (loader.batch_size or 1):
            raise InputError(
                f"{where}: expected {argument} to be a DataLoader over all samples; drop_last=True leaves out "
                f"{self.rows % (loader.batch_size or 1)} of {self.rows}. Build it with drop_last=False."
            )
        spent = check_order(where, argument, loader)
        if spent is not None:
            self.loader = _with_order(loader, spent, loader.num_workers, loader.generator)

    def batches(self, size: int) -> Iterator[Batch]:
        if self._begun is None:
            yield from self._read()
        else:
            (first, rest), self._begun = self._begun, None
            yield first
            yield from rest

    def first(self, size: int) -> Batch:
        if self._begun is None:
            rest = self._read()
            first = next(rest, None)
            if first is None:
                raise InputError(f"{self.where}: expected at least one sample in {self.argument}; it is empty.")
            if not self._once():
                return first
            self._begun = first, rest
        return self._begun[0]

    def _read(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield self._split(batch)

    def _split(self, batch: Any) -> Batch:
        return split_batch(self.where, self.argument, batch, self.labels_key)

    def _once(self) -> bool:
        """Whether it may be that it can be read only once."""
        return isinstance(self.loader.dataset, IterableDataset) or is_spent_by_reading(self.loader)

    def drawn_twice(self, rows: int) -> tuple[Batch, Batch] | None:
        """Through a loader like the user's, whose own random numbers and workers stay untouched."""
        loader = self.loader
        if self._once():
            return None
        first = next(iter(sampling(loader)), None)
        if first is None:
            return None
        some = first if loader.batch_sampler is None else list(first)[:rows]
        once, twice = map(self._split, _with_order(loader, [some] * 2, min(1, loader.num_workers), torch.Generator()))
        return once, twice


def _with_order(loader: DataLoader[Any], order: list[Any], workers: int, generator: Any) -> DataLoader[Any]:
    """A loader like the user's, which reads what `order` says."""
    how: dict[str, Any] = {"sampler": order, "batch_size": None}
    if loader.batch_sampler is not None:
        how = {"batch_sampler": order}
    return DataLoader(
        loader.dataset,
        **how,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
    )


def open_source(where: str, argument: str, data: Any, *, batch_size: int, labels_key: str = "labels") -> Source:
    """A Source over any of the accepted kinds of data."""
    if isinstance(data, Source):
        return data
    if isinstance(data, (str, os.PathLike)):
        return ArraySource(where, argument, *read_arrays(where, argument, data))
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise InputError(f"{where}: expected {argument} to be a pair (features, labels); got {len(data)} elements.")
        return ArraySource(where, argument, data[0], data[1])
    if isinstance(data, DataLoader):
        return LoaderSource(where, argument, data, labels_key)
    bare = isinstance(data, (np.ndarray, Tensor, Mapping)) or hasattr(data, "to_numpy")  # indexable, but not by sample
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__") and not bare):
        return LoaderSource(where, argument, DataLoader(data, batch_size=batch_size, shuffle=False), labels_key)
    raise InputTypeError(
        f"{where}: expected {argument} to be a pair (features, labels), a Dataset, a DataLoader, or a path to an .npz or "
        f".safetensors file; got {type(data).__name__}."
    )


def same_data(one: Any, other: Any) -> bool:
    """Whether two data arguments are the same samples: the same object, or pairs over the same memory."""
    one, other = (data.dataset if isinstance(data, DataLoader) else data for data in (one, other))
    if one is other:
        return True
    if isinstance(one, (str, os.PathLike)) and isinstance(other, (str, os.PathLike)):
        return Path(one).resolve() == Path(other).resolve()
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other) == 2:
        return one[0] is other[0] or (_memory(one[0]) is not None and _memory(one[0]) == _memory(other[0]))
    return False


def _memory(array: Any) -> tuple[Any, ...] | None:
    if isinstance(array, Tensor):
        return array.data_ptr(), tuple(array.shape)
    if isinstance(array, np.ndarray):
        return array.ctypes.data, array.shape
    return (str(array),) if isinstance(array, (str, os.PathLike)) else None


def _from_path(where: str, argument: str, value: Any) -> Any:
    return read_npy(where, argument, value) if isinstance(value, (str, os.PathLike)) else value


def _label_array(where: str, argument: str, labels: Any) -> Any:
    """Labels as a tensor, or as a NumPy array of names; small enough to be held whatever the features are."""
    if isinstance(labels, Tensor):
        return labels.detach()
    if hasattr(labels, "to_numpy"):
        labels = array_of(where, f"{argument} labels", labels)
    try:
        labels = np.array(labels)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"{where}: expected {argument} labels to be an array; {str(error).rstrip('.')}.") from error
    if labels.ndim == 0:
        raise InputError(f"{where}: expected {argument} labels of shape [N]; got a single value.")
    if labels.dtype.kind == "u":
        labels = labels.astype(np.int64)
    return torch.from_numpy(labels.astype(labels.dtype.newbyteorder("="))) if labels.dtype.kind in "fib" else labels
