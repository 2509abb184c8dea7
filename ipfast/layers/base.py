"""What a layer type tells the ghost engine: how its part of a gradient follows from its input and its output's cotangent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Kept = tuple[Tensor, ...]
"""What a layer needs of its forward pass; the first tensor is its input a."""


class LayerRule(ABC):
    """The rules of one type of layer. b is the cotangent of the SUM of the losses at its output; B samples come first in both.

    Own names are those of the layer itself, "weight" and "bias".
    """

    def takes(self, module: nn.Module) -> bool:
        """Whether the rules hold for this layer with its options."""
        return True

    def by_position(self, module: nn.Module) -> bool:
        """Whether the layer does the same to each position t of an input [B, T, …], so that one may be taken as a sample."""
        return False

    def capture(self, module: nn.Module, a: Tensor) -> Kept:
        """What must be kept of the forward pass."""
        return (a,)

    @abstractmethod
    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        """Σ ⟨V, g_i⟩ [B, Q] over the parameters of `queries`: own name -> V [Q, *shape]."""

    @abstractmethod
    def norm_sq(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> Tensor:
        """Σ ‖g_i‖² [B] over the parameters called `names`."""


class VectorRule(LayerRule):
    """A layer whose parameters are so small that their gradients are formed."""

    @abstractmethod
    def gradients(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """g_i [B, *shape] by own name, in float64 or float32."""

    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        found = self.gradients(module, kept, b, list(queries))
        return sum_of([g.flatten(1) @ queries[name].to(g).flatten(1).T for name, g in found.items()])

    def norm_sq(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> Tensor:
        return sum_of([g.flatten(1).square().sum(dim=1) for g in self.gradients(module, kept, b, names).values()])


RULES: dict[type[nn.Module], LayerRule] = {}


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def wide(value: Tensor) -> Tensor:
    """In the dtype of the reductions: float64 stays, narrower ones become float32."""
    return value if value.dtype == torch.float64 else value.float()


def layer_rule(module: nn.Module) -> LayerRule | None:
    """The rules of a layer, by its exact type: a subclass may do something else."""
    kind = type(module)
    rule = RULES.get(kind)
    if rule is None and (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D"):
        from .hf_conv1d import HuggingFaceConv1D

        rule = HuggingFaceConv1D()
    return rule if rule is not None and rule.takes(module) else None
