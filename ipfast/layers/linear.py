"""Linear: g_i = Σ_t b_it a_itᵀ, of the bias Σ_t b_it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import ops
from .base import RULES, Kept, LayerRule, wide


class LinearRule(LayerRule):
    def by_position(self, module: nn.Module) -> bool:
        return True

    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        a, b = tokens(kept[0]), tokens(b)
        if "weight" not in queries:
            return wide(b).sum(dim=1) @ queries["bias"].to(wide(b)).T
        return ops.layer_dot(a, b, queries["weight"], queries.get("bias"))

    def norm_sq(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> Tensor:
        return ops.layer_norm_sq(tokens(kept[0]), tokens(b), include_weight="weight" in names, include_bias="bias" in names)


def tokens(value: Tensor) -> Tensor:
    """[B, ..., d] as [B, T, d]"""
    return value[:, None] if value.dim() == 2 else value.flatten(1, -2)


RULES[nn.Linear] = LinearRule()
