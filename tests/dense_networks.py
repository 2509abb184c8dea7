"""Dense linear algebra of small networks by autograd in float64: Hessian, Gauss-Newton matrix, per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class MLP(nn.Module):
    """Two layers and a parameter that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.scale)


class ConvNet(nn.Module):
    """A strided convolution, one with groups, a normalisation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(x)))
        return self.head(torch.tanh(self.grouped(x)).mean((2, 3)))


class Tokens(nn.Module):
    """An embedding, a layer that is called twice on tokens, a normalisation and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.twice(self.embed(tokens)))
        return self.head(self.norm(torch.sin(self.twice(x))).mean(1))


def small(kind: str, samples: int = 24, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """(model, inputs, labels), float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = {"mlp": MLP, "conv": ConvNet, "tokens": Tokens, "linear": lambda: nn.Linear(4, 3)}[kind]()
        shapes = {"mlp": (4,), "conv": (2, 6, 5), "linear": (4,)}
        x = torch.randint(0, 7, (samples, 5)) if kind == "tokens" else torch.randn(samples, *shapes[kind], dtype=torch.float64)
        return model.double().eval(), x, torch.randint(0, 3, (samples,))


def sample_losses(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


class Dense:
    """Everything about a network as matrices. Vectors are its parameters one after another, in the model's order."""

    def __init__(self, model: nn.Module, losses: Callable[[Tensor, Tensor], Tensor] = sample_losses) -> None:
        self.model, self.losses = model, losses
        self.named = {name: value.detach() for name, value in model.named_parameters()}
        self.theta = torch.cat([value.flatten() for value in self.named.values()])

    def parts(self) -> dict[str, slice]:
        found, start = {}, 0
        for name, value in self.named.items():
            found[name] = slice(start, start + value.numel())
            start += value.numel()
        return found

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        pieces = torch.split(theta, [value.numel() for value in self.named.values()])
        values = {name: piece.view(value.shape) for (name, value), piece in zip(self.named.items(), pieces, strict=True)}
        return functional_call(self.model, values, (x,))

    def hessian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the mean loss [P, P]."""
        return torch.func.hessian(lambda theta: self.losses(self.logits(theta, x), y).mean())(self.theta)

    def gauss_newton(self, x: Tensor, y: Tensor) -> Tensor:
        """(1/N) Σ J_iᵀ (∂²ℓ_i/∂z²) J_i [P, P]."""
        total = torch.zeros(len(self.theta), len(self.theta), dtype=torch.float64)
        for i in range(len(y)):
            some = slice(i, i + 1)
            jacobian = torch.autograd.functional.jacobian(lambda theta, some=some: self.logits(theta, x[some])[0], self.theta)
            z = self.logits(self.theta, x[some])[0]
            bent = torch.autograd.functional.hessian(lambda z, some=some: self.losses(z[None], y[some]).sum(), z)
            total += jacobian.T @ bent @ jacobian
        return total / len(y)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Of every sample [N, P]."""
        rows = []
        for i in range(len(y)):
            theta = self.theta.clone().requires_grad_()
            loss = self.losses(self.logits(theta, x[i : i + 1]), y[i : i + 1]).sum()
            rows.append(torch.autograd.grad(loss, theta)[0])
        return torch.stack(rows)
