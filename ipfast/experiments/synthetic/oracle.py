"""Eq. (1) with the whole Hessian, by autograd in float64: it shares no code with the methods it judges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import binary_cross_entropy_with_logits

from .models import DECAY, PENALTY
from .objectives import Objective
from .toys import Toy

SHIFT = 1e-3
"""Of an indefinite Hessian: beyond its lowest eigenvalue, in units of the mean absolute one."""


@dataclass(frozen=True)
class Solved:
    """What Eq. (1) needs of a trained model, for any objective.

    Attributes:
        gradients: [N, P] of the samples' losses.
        values, vectors: eigenvalues [P] and eigenvectors [P, P] of H = Σ_i ∇²ℓ_i + penalty, shifted to be positive.
    """

    gradients: Tensor
    values: Tensor
    vectors: Tensor

    def solve(self, query: Tensor) -> Tensor:
        """H⁻¹ query."""
        return self.vectors @ ((self.vectors.T @ query) / self.values)


def solve(toy: Toy, model: nn.Sequential) -> Solved:
    """Gradients and Hessian of the trained model. An indefinite H becomes H + μI, μ = max(0, −λ_min) + 1e-3·mean|λ|."""
    flat, names = _flat(model)

    def losses(theta: Tensor) -> Tensor:
        z = _call(model, names, theta, toy.x)
        return binary_cross_entropy_with_logits(z, toy.y, reduction="none")

    def total(theta: Tensor) -> Tensor:
        penalty = PENALTY * theta[:2].square().sum() if toy.linear else len(toy.y) * DECAY * theta.square().sum()
        return losses(theta).sum() + penalty / 2

    gradients: Tensor = jacrev(losses)(flat)
    values, vectors = torch.linalg.eigh(hessian(total)(flat))
    if not toy.linear:
        values = values + max(0.0, -float(values[0])) + SHIFT * values.abs().mean()
    return Solved(gradients.detach(), values.detach(), vectors.detach())


def query(model: nn.Sequential, objective: Objective) -> Tensor:
    """∇f at the trained model: [P]."""
    flat, names = _flat(model)
    found: Tensor = jacrev(lambda theta: objective.value(_call(model, names, theta, objective.x)))(flat)
    return found.detach()


def _flat(model: nn.Sequential) -> tuple[Tensor, dict[str, torch.Size]]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), shapes


def _call(model: nn.Sequential, names: dict[str, torch.Size], theta: Tensor, x: Tensor) -> Tensor:
    parts = torch.split(theta, [shape.numel() for shape in names.values()])
    parameters = {name: part.view(shape) for (name, shape), part in zip(names.items(), parts, strict=True)}
    z: Tensor = functional_call(model, parameters, (x,))
    return z.squeeze(1)
