"""head_dot: the inner product of every sample's last-layer gradient with one query gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError, InputTypeError
from . import _head
from ._head import Head
from ._residual import Residual


def head_dot(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    query_weight: Any,
    query_bias: Any,
    *,
    loss: str = "cross_entropy",
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    dropped: Sequence[Any] | None = None,
    rescale: float = 1.0,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Score s_i = ⟨G, ∇_W ℓ_i⟩ + ⟨G_b, ∇_b ℓ_i⟩ of every row, without forming a gradient.

    With z = W h + b, u = G h + G_b and p = softmax(z):

        cross_entropy     s_i = Σ_c p_ic (u_ic − u_iy)              streamed over classes (online softmax)
        bce_with_logits   s_i = Σ_c (σ(z_ic) − y_ic) u_ic           ℓ_i summed over the C outputs
        mse               s_i = Σ_c (2/C)(z_ic − y_ic) u_ic         ℓ_i = ‖z_i − y_i‖²/C, as torch's mean

    The centred form of the first line keeps full relative precision for confident samples, where E_p[u] − u_y cancels.
    Other targets t of cross_entropy (weighted, smoothed, soft) have the residual (Σt) p − t.
    Cost: 2NCd flops for the logits and 2NCd a query, and one read of the features; no N×C matrix is stored.

    Several queries [Q, C, d] give [N, Q] from one pass, at one weight [C, d] or each at its own, [Q, C, d]. With `dropped`,
    query q meets the logits z_q = rescale·(W − D_q∘W) h + b of member q of a dropout ensemble: the dense product W h is taken
    once for all members, and corrected by the few entries that a mask drops.

    precision="bf16" rounds the operands of the products, z = Ŵ ĥ + b and u = Ĝ ĥ + G_b with x̂ the nearest bfloat16, and
    nothing else: sums, logits, u and all that follows are float32, and u_c − u_y is taken after the products, so that a
    confident sample loses no digits beyond those of its operands. Of a dropout member rescale·(W − D∘W) is rounded; of an
    elementwise loss with class_weight, class_weight∘G.

    Args:
        features: H [N, d], float64 (computed in float64) or float32, float16, bfloat16 (computed in float32).
        labels: cross_entropy: integers [N] in 0..C-1, or soft targets [N, C]; otherwise targets [N, C] ([N] when C = 1).
        weight: W [C, d] or [Q, C, d]. bias: b [C], [Q, C] or None.
        query_weight: G [C, d] or [Q, C, d]. query_bias: G_b, alike, or None (then the bias gradient does not count).
        loss: "cross_entropy", "bce_with_logits" or "mse".
        class_weight: [C], as `weight` of torch's losses with reduction="none"; for elementwise losses a factor on each output.
        label_smoothing: ε of cross_entropy. pos_weight: π [C] of bce_with_logits.
        ignore_index: label of cross_entropy whose rows score zero.
        dropped: for each query the flat indices of the dropped entries of W [C, d], int64, ascending (`ipfast.dropout_mask`);
            the bias may then be [Q, C].
        rescale: factor on the kept entries where `dropped` is given, 1/(1 − rate) for inverted dropout.
        scale: factor on every score, for another reduction of ℓ_i.
        precision: None (exact products in the dtype of the computation) or "bf16".
        backend: "auto", "reference", "cpp" or "triton".
        out: receives the scores, in the dtype of the computation.

    Returns:
        Scores [N], or [N, Q] where weight or query_weight has three dimensions or `dropped` is given; float64 for float64
        features, else float32, on the device of the features. A row with NaN or infinite features gets a NaN or infinite score.
        Each score depends on its own row only, not on N or on the row's position.

    Raises:
        InputError, InputTypeError: shapes, dtypes or labels do not fit. UnavailableError: the backend cannot run.

    Source: the score is Eq. (2) of arXiv 2405.17490; the factored form follows from ∇_W ℓ_i = r_i h_iᵀ, ∇_b ℓ_i = r_i.

    >>> h = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> w = torch.zeros(2, 2, dtype=torch.float64)
    >>> head_dot(h, [0, 1], w, None, torch.eye(2, dtype=torch.float64), None).tolist()  # p = 1/2 everywhere
    [-0.5, -1.0]
    """
    where = "head_dot"
    rescale, scale = _head.factor(where, "rescale", rescale), _head.factor(where, "scale", scale)
    dropped = None if dropped is None else list(dropped)
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
    h, w = args.features, args.weight
    g = _head.stacked(where, "query_weight", query_weight, args.classes, h.shape[1], h)
    gb = _head.stacked_vectors(where, "query_bias", query_bias, g)
    if args.residual.output_weight is not None:
        # (w∘r)·u = r·(w∘u): the factor on an output moves to the query.
        g = g * args.residual.output_weight[:, None]
        gb = None if gb is None else gb * args.residual.output_weight
    if precision == "bf16":
        # The members' common factor goes into the weight before it is rounded: so every route multiplies the same numbers.
        args, g = args._replace(weight=_head.rounded(w if dropped is None else rescale * w)), _head.rounded(g)
        w, rescale = args.weight, 1.0
    several = dropped is not None or any(_head.tensor(where, "weight", value).dim() == 3 for value in (weight, query_weight))
    masks = None if dropped is None else _masks(where, dropped, w, len(g))
    bias_sets = 1 if args.bias is None else len(args.bias)
    if len(w) not in (1, len(g)) or bias_sets not in (1, len(w), len(g)):
        raise InputError(
            f"{where}: expected one weight for all of the {len(g)} queries, or one for each; got {len(w)}. "
            "Repeat the query with query_weight.expand(len(weight), -1, -1) to meet one query at several weights."
        )
    out = _head.output(where, h, out, *((len(g),) if several else ()))
    choice = dispatch.select_backend(backend, device=h.device)
    if out.numel() == 0:
        return out
    into = out.view(h.shape[0], len(g))
    if choice.name == "cpp":
        _cpp(args, g, gb, masks, rescale, into, scale)
    elif choice.name == "triton":
        kernels = dispatch.triton_kernels(where)
        head = _dense(args, masks, rescale)
        kernels.head_dot(h, args.residual, *head, g, gb, into, scale=scale, precision=precision)
    else:
        reference(args, g, gb, into, masks=masks, rescale=rescale, scale=scale)
    if args.residual.ignored is not None:
        out[args.residual.ignored] = 0
    return out


