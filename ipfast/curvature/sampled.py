"""Cotangents of the logits as labels of the model's own would give them: the true Fisher matrix by sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engines.network import Network, Parameters
from ..engines.tokens import counted_tokens, is_counted
from ..errors import InputError
from ..losses import Loss


class GivenCotangent(Loss):
    """ℓ_i = ⟨z_i, c_i⟩ with the label c_i, whose gradient in the parameters is that of any loss with ∂ℓ_i/∂z = c_i."""

    form = "given_cotangent"

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        return labels

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        return (z * labels.to(z)).sum(dim=1)

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        return labels.to(z)

    def hessian(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(z), None


def sampled_cotangents(network: Network, at: Parameters, inputs: Any, labels: Any, generator: torch.Generator) -> Tensor:
    """Random c [B, C], or [B, T, C] with NaN at tokens that do not count, with E c cᵀ = ∂²ℓ/∂z² for every sample and token.

    Of the cross-entropy c = √(Σt)·(p − e_y) with y drawn from p; of losses whose ∂²ℓ/∂z² is diagonal, c = √D∘(±1). The
    gradients g_i that they make have E g_i g_iᵀ = the Gauss-Newton matrix of ℓ_i. A sample's numbers are drawn one after
    another, so they do not depend on the batches.
    """
    loss = network.loss
    if not isinstance(loss, Loss):
        raise InputError(
            f"{network.where}: expected a loss of ipfast.losses for EKFAC at labels of the model's own; got a callable, which "
            "does not tell what they are. Use EKFAC(empirical=True)."
        )
    with torch.no_grad():
        z = network.logits({**network.every(), **at}, inputs)
        counted: Tensor | None = None
        flat, y, shares = z, labels, None
        if z.dim() > 2:
            counted = is_counted(labels)
            flat, about = counted_tokens(z, labels, network.tokens)
            y, shares = about.labels, about.shares()
        drawn = _drawn(network.where, loss, flat, y, generator)
        if shares is not None:
            drawn *= shares.sqrt()[:, None].to(drawn)
        if counted is None:
            return drawn
        every = torch.full(z.shape, torch.nan, dtype=drawn.dtype, device=z.device)
        every[counted] = drawn
        return every


def _drawn(where: str, loss: Loss, z: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    diagonal, rank = loss.hessian(z, y)
    draws = 1 if rank is not None else z.shape[1]
    u = torch.rand(len(z), draws, dtype=torch.float64, generator=generator).to(z.device)
    if rank is None:
        return diagonal.sqrt() * torch.where(u < 0.5, -1, 1).to(diagonal)
    if loss.form != "cross_entropy":
        raise InputError(
            f"{where}: expected cross_entropy, bce_with_logits or mse for EKFAC at labels of the model's own; got "
            f"{loss.form!r}. Use EKFAC(empirical=True)."
        )
    p = z.softmax(dim=1)
    chosen = (p.double().cumsum(dim=1) < u).sum(dim=1, keepdim=True).clamp(max=z.shape[1] - 1)
    p = p.scatter_add(1, chosen, torch.full_like(p[:, :1], -1.0))
    return diagonal.sum(dim=1, keepdim=True).sqrt() * p
