"""Truth in float64 that shares no code with ipfast: one autograd gradient a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_loss(z: Tensor, y: Tensor, loss: str) -> Tensor:
    """ℓ of one sample from its logits [C]; no batch reduction."""
    if loss == "cross_entropy":
        return F.cross_entropy(z, y)
    if loss == "bce_with_logits":
        return F.binary_cross_entropy_with_logits(z, y, reduction="sum")
    return F.mse_loss(z, y)


def per_sample_gradients(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, loss: str) -> Tensor:
    """∇_(W,b) ℓ_i of every row, flattened: [N, C·d (+ C)], float64."""
    h, w = h.double(), w.double().requires_grad_()
    parameters = [w] if b is None else [w, b := b.double().requires_grad_()]
    if loss != "cross_entropy":
        y = y.double().reshape(h.shape[0], -1)
    rows = []
    for i in range(h.shape[0]):
        value = sample_loss(F.linear(h[i], w, b), y[i], loss)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return torch.stack(rows)


def head_dot(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, g: Tensor, gb: Tensor | None, loss: str) -> Tensor:
    """⟨query, ∇ℓ_i⟩ [N]."""
    query = g.double().flatten()
    if b is not None:
        query = torch.cat([query, (torch.zeros(w.shape[0]) if gb is None else gb).double()])
    return per_sample_gradients(h, y, w, b, loss) @ query


def head_norm(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, loss: str) -> Tensor:
    """‖∇ℓ_i‖² [N]."""
    return per_sample_gradients(h, y, w, b, loss).square().sum(dim=1)


def query_gradient(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, loss: str) -> Tensor:
    """(1/M) Σ_v ∇ℓ_v, flattened."""
    return per_sample_gradients(h, y, w, b, loss).mean(dim=0)


def sequence_gradients(
    h: Tensor, y: Tensor, counted: Tensor, w: Tensor, b: Tensor | None, loss: str, tokens: str = "mean"
) -> Tensor:
    """∇_(W,b) of the sum or the mean of the losses of the counted tokens of every sequence: [N, C·d (+ C)], float64."""
    rows = []
    size = w.numel() + (0 if b is None else b.numel())
    for i in range(h.shape[0]):
        count = int(counted[i].sum())
        if not count:
            rows.append(torch.zeros(size, dtype=torch.float64))
            continue
        whole = per_sample_gradients(h[i, counted[i]], y[i, counted[i]], w, b, loss).sum(dim=0)
        rows.append(whole / count if tokens == "mean" else whole)
    return torch.stack(rows)


def sequence_losses(
    h: Tensor, y: Tensor, counted: Tensor, w: Tensor, b: Tensor | None, loss: str, tokens: str = "mean"
) -> Tensor:
    """The sum or the mean of the losses of the counted tokens of every sequence: [N], float64; 0 where none counts."""
    z = F.linear(h.double(), w.double(), None if b is None else b.double())
    each = [
        [sample_loss(z[i, t], y[i, t], loss) for t in range(h.shape[1]) if counted[i, t]] or [z.new_zeros(())]
        for i in range(h.shape[0])
    ]
    return torch.stack([torch.stack(row).mean() if tokens == "mean" else torch.stack(row).sum() for row in each])


def _bounds(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Σ_j |w_cj||h_ij| + |b_c|: what is added up in a logit. [N, C]"""
    return h.double().abs() @ w.double().abs().T + (0 if b is None else b.double().abs())


def head_dot_magnitude(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, g: Tensor, gb: Tensor | None, loss: str) -> Tensor:
    """Σ|x||y| behind a score: the products in u, and the residual times u with the logits' own rounding. [N]"""
    z = F.linear(h.double(), w.double(), None if b is None else b.double())
    u = F.linear(h.double(), g.double(), None if gb is None else gb.double())
    mz, mu = _bounds(h, w, b), _bounds(h, g, gb)
    if loss == "cross_entropy":
        p = z.softmax(dim=1)
        rest = p.scatter(1, y[:, None], 0)
        centred = (u - u.gather(1, y[:, None])).abs()
        spread = mu + mu.gather(1, y[:, None])
        return (rest * (spread + centred * (1 + 2 * mz.amax(dim=1, keepdim=True)))).sum(dim=1)
    y = y.double().reshape(z.shape)
    r = z.sigmoid() - y if loss == "bce_with_logits" else 2 / z.shape[1] * (z - y)
    slope = z.sigmoid() * (1 - z.sigmoid()) if loss == "bce_with_logits" else torch.full_like(z, 2 / z.shape[1])
    return (r.abs() * mu + slope * (mz + y.abs()) * u.abs() + r.abs() * u.abs()).sum(dim=1)