def _masks(where: str, dropped: Sequence[Any], w: Tensor, members: int) -> list[Tensor]:
    """Flat indices [nnz] of each member, checked, on the CPU."""
    if len(dropped) != members or len(w) != 1:
        raise InputError(
            f"{where}: expected dropped to hold one mask for each of the {members} queries, at one weight [C, d]; got "
            f"{len(dropped)} masks and {len(w)} weights."
        )
    result = []
    for index, value in enumerate(dropped):
        mask = _head.tensor(where, f"dropped[{index}]", value).cpu()
        if mask.dim() != 1 or mask.dtype != torch.int64:
            raise InputTypeError(
                f"{where}: expected dropped[{index}] to be flat indices [nnz] int64; got {mask.dtype} {list(mask.shape)}."
            )
        if len(mask) and not (int(mask[0]) >= 0 and int(mask[-1]) < w.numel() and bool((mask[1:] > mask[:-1]).all())):
            raise InputError(
                f"{where}: expected dropped[{index}] to hold ascending indices below {w.numel()}, as ipfast.dropout_mask gives."
            )
        result.append(mask.contiguous())
    return result


def _dense(args: Head, masks: list[Tensor] | None, rescale: float) -> tuple[Tensor, Tensor | None]:
    """(weight [L, C, d], bias [L, C]) with each member's mask carried out."""
    if masks is None:
        return args.weight, args.bias
    weight = (args.weight * rescale).expand(len(masks), -1, -1).contiguous()
    flat = weight.view(len(masks), -1)
    for member, mask in enumerate(masks):
        flat[member, mask.to(flat.device)] = 0
    return weight, None if args.bias is None else args.bias.expand(len(masks), -1).contiguous()


def _cpp(
    args: Head, g: Tensor, gb: Tensor | None, masks: list[Tensor] | None, rescale: float, out: Tensor, scale: float
) -> None:
    view, form = dispatch.storage_view, args.residual

    def optional(value: Tensor | None) -> Any:
        return None if value is None else view(value)

    dispatch.extension().head_dot(
        view(args.features),
        view(form.labels),
        view(args.weight),
        optional(args.bias),
        view(g),
        optional(gb),
        view(out),
        loss=form.loss,
        row_factor=optional(form.row_factor),
        class_target=optional(form.class_target),
        targets=optional(form.targets),
        pos_weight=optional(form.pos_weight),
        dropped=None if masks is None else [view(mask) for mask in masks],
        rescale=rescale,
        bf16=args.precision == "bf16",
        scale=scale,
        threads=torch.get_num_threads(),
    )


def reference(
    args: Head,
    g: Tensor,
    gb: Tensor | None,
    out: Tensor,
    *,
    masks: list[Tensor] | None = None,
    rescale: float = 1.0,
    scale: float,
) -> Tensor:
    """The definition in plain torch, in blocks of rows and tiles of classes: fills `out` [N, Q]."""
    weight, bias = _dense(args, masks, rescale)
    for rows in _head.row_blocks(out.shape[0]):
        h, form = args.block(rows), args.residual.rows(rows)
        for q in range(out.shape[1]):
            w = weight[q if len(weight) > 1 else 0]
            b = None if bias is None else bias[q if len(bias) > 1 else 0]
            query = (g[q], None if gb is None else gb[q])
            if form.loss == "cross_entropy":
                out[rows, q] = _softmax_scores(h, form, w, b, *query)
            else:
                z, u = _head.linear(h, w, b), _head.linear(h, *query)
                out[rows, q] = (elementwise_residual(z, form) * u).sum(dim=1)
    return out.mul_(scale)


def elementwise_residual(z: Tensor, form: Residual) -> Tensor:
    """∂ℓ/∂z [B, C] of a loss that is a sum over outputs; free of cancellation where σ(z) is near a hard target."""
    y = form.labels
    if form.loss == "bce_with_logits":
        positive = y if form.pos_weight is None else form.pos_weight * y
        return (1 - y) * torch.sigmoid(z) - positive * torch.sigmoid(-z)
    return (2 / z.shape[1]) * (z - y)


def _softmax_scores(h: Tensor, form: Residual, w: Tensor, b: Tensor | None, g: Tensor, gb: Tensor | None) -> Tensor:
    """a Σ_c p_c (u_c − u_y) − Σ_c t_c (u_c − u_y) with a running maximum m, S = Σ e^{z−m}, E = Σ e^{z−m}(u − u_y)."""
    rows, classes, y = h.shape[0], w.shape[0], form.labels
    u_label = (h * g[y]).sum(dim=1) + (0 if gb is None else gb[y])
    m = h.new_full((rows,), -torch.inf)
    s, e, target = h.new_zeros(rows), h.new_zeros(rows), h.new_zeros(rows)
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
        if form.class_target is not None:
            target = target + u @ form.class_target[tile]
        elif form.targets is not None:
            target = target + (form.targets[:, tile] * u).sum(dim=1)
    score = e / s
    return (score if form.row_factor is None else form.row_factor * score) - target
