"""Dense linear algebra of small networks by autograd in float64: Hessian, Gauss-Newton matrix, per-sample gradients."""

from __future__ import annotations

import copy
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
        self.model, self.losses = copy.deepcopy(model).requires_grad_(True), losses  # of frozen models too
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
        """Of the mean loss [P, P]. Not torch.func.hessian, which gets the row of a LayerNorm's weight wrong (finite differences
        tell)."""
        return torch.autograd.functional.hessian(lambda theta: self.losses(self.logits(theta, x), y).mean(), self.theta)

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

    def layer_positions(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [N, T, d_in] and cotangents [N, T, d_out] of a layer, of all its calls; patches are taken by unfold."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(arguments[0].detach())
            outputs.append(output)

        handle = module.register_forward_hook(keep)
        loss = self.losses(self.model(x), y).sum()
        handle.remove()
        cotangents = torch.autograd.grad(loss, outputs)
        if isinstance(module, nn.Conv2d):
            options = {"padding": module.padding, "stride": module.stride}
            patches = [F.unfold(a, module.kernel_size, **options).transpose(1, 2) for a in inputs]
            return torch.cat(patches, dim=1), torch.cat([b.flatten(2).transpose(1, 2) for b in cotangents], dim=1)
        every = [a.reshape(len(x), -1, a.shape[-1]) for a in inputs], [b.reshape(len(x), -1, b.shape[-1]) for b in cotangents]
        return torch.cat(every[0], dim=1), torch.cat(every[1], dim=1)

    def matrices(self) -> list[tuple[nn.Module, Tensor, int, int]]:
        """(layer, places in a vector [d_out, d_in (+ 1)], group, groups) of linear layers and convolutions."""
        found, parts = [], self.parts()
        order = torch.arange(len(self.theta))
        for name, module in self.model.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            prefix = f"{name}." if name else ""
            groups = getattr(module, "groups", 1)
            weight = order[parts[f"{prefix}weight"]].view(groups, module.weight.shape[0] // groups, -1)
            if module.bias is not None:
                bias = order[parts[f"{prefix}bias"]].view(groups, -1, 1)
                weight = torch.cat([weight, bias], dim=2)
            found += [(module, places, group, groups) for group, places in enumerate(weight)]
        return found

    def empirical_ekfac(self, x: Tensor, y: Tensor, damping: float | None = None) -> Tensor:
        """The damped EKFAC matrix [P, P] at the labels y, whose blocks are (Q_S ⊗ Q_A) diag(Λ + λ) (Q_S ⊗ Q_A)ᵀ; diagonal where
        parameters belong to no matrix."""
        gradients = self.gradients(x, y)
        second = gradients.square().mean(dim=0)
        whole = torch.zeros(len(self.theta), len(self.theta), dtype=torch.float64)
        loose = torch.ones(len(self.theta), dtype=torch.bool)
        for module, places, group, groups in self.matrices():
            a, b = self.layer_positions(module, x, y)
            a, b = a.chunk(groups, dim=2)[group], b.chunk(groups, dim=2)[group]
            if places.shape[1] > a.shape[2]:
                a = torch.cat([a, torch.ones_like(a[:, :, :1])], dim=2)
            qa = torch.linalg.eigh(torch.einsum("nti,ntj->ij", a, a)).eigenvectors
            qs = torch.linalg.eigh(torch.einsum("nti,ntj->ij", b, b)).eigenvectors
            flat = places.flatten()
            basis = torch.kron(qs, qa)
            moments = (gradients[:, flat] @ basis).square().mean(dim=0)
            added = 0.1 * moments.mean() if damping is None else damping
            whole[flat[:, None], flat] = basis @ torch.diag(moments + added) @ basis.T
            loose[flat] = False
        for place in self.parts().values():
            if bool(loose[place].all()):
                added = 0.1 * second[place].mean() if damping is None else damping
                whole.diagonal()[place] = second[place] + added
        return whole

    def datainf(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(1/N) Σ_i (g_il g_ilᵀ + λ_l)⁻¹ v_l of each parameter l, by solving."""
        gradients, out = self.gradients(x, y), torch.zeros_like(v)
        for place in self.parts().values():
            g = gradients[:, place]
            added = 0.1 * g.square().mean() * torch.eye(g.shape[1], dtype=torch.float64)
            out[place] = torch.stack([torch.linalg.solve(torch.outer(row, row) + added, v[place]) for row in g]).mean(dim=0)
        return out
