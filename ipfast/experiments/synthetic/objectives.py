"""What should become smaller: f(logits of the validation samples), lower is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .toys import Toy

OBJECTIVES = ("utility", "fairness", "robustness")
GAMMA = 1.3
"""How far an attack goes: 1 reaches the boundary, more goes beyond it."""


@dataclass(frozen=True)
class Objective:
    """One of the three, on the validation data of a toy.

    Attributes:
        x, y: what the model is shown: the validation data, or attacked inputs with their true labels.
        groups: of fairness, None otherwise.
    """

    name: str
    x: Tensor
    y: Tensor
    groups: Tensor | None = None

    def value(self, z: Tensor) -> Tensor:
        """f of logits [..., M]: the mean loss, or the gap between the groups' mean probabilities."""
        if self.groups is None:
            return binary_cross_entropy_with_logits(z, self.y.expand_as(z), reduction="none").mean(dim=-1)
        p, first = z.sigmoid(), self.groups == 1
        return (p[..., first].mean(dim=-1) - p[..., ~first].mean(dim=-1)).abs()


def make_objective(name: str, toy: Toy, model: nn.Sequential) -> Objective:
    """The mean loss, the demographic parity gap (Eq. 3), or the mean loss under attack (Eq. 4)."""
    if name == "fairness":
        return Objective(name, toy.x_val, toy.y_val, toy.groups)
    return Objective(name, attacked(model, toy.x_val) if name == "robustness" else toy.x_val, toy.y_val)


def attacked(model: nn.Sequential, x: Tensor) -> Tensor:
    """x̌ = x − γ z(x) ∇z / ‖∇z‖²: the nearest point beyond a linear model's boundary, its linear estimate of others."""
    inputs = x.clone().requires_grad_()
    with torch.enable_grad():
        z: Tensor = model(inputs)
        (slope,) = torch.autograd.grad(z.sum(), inputs)
    moved: Tensor = x - GAMMA * z * slope / slope.square().sum(dim=1, keepdim=True)
    return moved.detach()
