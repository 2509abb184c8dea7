"""Scores as they are defined, by plain autograd in float64, and a small problem to compute them for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

N, M, D, C = 12, 6, 5, 3


def numbers(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count, seed=0) -> Tensor:
    return torch.randint(0, C, (count,), generator=torch.Generator().manual_seed(seed))


X, Y, X_VAL, Y_VAL = numbers(N, D), labels(N), numbers(M, D, seed=1), labels(M, seed=1)


def gradients(model, x, y, names=None, loss=F.cross_entropy, owner=None) -> Tensor:
    """[B, P] by plain autograd, one sample at a time; of the parameters of `owner` where the model is a function."""
    named = {name: value for name, value in (owner or model).named_parameters() if names is None or name in names}
    rows = []
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(value, list(named.values()), materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows).detach()


def by_definition(model, x, y, x_val, y_val, names=None, loss=F.cross_entropy) -> Tensor:
    return gradients(model, x, y, names, loss) @ gradients(model, x_val, y_val, names, loss).mean(dim=0)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()
