"""Logistic regression and a small network, trained alone or in many copies at once, each with its weights of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm.auto import tqdm

from .toys import MOONS

HIDDEN = 32
PENALTY = 1.0
"""λ of the logistic regression, Σ_i ℓ_i + (λ/2)‖w‖² with a free intercept: the default of scikit-learn."""
DECAY = 1e-4
"""Of the network: Adam adds it times the parameters to the gradient of the mean loss."""
RATE = 1e-3
STEPS = 5000
NEWTON = 50


def make_model(name: str, seed: int) -> nn.Sequential:
    """The model of a toy in float64, before training: it gives one logit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name != MOONS:
            return nn.Sequential(nn.Linear(2, 1)).double()
        layers = (nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        return nn.Sequential(*layers).double()


def copies(model: nn.Sequential, count: int) -> list[Tensor]:
    """The parameters of `count` copies: a weight [K, out, in] and a bias [K, 1, out] a layer."""
    found = []
    for parameter in model.parameters():
        one = parameter.detach() if parameter.dim() == 2 else parameter.detach()[None]
        found.append(one.expand(count, *one.shape).clone())
    return found


def logits(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Logits [K, N] of K copies with ReLU between their layers."""
    a = x.expand(len(parameters[0]), *x.shape)
    for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        if layer:
            a = a.relu()
        a = torch.baddbmm(bias, a, weight.mT)
    return a.squeeze(2)


def train(
    name: str, parameters: list[Tensor], x: Tensor, y: Tensor, weights: Tensor, *, progress: bool = False
) -> list[Tensor]:
    """Parameters of the copies after training, copy k with weights[k] [N] on the samples.

    Args:
        parameters: before it; the optimum of a logistic regression does not depend on them.
    """
    if name == MOONS:
        return _adam(parameters, x, y, weights, progress)
    return _newton(x, y, weights)


def _newton(x: Tensor, y: Tensor, weights: Tensor) -> list[Tensor]:
    """The optimum of Σ_i w_i ℓ_i + (λ/2)‖w‖² of each copy."""
    ones = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # [N, 3]
    penalty = PENALTY * torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=x.dtype))
    theta = torch.zeros(len(weights), 3, dtype=x.dtype)
    for _ in range(NEWTON):
        p = (theta @ ones.T).sigmoid()  # [K, N]
        gradient = (weights * (p - y)) @ ones + theta @ penalty
        hessian = torch.einsum("kn,ni,nj->kij", weights * p * (1 - p), ones, ones) + penalty
        theta = theta - torch.linalg.solve(hessian, gradient)
    assert float(gradient.abs().max()) < 1e-6, "Newton's method converges on a regularised logistic regression"
    return [theta[:, None, :2], theta[:, None, 2:]]


def _adam(parameters: list[Tensor], x: Tensor, y: Tensor, weights: Tensor, progress: bool) -> list[Tensor]:
    """Full-batch Adam on the weighted mean loss of each copy."""
    found = [parameter.clone().requires_grad_() for parameter in parameters]
    optimizer = torch.optim.Adam(found, lr=RATE, weight_decay=DECAY)
    share = weights / weights.sum(dim=1, keepdim=True)
    targets = y.expand_as(weights)
    for _ in tqdm(range(STEPS), desc=f"training {len(weights)} copies", leave=False, delay=2, disable=not progress):
        losses = binary_cross_entropy_with_logits(logits(found, x), targets, reduction="none")
        optimizer.zero_grad()
        (losses * share).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [parameter.detach() for parameter in found]


def load(model: nn.Sequential, parameters: Sequence[Tensor], copy: int) -> None:
    """Put the parameters of one copy into the model."""
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), parameters, strict=True):
            parameter.copy_(values[copy].reshape(parameter.shape))
