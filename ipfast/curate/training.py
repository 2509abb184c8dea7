"""Curated data for training: subsets, new labels and samplers of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, WeightedRandomSampler

from ..errors import InputError, InputTypeError


class WithLabels(Dataset[Any]):
    """A data set with other labels: the last element of each sample, or the entry `labels_key` of a mapping, is exchanged.

    Args:
        data: a Dataset, or anything with a length that is indexed by sample.
        labels: [N], or soft targets [N, C], of all its samples in order.
        labels_key: where the samples are mappings.
    """

    def __init__(self, data: Any, labels: Tensor, labels_key: str = "labels") -> None:
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


def subset(data: Any, keep: Tensor, labels: Tensor | None = None, labels_key: str = "labels") -> Subset[Any]:
    """The samples to train on, with new labels where they are given.

    Args:
        data: a Dataset, or anything with a length that is indexed by sample.
        keep: indices as `trim` gives them.
        labels: of all samples, as `relabel` gives them. labels_key: their key, where the samples are mappings.

    >>> data = torch.utils.data.TensorDataset(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 1]))
    >>> [tuple(map(int, sample)) for sample in subset(data, torch.tensor([0, 2]), torch.tensor([1, 0, 1]))]
    [(5, 1), (7, 1)]
    """
    rows = None if labels is None else len(labels)
    _require_indexable("subset", data, rows)
    indices = torch.as_tensor(keep).tolist()
    if indices and not (min(indices) >= 0 and max(indices) < len(data)):
        raise InputError(f"subset: expected keep to hold indices of the {len(data)} samples; got {max(indices)}.")
    return Subset(data if labels is None else WithLabels(data, labels, labels_key), indices)


def sampler(weights: Tensor, *, samples: int | None = None, seed: int | None = None) -> WeightedRandomSampler:
    """Draws samples in proportion to their weights, with replacement: DataLoader(data, batch_size=…, sampler=sampler(weights)).

    Args:
        weights: [N] as `reweight` gives them.
        samples: how many an epoch draws; None: N.
        seed: of the draws; None: torch's own random numbers.
    """
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.dim() != 1 or not len(weights) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise InputError(
            f"sampler: expected weights [N] that are not negative, and not all zero; got shape {list(weights.shape)}."
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return WeightedRandomSampler(weights.tolist(), len(weights) if samples is None else samples, generator=generator)


def _require_indexable(where: str, data: Any, rows: int | None) -> None:
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputTypeError(
            f"{where}: expected data with a length that is indexed by sample, as a Dataset; got {type(data).__name__}. A "
            "stream has no subset."
        )
    if rows is not None and len(data) != rows:
        raise InputError(f"{where}: expected labels of the {len(data)} samples of data; got {rows}.")
