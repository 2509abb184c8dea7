"""Weight normalisation W = V g/n with n = ‖V‖ over all dimensions but one: Ẇ = (V̇ g + V ġ − V g ⟨V, V̇⟩/n²)/n.

torch has no forward derivative for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import dual, parts, rule


@rule(torch._weight_norm)
def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    (x, dx), (size, dsize) = parts(v), parts(g)
    w = torch._weight_norm(x, size, dim)
    if dx is None and dsize is None:
        return w
    over = [index for index in range(x.dim()) if index != dim]
    n = torch.linalg.vector_norm(x, dim=over, keepdim=True)
    tangent = torch.zeros_like(x) if dsize is None else x * (dsize / n)
    if dx is not None:
        inner = (x * dx).sum(dim=over, keepdim=True) / n.square()
        tangent.add_((dx - x * inner) * (size / n))
    return dual(w, tangent)
