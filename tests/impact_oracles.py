"""What impacts are, written out sample by sample, and the scores that autograd gives for them in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from oracles import sample_loss
from torch import Tensor, nn

Function = Callable[[nn.Module], Tensor]
"""f of a model, differentiable in its parameters."""


def scores(model: nn.Module, f: Function, train: tuple[Tensor, Tensor], loss: str = "cross_entropy", only: str = "") -> Tensor:
    """⟨∇f, ∇ℓ_i⟩ [N] over the parameters whose name starts with `only`."""
    parameters = [p for name, p in model.named_parameters() if name.startswith(only)]
    query = torch.autograd.grad(f(model), parameters, materialize_grads=True)
    found = []
    for x, y in zip(*train, strict=True):
        y = y if loss == "cross_entropy" else y.double()
        each = torch.autograd.grad(sample_loss(model(x[None])[0], y, loss), parameters, materialize_grads=True)
        found.append(sum((q * g).sum() for q, g in zip(query, each, strict=True)))
    return torch.stack(found)


def chance(z: Tensor, positive: int | None = None) -> Tensor:
    """Probability of the positive class of each row; a single output tells classes 0 and 1 apart."""
    if z.shape[1] == 1:
        return 1 / (1 + torch.exp(z[:, 0] if positive == 0 else -z[:, 0]))
    return torch.exp(z - torch.logsumexp(z, dim=1, keepdim=True))[:, 1 if positive is None else positive]


def parity_gap(z: Tensor, groups: list[int], positive: int | None = None) -> Tensor:
    """Mean probability of group 1 − that of group 0."""
    p = chance(z, positive)
    return sum(v for v, g in zip(p, groups, strict=True) if g == 1) / groups.count(1) - sum(
        v for v, g in zip(p, groups, strict=True) if g == 0
    ) / groups.count(0)


def opportunity_gap(z: Tensor, y: Tensor, groups: list[int], of: str, positive: int = 1) -> Tensor:
    """Among the positives: mean loss of group 0 − that of group 1, or mean probability of group 1 − that of group 0."""
    hard = [int(label) == positive for label in y.reshape(len(y), -1)[:, 0]]
    p = chance(z, positive)
    means = []
    for group in (0, 1):
        rows = [v for v in range(len(y)) if hard[v] and groups[v] == group]
        if of == "probability":
            means.append(sum(p[v] for v in rows) / len(rows))
        else:
            means.append(sum(-torch.log(p[v]) for v in rows) / len(rows))
    return means[0] - means[1] if of == "loss" else means[1] - means[0]


def attack(h: Tensor, weight: Tensor, bias: Tensor, gamma: float) -> Tensor:
    """Features beyond the nearest boundary, row by row in NumPy."""
    h, w, b = (value.detach().numpy().astype(np.float64) for value in (h, weight, bias))
    moved = []
    for row in h:
        z = w @ row + b
        if len(w) == 1:
            moved.append(row - gamma * z[0] / (w[0] @ w[0]) * w[0])
            continue
        top = int(np.argmax(z))
        steps = []
        for other in range(len(w)):
            if other != top:
                normal = w[top] - w[other]
                steps.append((z[top] - z[other]) / (normal @ normal) * normal)
        nearest = min(steps, key=np.linalg.norm)
        moved.append(row - gamma * nearest)
    return torch.from_numpy(np.stack(moved))


def pair_gap(z: Tensor, other: Tensor, kind: str) -> Tensor:
    """Mean distance of pairs."""
    if kind == "logit_sq":
        return ((z - other) ** 2).sum() / len(z)
    if z.shape[1] == 1:
        z, other = (torch.cat([-value / 2, value / 2], dim=1) for value in (z, other))
    p, q = (torch.exp(value) / torch.exp(value).sum(dim=1, keepdim=True) for value in (z, other))
    if kind == "squared":
        return ((p - q) ** 2).sum() / len(z)
    if kind == "abs":
        return (p[:, 1] - q[:, 1]).abs().mean() if p.shape[1] == 2 else (p - q).abs().sum() / (2 * len(z))
    return (F.kl_div(p.log(), q, reduction="sum") + F.kl_div(q.log(), p, reduction="sum")) / len(z)
