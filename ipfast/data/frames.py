"""Tables of pandas as arrays of numbers, with the names of their columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError, InputTypeError


def column_names(table: Any) -> tuple[str, ...] | None:
    """Names of a table's columns, all of them strings, as scikit-learn compares them; None for anything else."""
    names = tuple(getattr(table, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def array_of(where: str, argument: str, table: Any) -> np.ndarray:
    """What `to_numpy` gives; columns of numbers and bool of several dtypes, which it gives as objects, as float64.

    Raises:
        InputTypeError: a column of the table is no numbers. InputError: a value is missing in it.
    """
    array: np.ndarray = table.to_numpy()
    if array.dtype.kind in "fiub" or array.ndim != 2 or array.shape[1] < 2 or not hasattr(table, "columns"):
        return array  # one column alone may be labels, which may be words
    for name, dtype in zip(table.columns, table.dtypes, strict=True):
        if getattr(dtype, "kind", "O") not in "fiub":
            raise InputTypeError(
                f"{where}: expected {argument} to hold numbers; got dtype {dtype} in the column {name!r}. Encode it as numbers "
                "first."
            )
    missing = np.argwhere(table.isna().to_numpy())
    if len(missing):
        row, column = missing[0].tolist()
        raise InputError(
            f"{where}: expected {argument} without missing values; the column {table.columns[column]!r} has one at row {row}. "
            "Fill it in, or leave the row out."
        )
    return array.astype(np.float64)
