"""Normalisations y = x̂ γ + β: ẏ = x̂˙ γ + x̂ γ̇ + β̇, in as few passes over x as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .base import dual, parts, rule


@rule(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """In eval x̂ = (x − μ) r with r = 1/√(σ² + eps) is affine: y = x a + c with a = γ r, and ẏ = ẋ a + x ȧ + ċ."""
    if training or running_mean is None or running_var is None:
        return NotImplemented
    (x, dx), (w, dw), (b, db) = parts(input), parts(weight), parts(bias)
    if dx is None and dw is None and db is None:
        return F.batch_norm(x, running_mean, running_var, w, b, False, momentum, eps)
    r = torch.rsqrt(running_var + eps)
    scale = r if w is None else w * r
    shift = -running_mean * scale if b is None else b - running_mean * scale
    moved = torch.zeros_like(r) if dw is None else dw * r
    constant = -running_mean * moved if db is None else db - running_mean * moved
    y, tangent = ops.affine_tangent(x, dx, scale, shift, moved, constant)
    return dual(y, tangent)


@rule(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """x̂˙ = r (ẋ − mean(ẋ) − x̂ mean(x̂ ẋ)) with r = 1/√(var(x) + eps)."""
    (x, dx), (w, dw), (b, db) = parts(input), parts(weight), parts(bias)
    y, mean, r = torch.native_layer_norm(x, list(normalized_shape), w, b, eps)
    if dx is None and dw is None and db is None:
        return y
    over = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    normal = (x - mean).mul_(r)
    tangent: Tensor | None = None
    if dx is not None:
        inner = (normal * dx).mean(dim=over, keepdim=True)
        tangent = torch.addcmul(dx - dx.mean(dim=over, keepdim=True), normal, inner, value=-1).mul_(r)
        tangent = tangent if w is None else tangent.mul_(w)
    if dw is not None:
        tangent = normal.mul_(dw) if tangent is None else tangent.addcmul_(normal, dw)
    if db is not None:
        tangent = db.expand_as(y).contiguous() if tangent is None else tangent.add_(db)
    return dual(y, tangent)
