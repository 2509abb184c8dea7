"""Normalisations y = γ∘x̂ + β: the gradients are Σ_t x̂_it∘b_it and Σ_t b_it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import RULES, Kept, VectorRule, wide


class NormalizationRule(VectorRule):
    def gradients(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        b = wide(b)
        factors = {"weight": self._normal(module, kept) * b if "weight" in names else None, "bias": b}
        return {name: self._over_positions(module, factor) for name in names if (factor := factors[name]) is not None}

    @abstractmethod
    def _normal(self, module: Any, kept: Kept) -> Tensor:
        """x̂, like a."""

    @abstractmethod
    def _over_positions(self, module: Any, value: Tensor) -> Tensor:
        """The sum over all that share a parameter: [B, *shape of the parameter]."""


class _OverLastDimensions(NormalizationRule):
    def by_position(self, module: Any) -> bool:
        return len(module.normalized_shape) == 1

    def _over_positions(self, module: Any, value: Tensor) -> Tensor:
        shape = module.normalized_shape
        return value.reshape(len(value), -1, *shape).sum(dim=1)


class LayerNormRule(_OverLastDimensions):
    def _normal(self, module: Any, kept: Kept) -> Tensor:
        return F.layer_norm(wide(kept[0]), module.normalized_shape, eps=module.eps)


class RMSNormRule(_OverLastDimensions):
    def _normal(self, module: Any, kept: Kept) -> Tensor:
        # eps=None is that of the input's dtype, which may be narrower than the dtype of this sum.
        eps = torch.finfo(kept[0].dtype).eps if module.eps is None else module.eps
        return F.rms_norm(wide(kept[0]), module.normalized_shape, eps=eps)


class _OverChannels(NormalizationRule):
    def _over_positions(self, module: Any, value: Tensor) -> Tensor:
        return value.flatten(2).sum(dim=2) if value.dim() > 2 else value


class GroupNormRule(_OverChannels):
    def _normal(self, module: Any, kept: Kept) -> Tensor:
        return F.group_norm(wide(kept[0]), module.num_groups, eps=module.eps)


class BatchNormRule(_OverChannels):
    """In eval x̂ = (a − μ)/√(σ² + eps) with the running statistics, which are kept: those of a checkpoint are its own."""

    def takes(self, module: Any) -> bool:
        return module.running_mean is not None and module.running_var is not None

    def capture(self, module: Any, a: Tensor) -> Kept:
        return a, module.running_mean, module.running_var

    def _normal(self, module: Any, kept: Kept) -> Tensor:
        a, mean, variance = kept
        return F.batch_norm(wide(a), mean.to(wide(a)), variance.to(wide(a)), eps=module.eps)


RULES |= {nn.LayerNorm: LayerNormRule(), nn.RMSNorm: RMSNormRule(), nn.GroupNorm: GroupNormRule()}
RULES |= dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), BatchNormRule())
