"""head_norm: the squared norm of every sample's last-layer gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError
from . import _head
from ._head import Head
from ._residual import Residual
from .head_dot import elementwise_residual


def head_norm(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    *,
    loss: str = "cross_entropy",
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    include_bias: bool | None = None,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Self-influence σ_i = ‖∇ℓ_i‖² = ‖r_i‖² (‖h_i‖² + 1), without forming a gradient.

    For cross_entropy the residual norm is summed over the classes c ≠ y (the exclusion form):

        ‖r‖² = (Q + S_x²)/S²,   S_x = Σ_{c≠y} e^{z_c−m},   Q = Σ_{c≠y} e^{2(z_c−m)},   S = S_x + e^{z_y−m}

    which keeps full relative precision for confident samples, where Σp² − 2p_y + 1 cancels; with other targets t the sums are
    over the residuals a p_c − t_c of the classes c ≠ y. The other losses are those of `head_dot`. Cost: 2NCd + 2Nd flops and
    one read of the features.

    Args:
        features, labels, weight, bias, loss, class_weight, label_smoothing, pos_weight, ignore_index, backend, out: as in
            `head_dot`, with one weight [C, d].
        precision: None, or "bf16": σ_i of the features and the weight rounded to bfloat16, with float32 sums as in `head_dot`.
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
    scale = _head.factor(where, "scale", scale)
    args = _head.head(
        where,
        features,
        labels,
        weight,
        bias,
        loss=loss,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        pos_weight=pos_weight,
        ignore_index=ignore_index,
        precision=precision,
    )
    if len(args.weight) != 1 or _head.tensor(where, "weight", weight).dim() != 2:
        raise InputError(f"{where}: expected one weight [C, d]; got {len(args.weight)} of them. Call it once for each.")
    if precision == "bf16":
        args = args._replace(weight=_head.rounded(args.weight))
    with_bias = bias is not None if include_bias is None else include_bias
    out = _head.output(where, args.features, out)
    choice = dispatch.select_backend(backend, device=args.features.device)
    if out.numel() == 0:
        return out
    form = args.residual
    if choice.name == "cpp":
        view = dispatch.storage_view

        def optional(value: Tensor | None) -> Any:
            return None if value is None else view(value)

        dispatch.extension().head_norm(
            view(args.features),
            view(form.labels),
            view(args.weight),
            optional(args.bias),
            view(out[:, None]),
            loss=form.loss,
            row_factor=optional(form.row_factor),
            class_target=optional(form.class_target),
            targets=optional(form.targets),
            pos_weight=optional(form.pos_weight),
            output_weight=optional(form.output_weight),
            bf16=precision == "bf16",
            include_bias=with_bias,
            scale=scale,
            threads=torch.get_num_threads(),
        )
    elif choice.name == "triton":
        kernels = dispatch.triton_kernels(where)
        options = {"include_bias": with_bias, "scale": scale, "precision": precision}
        kernels.head_norm(args.features, form, args.weight, args.bias, out, **options)
    else:
        reference(args, out, include_bias=with_bias, scale=scale)
    if form.ignored is not None:
        out[form.ignored] = 0
    return out


def reference(args: Head, out: Tensor, *, include_bias: bool, scale: float) -> Tensor:
    """The definition in plain torch, in blocks of rows and tiles of classes."""
    w, b = args.weight[0], None if args.bias is None else args.bias[0]
    for rows in _head.row_blocks(out.shape[0]):
        h, form = args.block(rows), args.residual.rows(rows)
        if form.loss == "cross_entropy":
            square = _softmax_residual_norm(h, form, w, b)
        else:
            r = elementwise_residual(_head.linear(h, w, b), form)
            square = (r if form.output_weight is None else r * form.output_weight).square().sum(dim=1)
        out[rows] = square * (h.square().sum(dim=1) + float(include_bias))
    return out.mul_(scale)


def _softmax_residual_norm(h: Tensor, form: Residual, w: Tensor, b: Tensor | None) -> Tensor:
    """‖a p − t‖² = Σ_{c≠y} r_c² + (Σ_{c≠y} r_c)², r_c = a p_c − t_c, in two passes over tiles of classes."""
    tiles = list(_head.row_blocks(w.shape[0], _head.CLASS_TILE))
    y, factor = form.labels, h.new_ones(h.shape[0]) if form.row_factor is None else form.row_factor

    def logits(tile: slice) -> Tensor:
        return _head.linear(h, w[tile], None if b is None else b[tile])

    m, total = h.new_full((h.shape[0],), -torch.inf), h.new_zeros(h.shape[0])
    for tile in tiles:
        z = logits(tile)
        top = torch.maximum(m, z.amax(dim=1))
        total, m = total * torch.exp(m - top) + torch.exp(z - top[:, None]).sum(dim=1), top
    squares, others = h.new_zeros(h.shape[0]), h.new_zeros(h.shape[0])
    for tile in tiles:
        r = (factor / total)[:, None] * torch.exp(logits(tile) - m[:, None])
        if form.class_target is not None:
            r = r - form.class_target[tile]
        elif form.targets is not None:
            r = r - form.targets[:, tile]
        r = r.masked_fill(torch.arange(tile.start, tile.stop, device=h.device)[None, :] == y[:, None], 0)
        squares, others = squares + r.square().sum(dim=1), others + r.sum(dim=1)
    return squares + others.square()
