"""head_norm: the squared norm of every sample's last-layer gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from . import _head
from ._head import Head
from .head_dot import elementwise_residual


def head_norm(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    *,
    loss: str = "cross_entropy",
    include_bias: bool | None = None,
    scale: float = 1.0,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Self-influence σ_i = ‖∇ℓ_i‖² = ‖r_i‖² (‖h_i‖² + 1), without forming a gradient.

    For cross_entropy the residual norm is summed over the classes c ≠ y (the exclusion form):

        ‖r‖² = (Q + S_x²)/S²,   S_x = Σ_{c≠y} e^{z_c−m},   Q = Σ_{c≠y} e^{2(z_c−m)},   S = S_x + e^{z_y−m}

    which keeps full relative precision for confident samples, where Σp² − 2p_y + 1 cancels. The other losses are those of
    `head_dot`. Cost: 2NCd + 2Nd flops and one read of the features.

    Args:
        features, labels, weight, bias, loss, backend, out: as in `head_dot`.
        include_bias: whether the bias is a scored parameter (the "+ 1"); None: it is if `bias` is given.
        scale: factor on every result, for another reduction of ℓ_i (the square of head_dot's).

    Returns:
        Squared norms [N] ≥ 0, float64 for float64 features, else float32. A row with NaN or infinite features gets a NaN or
        infinite result.

    Raises:
        InputError, InputTypeError: shapes, dtypes or labels do not fit. UnavailableError: the backend cannot run.

    Source: self-influence of TracIn (arXiv 2002.08484) at one checkpoint; ∇_W ℓ_i = r_i h_iᵀ has norm ‖r_i‖‖h_i‖.

    >>> h = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    >>> head_norm(h, [0], torch.zeros(2, 2, dtype=torch.float64), None).tolist()  # r = (−1/2, 1/2), ‖h‖² = 25
    [12.5]
    """
    where = "head_norm"
    args = _head.head(where, features, labels, weight, bias, loss)
    with_bias = bias is not None if include_bias is None else include_bias
    out = _head.output(where, args.features, out)
    choice = dispatch.select_backend(backend, device=args.features.device)
    if out.numel() == 0:
        return out
    if choice.name == "cpp":
        view = dispatch.storage_view
        dispatch.extension().head_norm(
            view(args.features),
            view(args.labels),
            view(args.weight),
            None if args.bias is None else view(args.bias),
            view(out),
            loss=loss,
            include_bias=with_bias,
            scale=scale,
            threads=torch.get_num_threads(),
        )
        return out
    if choice.name == "triton":
        kernels = dispatch.triton_kernels(where)
        kernels.head_norm(
            args.features, args.labels, args.weight, args.bias, out, loss=loss, include_bias=with_bias, scale=scale
        )
        return out
    return reference(args, out, loss=loss, include_bias=with_bias, scale=scale)


def reference(args: Head, out: Tensor, *, loss: str, include_bias: bool, scale: float) -> Tensor:
    """The definition in plain torch, in blocks of rows and tiles of classes."""
    for rows in _head.row_blocks(out.shape[0]):
        h, y = args.features[rows].to(out.dtype), args.labels[rows]
        if loss == "cross_entropy":
            residual = _softmax_residual_norm(h, y, args.weight, args.bias)
        else:
            z = _head.linear(h, args.weight, args.bias)
            residual = elementwise_residual(z, y, loss).square().sum(dim=1)
        out[rows] = residual * (h.square().sum(dim=1) + float(include_bias))
    return out.mul_(scale)


def _softmax_residual_norm(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """‖p − e_y‖² in the exclusion form, with a running maximum over tiles of classes."""
    rows = h.shape[0]
    m = h.new_full((rows,), -torch.inf)
    others, squares, label = h.new_zeros(rows), h.new_zeros(rows), h.new_zeros(rows)
    for tile in _head.row_blocks(w.shape[0], _head.CLASS_TILE):
        z = _head.linear(h, w[tile], None if b is None else b[tile])
        top = torch.maximum(m, z.amax(dim=1))
        shrink, weights = torch.exp(m - top), torch.exp(z - top[:, None])
        is_label = torch.arange(tile.start, tile.stop, device=h.device)[None, :] == y[:, None]
        rest = weights.masked_fill(is_label, 0)
        label = label * shrink + (weights * is_label).sum(dim=1)
        others = others * shrink + rest.sum(dim=1)
        squares = squares * shrink.square() + rest.square().sum(dim=1)
        m = top
    return (squares + others.square()) / (others + label).square()
