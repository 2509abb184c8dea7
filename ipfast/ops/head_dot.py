"""head_dot: the inner product of every sample's last-layer gradient with one query gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from . import _head
from ._head import Head


def head_dot(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    query_weight: Any,
    query_bias: Any,
    *,
    loss: str = "cross_entropy",
    scale: float = 1.0,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Score s_i = ⟨G, ∇_W ℓ_i⟩ + ⟨G_b, ∇_b ℓ_i⟩ of every row, without forming a gradient.

    With z = W h + b, u = G h + G_b and p = softmax(z):

        cross_entropy     s_i = Σ_c p_ic (u_ic − u_iy)              streamed over classes (online softmax)
        bce_with_logits   s_i = Σ_c (σ(z_ic) − y_ic) u_ic           ℓ_i summed over the C outputs
        mse               s_i = Σ_c (2/C)(z_ic − y_ic) u_ic         ℓ_i = ‖z_i − y_i‖²/C, as torch's mean

    The centred form of the first line keeps full relative precision for confident samples, where E_p[u] − u_y cancels.
    Cost: 4NCd flops and one read of the features; neither N×C logits nor N×C products are stored.

    Args:
        features: H [N, d], float64 (computed in float64) or float32, float16, bfloat16 (computed in float32).
        labels: cross_entropy: integers [N] in 0..C-1; otherwise targets [N, C] ([N] when C = 1).
        weight: W [C, d]. bias: b [C] or None.
        query_weight: G [C, d]. query_bias: G_b [C] or None (then the bias gradient does not count).
        loss: "cross_entropy", "bce_with_logits" or "mse".
        scale: factor on every score, for another reduction of ℓ_i.
        backend: "auto", "reference", "cpp" or "triton".
        out: receives the scores, [N] in the dtype of the computation.

    Returns:
        Scores [N], float64 for float64 features, else float32, on the device of the features. A row with NaN or infinite
        features gets a NaN or infinite score. Each score depends on its own row only, not on N or on the row's position.

    Raises:
        InputError, InputTypeError: shapes, dtypes or labels do not fit. UnavailableError: the backend cannot run.

    Source: the score is Eq. (2) of arXiv 2405.17490; the factored form follows from ∇_W ℓ_i = r_i h_iᵀ, ∇_b ℓ_i = r_i.

    >>> h = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> w = torch.zeros(2, 2, dtype=torch.float64)
    >>> head_dot(h, [0, 1], w, None, torch.eye(2, dtype=torch.float64), None).tolist()  # p = 1/2 everywhere
    [-0.5, -1.0]
    """
    where = "head_dot"
    args = _head.head(where, features, labels, weight, bias, loss)
    classes, width = args.weight.shape
    g = _head.matrix(where, "query_weight", query_weight, (classes, width)).to(args.weight).contiguous()
    gb = None if query_bias is None else _head.vector(where, "query_bias", query_bias, classes).to(g).contiguous()
    out = _head.output(where, args.features, out)
    choice = dispatch.select_backend(backend, device=args.features.device)
    if out.numel() == 0:
        return out
    if choice.name == "cpp":
        view = dispatch.storage_view
        dispatch.extension().head_dot(
            view(args.features),
            view(args.labels),
            view(args.weight),
            None if args.bias is None else view(args.bias),
            view(g),
            None if gb is None else view(gb),
            view(out),
            loss=loss,
            scale=scale,
            threads=torch.get_num_threads(),
        )
        return out
    if choice.name == "triton":
        kernels = dispatch.triton_kernels(where)
        kernels.head_dot(args.features, args.labels, args.weight, args.bias, g, gb, out, loss=loss, scale=scale)
        return out
    return reference(args, g, gb, out, loss=loss, scale=scale)


def reference(args: Head, g: Tensor, gb: Tensor | None, out: Tensor, *, loss: str, scale: float) -> Tensor:
    """The definition in plain torch, in blocks of rows and tiles of classes."""
    for rows in _head.row_blocks(out.shape[0]):
        h, y = args.features[rows].to(out.dtype), args.labels[rows]
        if loss == "cross_entropy":
            out[rows] = _softmax_scores(h, y, args.weight, args.bias, g, gb)
        else:
            z, u = _head.linear(h, args.weight, args.bias), _head.linear(h, g, gb)
            out[rows] = (elementwise_residual(z, y, loss) * u).sum(dim=1)
    return out.mul_(scale)


def elementwise_residual(z: Tensor, y: Tensor, loss: str) -> Tensor:
    """∂ℓ/∂z [B, C] of a loss that is a sum over outputs; free of cancellation where σ(z) is near a hard target."""
    if loss == "bce_with_logits":
        return (1 - y) * torch.sigmoid(z) - y * torch.sigmoid(-z)
    return (2 / z.shape[1]) * (z - y)


def _softmax_scores(h: Tensor, y: Tensor, w: Tensor, b: Tensor | None, g: Tensor, gb: Tensor | None) -> Tensor:
    """Σ_c p_c (u_c − u_y) with a running maximum m, S = Σ e^{z−m} and E = Σ e^{z−m}(u − u_y) over tiles of classes."""
    rows, classes = h.shape[0], w.shape[0]
    u_label = (h * g[y]).sum(dim=1) + (0 if gb is None else gb[y])
    m = h.new_full((rows,), -torch.inf)
    s, e = h.new_zeros(rows), h.new_zeros(rows)
    for tile in _head.row_blocks(classes, _head.CLASS_TILE):
        z = _head.linear(h, w[tile], None if b is None else b[tile])
        u = _head.linear(h, g[tile], None if gb is None else gb[tile]) - u_label[:, None]
        column = y[:, None] - tile.start
        inside = (column >= 0) & (column < z.shape[1])
        # The label's own term is zero by definition; the two roundings of u_y would leave eps·|u_y| there.
        u.scatter_(1, column.clamp(0, z.shape[1] - 1), u.gather(1, column.clamp(0, z.shape[1] - 1)).masked_fill(inside, 0))
        top = torch.maximum(m, z.amax(dim=1))
        shrink, weights = torch.exp(m - top), torch.exp(z - top[:, None])
        s, e, m = s * shrink + weights.sum(dim=1), e * shrink + (weights * u).sum(dim=1), top
    return e / s
