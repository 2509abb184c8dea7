"""Whether a DataLoader gives the samples of its data set in their order, as far as its samplers tell."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from ..errors import InputError


def sampling(loader: DataLoader[Any]) -> Any:
    """What tells a loader which samples are next: its batch sampler, or its sampler where the data set makes the batches."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def is_spent_by_reading(loader: DataLoader[Any]) -> bool:
    """Whether a sampler is an iterator, which gives its numbers once."""
    return any(iter(one) is one for one in (sampling(loader), loader.sampler))


def check_order(where: str, argument: str, loader: DataLoader[Any]) -> list[Any] | None:
    """Refuse a loader over a map-style data set whose samplers do not give 0, 1, 2, …; what is no number is not looked at.

    Returns:
        What an iterator gave, which has nothing more to give; None where the samplers can be read again.
    """
    if isinstance(loader.dataset, IterableDataset) or _is_sequential(loader):
        return None
    order, dataset = sampling(loader), loader.dataset
    taken: list[Any] | None = [] if is_spent_by_reading(loader) else None
    rows = len(dataset) if isinstance(dataset, Sized) else None
    named = type(order.sampler if type(order) is BatchSampler else order).__name__
    seen = 0
    with _random_states_kept(loader):
        for item in order:
            if taken is not None:
                taken.append(item)
            for number in _numbers(item, rows):
                if number is None:
                    continue
                if number != seen or seen == rows:
                    raise InputError(
                        f"{where}: expected {argument} to be a DataLoader that keeps the order of its data, 0, 1, 2, …; its "
                        f"{named} gives number {number} at place {seen}, so scores could not be matched to samples. Pass the "
                        "Dataset itself, or a DataLoader over torch.utils.data.Subset(dataset, order) without a sampler."
                    )
                seen += 1
    return taken


def _is_sequential(loader: DataLoader[Any]) -> bool:
    """Whether torch's own classes tell the order, so that nothing need be read."""
    order, dataset = sampling(loader), loader.dataset
    if type(order) is BatchSampler:
        order = order.sampler
    return type(order) is SequentialSampler and id(order.data_source) == id(dataset)


def _numbers(item: Any, rows: int | None) -> Iterator[int | None]:
    """Numbers of the samples in what a sampler gives: one, or those of a batch; None for what is no number."""
    if isinstance(item, slice) and rows is not None:
        yield from range(*item.indices(rows))
        return
    try:
        yield operator.index(item)
        return
    except TypeError:
        pass
    if isinstance(item, (list, tuple, np.ndarray, torch.Tensor)) and getattr(item, "ndim", 1) == 1:
        for each in item:
            yield operator.index(each) if hasattr(each, "__index__") else None
    else:
        yield None


@contextmanager
def _random_states_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Random numbers go on afterwards as if none had been drawn: those of torch, NumPy and Python, and the samplers' own."""
    back: list[Callable[[], Any]] = [
        _put_back(torch.random.get_rng_state(), torch.random.set_rng_state),
        _put_back(np.random.get_state(), np.random.set_state),
        _put_back(random.getstate(), random.setstate),
    ]
    for holder in _nested(loader):
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, torch.Generator | np.random.RandomState):
                back.append(_put_back(value.get_state(), value.set_state))
            elif isinstance(value, random.Random):
                back.append(_put_back(value.getstate(), value.setstate))
            elif isinstance(value, np.random.Generator):
                back.append(_put_back(value.bit_generator.state, _setter(value.bit_generator)))
    try:
        yield
    finally:
        for put in back:
            put()


def _put_back(state: Any, put: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: put(state)


def _setter(bits: np.random.BitGenerator) -> Callable[[Any], None]:
    return lambda state: setattr(bits, "state", state)


def _nested(loader: DataLoader[Any]) -> list[Any]:
    """The loader, its samplers and the samplers in these, each once."""
    found: list[Any] = [loader]
    for holder in found:  # which grows
        for name in ("sampler", "batch_sampler"):
            inner = getattr(holder, name, None)
            if inner is not None and all(inner is not one for one in found):
                found.append(inner)
    return found
