"""From scores to a training set."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputTypeError
from .scores import Scores


def trim(scores: Scores, amount: float) -> Tensor:
    """Indices of the samples to keep when the lowest scores are dropped.

    Args:
        scores: of N samples.
        amount: a share in (0, 1), of which floor(share·N) samples are dropped, or an int count.

    Returns:
        Kept indices in the order of the data, int64 [N − k]. Ready for torch.utils.data.Subset(data, keep.tolist()).

    Raises:
        InputError, InputTypeError: amount is neither a share nor a count of these scores.

    Source: section 5 of arXiv 2405.17490 drops the lowest 5 % and trains again from scratch.

    >>> trim(Scores(torch.tensor([0.3, -1.0, 0.2, 0.1]), "ip", "head", "cpp"), 0.25).tolist()
    [0, 2, 3]
    """
    if not isinstance(scores, Scores):
        raise InputTypeError(
            f"trim: expected scores to be a Scores object; got {type(scores).__name__}. Read a file with ipfast.Scores.load."
        )
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[scores.lowest(amount)] = False
    return keep.nonzero().squeeze(1)
