"""Curated training sets in files, which appear only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import check_output, read_pair, write_table
from ..data.writers import ARCHIVES, FORMATS, write_archive
from ..errors import InputError
from ..scores import Scores
from .trimming import trim


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
    write(where, file, {"index": keep}, rows=len(scores), data=data, keep=keep)
    return len(keep), len(scores)


def write(
    where: str,
    file: Path,
    columns: Mapping[str, np.ndarray],
    *,
    rows: int,
    data: Any,
    keep: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a table of columns, or an archive of the training data as it is curated.

    Args:
        file: from `check_output`.
        rows: N. data: the training data of an archive, a pair of arrays or .npy paths, or a path with both.
        keep, labels: the samples and the labels of the archive; None: all, and those of the data. more: its other arrays.
    """
    if file.suffix not in ARCHIVES:
        if data is not None and keep is not None:  # new labels and weights are all that is new
            raise InputError(f"{where}: expected out to end in .npz or .safetensors to hold the data; got {file.name!r}.")
        write_table(where, file, dict(columns))
        return
    if data is None:
        raise InputError(f"{where}: expected the training data to write {file.name!r}; got none. Pass it, or write .npy.")
    features, given = read_pair(where, "train", data)
    for name, array in (("features", features), ("labels", given)):
        if len(array) != rows:
            raise InputError(f"{where}: expected {name} of the {rows} scored samples; got {len(array)}.")
    kept: Any = slice(None) if keep is None else keep
    arrays = {"features": np.asarray(features)[kept], "labels": np.asarray(given if labels is None else labels)[kept]}
    index = {} if keep is None else {"index": keep}
    write_archive(file, {**arrays, **index, **(more or {})})
