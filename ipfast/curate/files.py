"""Curated training sets in files, which appear only when they are complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import read_pair, write_table
from ..data.writers import ARCHIVES, write_archive
from ..errors import InputError


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
        file: from `Curated.check_save`.
        rows: N. data: the training data of an archive, a pair of arrays or .npy paths, or a path with both.
        keep, labels: the samples and the labels of the archive; None: all, and those of the data. more: its other arrays.
    """
    if file.suffix not in ARCHIVES:
        write_table(where, file, dict(columns))
        return
    features, given = read_pair(where, "train", data)
    for name, array in (("features", features), ("labels", given)):
        if len(array) != rows:
            raise InputError(f"{where}: expected {name} of the {rows} scored samples; got {len(array)}.")
    kept: Any = slice(None) if keep is None else keep
    arrays = {"features": np.asarray(features)[kept], "labels": np.asarray(given if labels is None else labels)[kept]}
    index = {} if keep is None else {"index": keep}
    write_archive(file, {**arrays, **index, **(more or {})})
