"""From scores to a training set."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import check_output, read_pair, write_table
from .data.writers import ARCHIVES, FORMATS, write_archive
from .errors import InputError, InputTypeError
from .scores import Scores


def trim(scores: Scores, amount: float, *, query: int | str | None = None) -> Tensor:
    """Indices of the samples to keep when the lowest scores are dropped.

    Args:
        scores: of N samples.
        amount: a share in (0, 1), of which floor(share·N) samples are dropped, or an int count.
        query: number or name of one, where the scores are of several queries.

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
    keep[scores.lowest(amount, query=query)] = False
    return keep.nonzero().squeeze(1)


def write_kept(scores: Scores, amount: float, out: str | os.PathLike[str], *, data: Any = None) -> tuple[int, int]:
    """Trim, and write what is kept to a file that appears only when complete.

    Args:
        scores, amount: as in `trim`.
        out: .npy, .csv or .parquet for the kept indices; .npz or .safetensors for the kept `features`, `labels` and `index`.
        data: the training data of .npz and .safetensors: a pair of arrays or .npy paths, or a path with both.

    Returns:
        (how many samples were kept, how many there were)
    """
    where = "curate"
    file = check_output(where, "out", out, (*FORMATS, *ARCHIVES))
    keep = trim(scores, amount).numpy()
    if file.suffix not in ARCHIVES:
        if data is not None:
            raise InputError(f"{where}: expected out to end in .npz or .safetensors to hold the data; got {file.name!r}.")
        write_table(where, file, {"index": keep})
        return len(keep), len(scores)
    if data is None:
        raise InputError(f"{where}: expected the training data to write {file.name!r}; got none. Pass it, or write .npy.")
    features, labels = read_pair(where, "train", data)
    for name, array in (("features", features), ("labels", labels)):
        if len(array) != len(scores):
            raise InputError(f"{where}: expected {name} of the {len(scores)} scored samples; got {len(array)}.")
    write_archive(file, {"features": np.asarray(features)[keep], "labels": np.asarray(labels)[keep], "index": keep})
    return len(keep), len(scores)
