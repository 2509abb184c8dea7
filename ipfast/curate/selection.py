"""Which samples are dropped or relabelled: the lowest of all, or the same share of every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..scores import Scores
from .inputs import class_numbers


def lowest(where: str, scores: Scores, amount: float, *, within: Any = None) -> Tensor:
    """Indices of the lowest scores, worst first, ties by index: int64 [k], with k = floor(share·N) or a count.

    Args:
        within: [N] classes, of which each gives up the same share: k n_c / N of its n_c samples, rounded so that they are k in
            all (by largest remainders, ties to the class that sorts first).
    """
    order, count = torch.argsort(scores.of(), stable=True), scores.count(amount)
    if within is None:
        return order[:count]
    numbers, names = class_numbers(where, "within", within, len(scores))
    sizes = torch.bincount(numbers, minlength=len(names))
    by_class = order[torch.argsort(numbers[order], stable=True)]  # class by class, each worst first
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(scores)) - first[numbers[by_class]]  # in its class
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[by_class[place < torch.tensor(_quotas(sizes.tolist(), count))[numbers[by_class]]]] = True
    return order[chosen[order]]


def _quotas(sizes: list[int], count: int) -> list[int]:
    """`count` shared out in proportion to `sizes`, in whole numbers."""
    total = max(sum(sizes), 1)
    quotas = [size * count // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda number: (-(sizes[number] * count % total), number))
    for number in by_remainder[: count - sum(quotas)]:
        quotas[number] += 1
    return quotas
