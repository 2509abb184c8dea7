"""NumPy arrays of what people have: tensors, columns of tables, sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..checks import fixed_width, missing_row
from ..errors import InputError, InputTypeError
from .writers import as_array


def one_each(where: str, argument: str, values: Any) -> np.ndarray:
    """Numbers or strings of which each sample of val has one, strings of a fixed width.

    Raises:
        InputError: a missing value among strings. InputTypeError: rows of different lengths.
    """
    if isinstance(values, Tensor):
        return as_array(values)
    try:
        array = fixed_width(np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values))
    except ValueError as error:
        raise InputTypeError(
            f"{where}: expected {argument} to be an array [M]; {str(error).rstrip('.')}. Give each sample of val one of them."
        ) from error
    if array.dtype.kind in "OTU" and (row := missing_row(values)) is not None:  # of a list NumPy makes the word "nan"
        raise InputError(
            f"{where}: expected {argument} of every sample of val; got a missing value at row {row}. Leave it out."
        )
    return array
