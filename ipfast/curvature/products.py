"""Products of a batch's curvature with directions in the parameters of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.network import Network, Parameters
from ..engines.running import forward_differentiable
from ..errors import UnavailableError
from ..losses import Loss
from .base import Part

NO_SECOND = re.compile(r"not implemented|does not support|not differentiable|once_differentiable|double backward")
"""In torch's messages of functions that can be differentiated only once."""


def curvature_products(
    network: Network, at: Parameters, inputs: Any, labels: Any, v: Tensor, parts: Sequence[Part], *, ggn: bool
) -> Tensor:
    """Σ_i ∇²ℓ_i v_q, or Σ_i J_iᵀ (∂²ℓ_i/∂z²) J_i v_q with J_i = ∂z_i/∂θ: [Q, P] float64, for v [Q, P].

    By reverse mode over reverse mode. The graph of the gradient is made once for all directions, and each costs a pass through
    it; it knows what a network computes under no_grad, which forward mode over reverse mode takes for a part of the function,
    and measured no slower. Of the Gauss-Newton matrix J v is the derivative of Jᵀu by u.
    """
    leaves = {name: at.get(name, value).detach().requires_grad_() for name, value in network.parameters.items()}
    theta = {**network.every(), **at, **leaves}
    out = torch.zeros(v.shape, dtype=torch.float64, device=network.device)
    try:
        # Fused attention has no second derivative, as it has no forward one.
        with torch.enable_grad(), forward_differentiable(network.structure):
            if ggn:
                _gauss_newton(network, theta, inputs, labels, v, parts, leaves, out)
            else:
                _hessian(network, theta, inputs, labels, v, parts, leaves, out)
    except RuntimeError as error:
        if NO_SECOND.search(str(error)) is None:
            raise
        raise UnavailableError(
            f"{network.where}: expected functions that can be differentiated twice, for products with the Hessian; "
            f"{str(error).splitlines()[0]} Use EKFAC or DataInf, which need first derivatives only."
        ) from error
    return out


def _hessian(
    network: Network,
    theta: Parameters,
    inputs: Any,
    labels: Any,
    v: Tensor,
    parts: Sequence[Part],
    leaves: Parameters,
    out: Tensor,
) -> None:
    total = network.losses(theta, inputs, labels).sum()
    if not total.requires_grad:
        return
    every = list(leaves.values())
    first = torch.autograd.grad(total, every, create_graph=True, allow_unused=True)
    for q, direction in enumerate(v):
        pairs = _bent(first, direction, parts, every)
        if pairs:
            gradients, along = zip(*pairs, strict=True)
            _write(out[q], torch.autograd.grad(gradients, every, along, retain_graph=True, allow_unused=True), parts)


def _gauss_newton(
    network: Network,
    theta: Parameters,
    inputs: Any,
    labels: Any,
    v: Tensor,
    parts: Sequence[Part],
    leaves: Parameters,
    out: Tensor,
) -> None:
    assert isinstance(network.loss, Loss)
    z, y, shares = network.counted_logits(theta, inputs, labels)
    if not z.requires_grad:
        return
    every = list(leaves.values())
    diagonal, rank = network.loss.hessian(z.detach(), y)
    u = torch.zeros_like(z, requires_grad=True)
    first = torch.autograd.grad(z, every, u, create_graph=True, allow_unused=True)
    for q, direction in enumerate(v):
        pairs = _bent(first, direction, parts, every)
        if not pairs:
            continue
        gradients, along = zip(*pairs, strict=True)
        (moved,) = torch.autograd.grad(gradients, u, along, retain_graph=True)
        bent = diagonal * moved
        if rank is not None:
            bent -= rank * (rank * moved).sum(dim=1, keepdim=True)
        if shares is not None:
            bent *= shares[:, None].to(bent)
        _write(out[q], torch.autograd.grad(z, every, bent.to(z), retain_graph=True, allow_unused=True), parts)


def _bent(
    first: Sequence[Tensor | None], direction: Tensor, parts: Sequence[Part], leaves: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(gradient, its direction) of the parameters whose gradient is not constant."""
    return [
        (gradient, direction[part.place].view(leaf.shape).to(leaf))
        for gradient, part, leaf in zip(first, parts, leaves, strict=True)
        if gradient is not None and gradient.requires_grad
    ]


def _write(out: Tensor, found: Sequence[Tensor | None], parts: Sequence[Part]) -> None:
    for part, value in zip(parts, found, strict=True):
        if value is not None:
            out[part.place] = value.reshape(-1).to(out)
