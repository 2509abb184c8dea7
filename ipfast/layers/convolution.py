"""Convolutions: linear layers of patches. One query is used as the kernel, which forms no patches; many share the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.layer_dot import select_dot_route
from .base import RULES, Kept, MatrixRule, wide

PATCH_ELEMENTS = 2**23
"""Elements of the patches that are held at once: 32 MiB of float32."""
_FUNCTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class ConvolutionRule(MatrixRule):
    """⟨V, g_i⟩ = ⟨conv(a_i; V), b_i⟩, and g_i = Σ_t b_it a_itᵀ with the patches a_it, [C_in·k…]."""

    def positions(self, module: Any, kept: Kept, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        return self._patches(module, kept[0], b)

    def groups(self, module: Any) -> int:
        groups: int = module.groups
        return groups

    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        count = len(next(iter(queries.values())))
        if "weight" not in queries:
            return wide(b).flatten(2).sum(dim=2) @ queries["bias"].to(wide(b)).T
        if select_dot_route(tokens=b[0, 0].numel(), queries=count).name == "contract":
            return self._as_kernel(module, kept[0], b, queries)
        dtype = wide(b).dtype
        out = torch.empty(len(b), count, dtype=dtype, device=b.device)
        weight, bias = queries["weight"].flatten(2), queries.get("bias")
        for rows, patches, cotangents in self._patches(module, kept[0], b):
            out[rows] = ops.layer_dot(patches, cotangents, weight, bias, groups=module.groups)
        return out

    def _as_kernel(self, module: Any, a: Tensor, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        x, padding = (a, module.padding) if module.padding_mode == "zeros" else (_padded(module, a), 0)
        columns = []
        for index, kernel in enumerate(queries["weight"]):
            bias = queries["bias"][index].to(x) if "bias" in queries else None
            u = _FUNCTIONS[type(module)](x, kernel.to(x), bias, module.stride, padding, module.dilation, module.groups)
            columns.append(wide(u).mul_(b).flatten(1).sum(dim=1))
        return torch.stack(columns, dim=1)

    def norm_sq(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> Tensor:
        weight, bias = "weight" in names, "bias" in names
        out = torch.empty(len(b), dtype=wide(b).dtype, device=b.device)
        for rows, patches, cotangents in self._patches(module, kept[0], b):
            out[rows] = ops.layer_norm_sq(patches, cotangents, groups=module.groups, include_weight=weight, include_bias=bias)
        return out

    def _patches(self, module: Any, a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(samples, patches [n, T, C_in·k…], cotangents [n, T, C_out]) of a few samples at once."""
        places = b.shape[2:]
        width, positions = module.weight[0].numel() * module.groups, places.numel()
        step = max(1, PATCH_ELEMENTS // max(1, width * positions))
        # One buffer for all blocks: fresh memory for each costs more in page faults than the copy itself.
        buffer = a.new_empty(min(step, len(b)), width, positions)
        for first in range(0, len(b), step):
            rows = slice(first, min(first + step, len(b)))
            x = _padded(module, a[rows]).contiguous()
            inner, outer = x.stride()[2:], list(zip(x.stride()[2:], module.stride, strict=True))
            strides = (
                *x.stride()[:2],
                *(s * d for s, d in zip(inner, module.dilation, strict=True)),
                *(s * t for s, t in outer),
            )
            view = x.as_strided((*x.shape[:2], *module.kernel_size, *places), strides, x.storage_offset())
            patches = buffer[: len(x)]
            patches.view(view.shape).copy_(view)
            yield rows, patches.transpose(1, 2), b[rows].flatten(2).transpose(1, 2)


def _padded(module: Any, a: Tensor) -> Tensor:
    sides = module._reversed_padding_repeated_twice
    if not any(sides):
        return a
    return F.pad(a, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


for _kind in _FUNCTIONS:
    RULES[_kind] = ConvolutionRule()