def head_norm_magnitude(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, loss: str) -> Tensor:
    """Σ|x||y| behind a squared norm. [N]"""
    z = F.linear(h.double(), w.double(), None if b is None else b.double())
    mz = _bounds(h, w, b)
    size = h.double().square().sum(dim=1) + (b is not None)
    if loss == "cross_entropy":
        rest = z.softmax(dim=1).scatter(1, y[:, None], 0)
        residual = rest.square().sum(dim=1) + rest.sum(dim=1).square()
        return size * residual * (1 + 4 * mz.amax(dim=1))
    y = y.double().reshape(z.shape)
    r = z.sigmoid() - y if loss == "bce_with_logits" else 2 / z.shape[1] * (z - y)
    slope = z.sigmoid() * (1 - z.sigmoid()) if loss == "bce_with_logits" else torch.full_like(z, 2 / z.shape[1])
    return size * (r.square() + 2 * r.abs() * slope * (mz + y.abs())).sum(dim=1)


def plain_head_dot(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, g: Tensor, gb: Tensor | None, loss: str) -> Tensor:
    """⟨query, ∇ℓ_i⟩ [N] in the dtype of the computation, by two whole products: the tolerance rule's reference."""
    h = h.to(w.dtype)
    z, u = F.linear(h, w, b), F.linear(h, g, gb)
    if loss == "cross_entropy":
        return (z.softmax(dim=1) * (u - u.gather(1, y[:, None]))).sum(dim=1)
    return (_plain_residual(z, y, loss) * u).sum(dim=1)


def plain_head_norm(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, loss: str) -> Tensor:
    """‖∇ℓ_i‖² [N] in the dtype of the computation."""
    h = h.to(w.dtype)
    z = F.linear(h, w, b)
    size = h.square().sum(dim=1) + (b is not None)
    if loss == "cross_entropy":
        rest = z.softmax(dim=1).scatter(1, y[:, None], 0)
        return size * (rest.square().sum(dim=1) + rest.sum(dim=1).square())
    return size * _plain_residual(z, y, loss).square().sum(dim=1)


def _plain_residual(z: Tensor, y: Tensor, loss: str) -> Tensor:
    y = y.to(z.dtype).reshape(z.shape)
    return z.sigmoid() - y if loss == "bce_with_logits" else 2 / z.shape[1] * (z - y)


def sample_tuple(sample: object) -> tuple[tuple[Tensor, ...], Tensor]:
    """(model arguments, label) of one sample (x, y) or (x1, x2, …, y)."""
    *inputs, label = sample  # type: ignore[misc]
    return tuple(inputs), label


def model_gradients(model: torch.nn.Module, head: torch.nn.Linear, samples: object, loss: str, bias: bool = True) -> Tensor:
    """∇ℓ_i of every sample with respect to the parameters of `head`, through the whole model, one backward pass each: [N, P].

    The model computes in the dtype it has; it must be in eval mode. A model's answer may be logits, (logits, …) or .logits.
    """
    parameters = [head.weight] + ([head.bias] if bias and head.bias is not None else [])
    rows = []
    for sample in samples:  # type: ignore[attr-defined]
        inputs, label = sample_tuple(sample)
        output = model(*(x[None] for x in inputs))
        output = getattr(output, "logits", output)
        output = output[0] if isinstance(output, tuple) else output
        z = output.reshape(-1)
        y = label if loss == "cross_entropy" else label.to(z.dtype).reshape(-1)
        gradients = torch.autograd.grad(sample_loss(z, y, loss), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]).double())
    return torch.stack(rows)
