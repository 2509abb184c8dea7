"""What a linear head makes of features that need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError
from .inputs import read_numbers

BLOCK_BYTES = 16 * 2**20
"""Of a block of features in float32: few enough to stay in the cache of a processor, and all that is read of a file at once."""


def head_outputs(where: str, features: Any, width: int, outputs: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function(h) [N, C] of features h [N, d], a block of rows after the other.

    Args:
        features: an array, a tensor or a path, as of `label_scores`. Of a file only a block is in memory.
        width, outputs: d and C.
        function: of a block [n, d], float64 where features are, else float32; gives [n, C].

    Raises:
        InputError, InputTypeError: features are no numbers [N, d]. NonFiniteError: a row has NaN or infinity, or makes them.
    """
    h = read_numbers(where, "features", features, f"numbers [N, {width}], the inputs of the head", widen="")
    if h.dim() != 2 or h.shape[1] != width:
        raise InputError(f"{where}: expected features of shape [N, {width}], the inputs of the head; got {list(h.shape)}.")
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    rows = max(1, BLOCK_BYTES // (4 * max(width, 1)))
    made = torch.empty(len(h), outputs, dtype=dtype)
    for start in range(0, len(h), rows):
        block = h[start : start + rows].to(dtype)
        values = function(block)
        finite = torch.isfinite(values).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            what = "is too large" if bool(torch.isfinite(block[row]).all()) else "has NaN or infinity"
            raise NonFiniteError(
                f"{where}: expected finite features; row {start + row} {what}. Leave it out, or compute it again."
            )
        made[start : start + rows] = values
    return made
