"""Pointwise functions: ẏ = f'(x) ẋ with f' from the value where that is enough."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import dual, parts, rule


@rule(F.relu, torch.relu)
def relu(input: Tensor, inplace: bool = False) -> Any:
    if inplace:
        return NotImplemented
    x, dx = parts(input)
    y = torch.relu(x)
    return y if dx is None else dual(y, torch.ops.aten.threshold_backward(dx, y, 0))


@rule(F.gelu)
def gelu(input: Tensor, approximate: str = "none") -> Any:
    x, dx = parts(input)
    y = F.gelu(x, approximate=approximate)
    return y if dx is None else dual(y, torch.ops.aten.gelu_backward(dx, x, approximate=approximate))
