"""The gradients and the Hessian of a small head, written out by autograd: the oracle of the curvatures."""

from __future__ import annotations

import torch
from torch import Tensor

from ipfast.losses import Loss


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


class Dense:
    """Gradients [N, P] and the Hessian [P, P] of a head, by autograd, parameters in the order (W, b)."""

    def __init__(self, problem, loss: Loss, bias: bool = True) -> None:
        self.head, self.loss = problem.head, loss
        self.names = ["weight", "bias"] if bias else ["weight"]
        self.x, self.y = problem.x, problem.y
        self.g = self.gradients(problem.x, problem.y)
        self.v = self.gradients(problem.x_val, problem.y_val).mean(dim=0)
        theta = torch.cat([getattr(self.head, name).detach().flatten() for name in self.names])
        self.hessian = torch.autograd.functional.hessian(self.mean_loss, theta)
        self.size = len(theta)
        self.parts = [slice(0, self.head.weight.numel())] + [slice(self.head.weight.numel(), self.size)] * bias

    def _logits(self, theta: Tensor, x: Tensor) -> Tensor:
        c, d = self.head.weight.shape
        bias = theta[c * d :] if len(self.names) > 1 else self.head.bias.detach()
        return x @ theta[: c * d].view(c, d).T + bias

    def mean_loss(self, theta: Tensor) -> Tensor:
        return self.loss.value(self._logits(theta, self.x), self.y).mean()

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        theta = torch.cat([getattr(self.head, name).detach().flatten() for name in self.names])
        rows = []
        for i in range(len(x)):
            leaf = theta.clone().requires_grad_()
            value = self.loss.value(self._logits(leaf, x[i : i + 1]), y[i : i + 1]).sum()
            rows.append(torch.autograd.grad(value, leaf)[0])
        return torch.stack(rows)

    def eye(self, factor: float) -> Tensor:
        return factor * eye(self.size)
