"""y = x ∗ W + b:  ẏ = ẋ ∗ W + x ∗ Ẇ + ḃ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import dual, parts, rule

Convolution = Callable[..., Tensor]


def _rule(convolution: Convolution) -> Callable[..., Any]:
    def apply(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        (x, dx), (w, dw), (b, db) = parts(input), parts(weight), parts(bias)
        options = (stride, padding, dilation, groups)
        y = convolution(x, w, b, *options)
        if dx is None and dw is None:
            return y if db is None else dual(y, db.view(-1, *(1,) * (w.dim() - 2)).expand_as(y).contiguous())
        if dx is None:
            return dual(y, convolution(x, dw, db, *options))
        tangent = convolution(dx, w, db, *options)
        if dw is not None:
            tangent += convolution(x, dw, None, *options)
        return dual(y, tangent)

    return apply


for _convolution in (torch.conv1d, torch.conv2d, torch.conv3d):
    rule(_convolution)(_rule(_convolution))
