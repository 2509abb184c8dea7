"""Trim: drop the lowest scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import as_scores
from .selection import lowest


def trim(scores: Any, amount: float, *, within: Any = None, query: int | str | None = None) -> Tensor:
    """Indices of the samples to keep when the lowest scores are dropped.

    Args:
        scores: of N samples: a Scores object, an array [N], the path of a file of scores, or a DataFrame of such a file: its
            columns `score`, or `score NAME` of each query, in the order of `index` if that is 0..N−1 and with the names in
            `id`; without columns of that name every other one is a query.
        amount: a share in (0, 1), of which floor(share·N) samples are dropped, or an int count.
        within: [N] classes (numbers or strings), of which each loses the same share, where the lowest scores of all would fall
            almost all into one class; the number of dropped samples stays the same.
        query: number or name of one, where the scores are of several queries.

    Returns:
        Kept indices in the order of the data, int64 [N − k]. Ready for torch.utils.data.Subset(data, keep.tolist()).

    Raises:
        InputError, InputTypeError: amount is neither a share nor a count of these scores, or a score is NaN.

    Source: section 5 of arXiv 2405.17490 drops the lowest 5 % and trains again from scratch.

    >>> trim(torch.tensor([0.3, -1.0, 0.2, 0.1]), 0.25).tolist()
    [0, 2, 3]
    >>> trim(torch.tensor([-3.0, -2.0, -1.0, 0.0]), 0.5, within=["a", "a", "b", "b"]).tolist()
    [1, 3]
    """
    found = as_scores("trim", scores, query=query)
    keep = torch.ones(len(found), dtype=torch.bool)
    keep[lowest("trim", found, amount, within=within)] = False
    return keep.nonzero().squeeze(1)
