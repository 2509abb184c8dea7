"""Curated data for training: subsets, new labels and samplers of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, WeightedRandomSampler

from ..checks import positive_integer, random_seed
from ..errors import InputError, InputTypeError
from .inputs import kept_indices, sample_weights

LARGEST = 2**24
"""torch.multinomial, by which WeightedRandomSampler draws, takes no more categories."""


class WithLabels(Dataset[Any]):
    """A data set with other labels: the last element of each sample, or the entry `labels_key` of a mapping, is exchanged.

    Args:
        data: a Dataset, or anything with a length that is indexed by sample.
        labels: [N], or soft targets [N, C], of all its samples in order.
        labels_key: where the samples are mappings.
    """

    def __init__(self, data: Any, labels: Any, labels_key: str = "labels") -> None:
        labels = labels.to_numpy() if hasattr(labels, "to_numpy") else labels  # a Series is indexed by name
        _require_indexable("WithLabels", data, len(labels))
        self.data, self.labels, self.labels_key = data, labels, labels_key

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        sample, label = self.data[index], self.labels[index]
        if isinstance(sample, Mapping):
            if self.labels_key not in sample:
                raise InputError(
                    f"WithLabels: expected samples with the label under {self.labels_key!r}; got "
                    f"{', '.join(map(str, sample))}. Name its key with labels_key=."
                )
            return {**sample, self.labels_key: label}
        if not isinstance(sample, (tuple, list)) or len(sample) < 2:
            raise InputTypeError(
                f"WithLabels: expected samples (inputs, label) or mappings; got {type(sample).__name__}. Wrap the data set."
            )
        return (*sample[:-1], label)


def subset(data: Any, keep: Any, labels: Any = None, labels_key: str = "labels") -> Subset[Any]:
    """The samples to train on, with new labels where they are given.

    Args:
        data: a Dataset, or anything with a length that is indexed by sample.
        keep: indices in [0, N) as `trim` gives them, in their order; or a mask [N] of bool, true where a sample stays.
        labels: of all samples, as `relabel` gives them. labels_key: their key, where the samples are mappings.

    Raises:
        InputError, InputTypeError: keep or labels are not of the samples of data, or data cannot be indexed.

    >>> data = torch.utils.data.TensorDataset(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 1]))
    >>> [tuple(map(int, sample)) for sample in subset(data, torch.tensor([0, 2]), torch.tensor([1, 0, 1]))]
    [(5, 1), (7, 1)]
    """
    rows = None if labels is None else len(labels)
    _require_indexable("subset", data, rows)
    indices = kept_indices("subset", keep, len(data)).tolist()
    return Subset(data if labels is None else WithLabels(data, labels, labels_key), indices)


def sampler(weights: Any, *, samples: int | None = None, seed: int | None = None) -> WeightedRandomSampler:
    """Draws samples in proportion to their weights, with replacement: DataLoader(data, batch_size=…, sampler=sampler(weights)).

    Args:
        weights: [N] as `reweight` gives them.
        samples: how many an epoch draws; None: N.
        seed: of the draws, in 0 .. 2^64−1; None: torch's own random numbers.

    Raises:
        InputError, InputTypeError: weights are not finite, negative, or all zero; samples or seed are no such numbers.
    """
    where = "sampler"
    found = sample_weights(where, weights)
    if len(found) > LARGEST:
        raise InputError(
            f"{where}: expected at most 2^24 weights, from which torch draws; got {len(found):,}. Weight the losses instead."
        )
    if not bool((found > 0).any()):
        raise InputError(f"{where}: expected weights of which one is positive, to draw it; got {len(found)}, all zero.")
    count = len(found) if samples is None else positive_integer(where, "samples", samples)
    generator = None if seed is None else torch.Generator().manual_seed(random_seed(where, seed))
    if not math.isfinite(float(found.sum())):  # draws depend on the ratios alone
        found = found / found.max()
    return WeightedRandomSampler(found.tolist(), count, generator=generator)


def _require_indexable(where: str, data: Any, rows: int | None) -> None:
    by_name = isinstance(data, Mapping) or (hasattr(data, "to_numpy") and not isinstance(data, Tensor))
    if by_name or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputTypeError(
            f"{where}: expected data with a length that is indexed by sample, as a Dataset; got {type(data).__name__}. "
            + ("It is indexed by name: pass a list or a Dataset of its rows." if by_name else "A stream has no subset.")
        )
    if rows is not None and len(data) != rows:
        raise InputError(f"{where}: expected labels of the {len(data)} samples of data; got {rows}.")
