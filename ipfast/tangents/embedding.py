"""y = W[i]:  ẏ = Ẇ[i], but zero at the padding index, whose row has no gradient."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .base import dual, parts, rule


@rule(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    w, dw = parts(weight)
    if dw is None or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    tangent = F.embedding(input, dw)
    if padding_idx is not None:
        row = padding_idx if padding_idx >= 0 else len(w) + padding_idx
        tangent.masked_fill_((input == row)[..., None], 0)
    return dual(F.embedding(input, w), tangent)
