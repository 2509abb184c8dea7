"""Curated training sets in files, which appear only when they are complete."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import fixed_width
from ..data import read_pair, write_table
from ..data.rows import backing_map
from ..data.writers import ARCHIVES, write_archive
from ..errors import InputError, InputTypeError

BLOCK_BYTES = 64 * 2**20
"""Of memory-mapped features that are copied at once."""


def write(
    where: str,
    file: Path,
    columns: Mapping[str, np.ndarray],
    *,
    rows: int,
    data: Any,
    keep: np.ndarray | None = None,
    labels: np.ndarray | Tensor | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a table of columns, or an archive of the training data as it is curated.

    Args:
        file: from `Curated.check_save`.
        rows: N. data: the training data of an archive, as `training_arrays` takes it.
        keep, labels: the samples and the labels of the archive; None: all, and those of the data. more: its other arrays.
    """
    if file.suffix not in ARCHIVES:
        write_table(where, file, dict(columns))
        return
    features, given = training_arrays(where, file, data)
    for name, array in (("features", features), ("labels", given)):
        if len(array) != rows:
            raise InputError(f"{where}: expected {name} of the {rows} scored samples; got {len(array)}.")
    chosen = given if labels is None else labels
    beside = {"labels": chosen} if keep is None else {"labels": chosen[keep], "index": keep}
    with _rows(features, keep, file.parent) as kept:
        write_archive(file, {"features": kept, **beside, **(more or {})})


@contextmanager
def _rows(features: Any, keep: np.ndarray | None, folder: Path) -> Iterator[Any]:
    """Some rows of an array; those of a memory map lie in a temporary file, since they may be larger than memory."""
    if keep is None or not len(keep) or not isinstance(features, np.ndarray) or backing_map(features) is None:
        yield features if keep is None else features[keep]
        return
    shape = features.shape[1:]
    size = max(1, BLOCK_BYTES // max(1, features.dtype.itemsize * math.prod(shape)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".curated.") as place:
        kept = np.lib.format.open_memmap(Path(place) / "features.npy", "w+", features.dtype, (len(keep), *shape))
        for start in range(0, len(keep), size):
            kept[start : start + size] = features[keep[start : start + size]]
        yield kept


def training_arrays(where: str, file: Path, data: Any) -> tuple[np.ndarray | Tensor, np.ndarray | Tensor]:
    """(features, labels) of training data that shall go into an archive, memory-mapped where they are.

    Args:
        data: a pair of arrays, tensors or .npy paths, or the path of a file with both.

    Raises:
        InputError, InputTypeError: they are no pair, of different lengths, or of a kind that the archive cannot hold.
    """
    if not isinstance(data, (str, os.PathLike)) and not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise InputTypeError(
            f"{where}: expected data to be a pair (features, labels), or the path of a file with both; got "
            f"{type(data).__name__}."
        )
    features, labels = read_pair(where, "data", data)
    made = _storable(where, file, "features", features), _storable(where, file, "labels", labels)
    if len(made[0]) != len(made[1]):
        raise InputError(
            f"{where}: expected features and labels of the same samples in data; got {len(made[0])} and {len(made[1])}."
        )
    return made


def _storable(where: str, file: Path, name: str, values: Any) -> np.ndarray | Tensor:
    """Numbers, or labels that are strings where the archive holds such."""
    if isinstance(values, Tensor) and values.layout == torch.strided and values.dim():
        return values.detach().cpu()
    if isinstance(values, Tensor) or hasattr(values, "toarray"):
        raise InputTypeError(
            f"{where}: expected {name} of data to be a dense array, a row for each sample; got a {type(values).__name__}."
        )
    try:
        array = fixed_width(np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values))
    except ValueError as error:
        raise InputTypeError(
            f"{where}: expected {name} of data to be an array; {str(error).rstrip('.')}. Pad its rows to one length."
        ) from error
    if array.dtype.kind == "U" and name == "labels" and file.suffix == ".safetensors":
        raise InputError(
            f"{where}: expected labels as numbers in {file.name!r}, which holds no strings. Write .npz, or encode them."
        )
    if (
        array.dtype.kind not in ("biufU" if name == "labels" else "biuf")
        or not array.ndim
        or (array.dtype.itemsize > 8 and array.dtype.kind == "f")
    ):
        raise InputTypeError(
            f"{where}: expected {name} of data to be numbers, a row for each sample; got {array.dtype} {list(array.shape)}."
        )
    return array
