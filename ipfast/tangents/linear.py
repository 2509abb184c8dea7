"""y = x Wᵀ + b:  ẏ = ẋ Wᵀ + x Ẇᵀ + ḃ, each product added into the one result."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import dual, parts, rule


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    (x, dx), (w, dw), (b, db) = parts(input), parts(weight), parts(bias)
    if w.dim() != 2 or x.dim() < 2:
        return NotImplemented
    y = F.linear(x, w, b)
    if dx is None and dw is None and db is None:
        return y
    rows = x.reshape(-1, x.shape[-1])
    if dx is None and dw is None:
        assert db is not None
        return dual(y, db.expand_as(y).contiguous())
    tangent: Tensor | None = None
    for factor, matrix in ((dx, w), (None if dw is None else rows, dw)):
        if factor is None or matrix is None:
            continue
        flat = factor.reshape(rows.shape)
        if tangent is not None:
            tangent.addmm_(flat, matrix.T)
        else:
            tangent = flat @ matrix.T if db is None else torch.addmm(db, flat, matrix.T)
    assert tangent is not None
    return dual(y, tangent.view(y.shape))
