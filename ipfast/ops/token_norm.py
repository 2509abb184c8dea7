"""token_norm: the squared norm of the summed last-layer gradient of every sequence of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError, UnavailableError
from ..registry import check_choice
from . import _head
from ._head import Head
from ._residual import Residual
from .head_dot import elementwise_residual

TILE_ENTRIES = _head.BLOCK_ROWS * _head.CLASS_TILE
"""Residuals (tokens times classes) that are held at once."""


def token_norm(
    features: Any,
    labels: Any,
    counts: Any,
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
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Self-influence σ_i = ‖Σ_t r_t h_tᵀ‖² + ‖Σ_t r_t‖² of sequence i, the sums over its T_i tokens.

    It is not the sum of its tokens' norms. Of two ways to the same number each sequence takes the one of fewer operations:

        products of tokens      Σ_tt' (r_t·r_t')(h_t·h_t' + 1)      T²(C + d), in float64, since the terms can cancel
        products of classes     Σ_c ‖Σ_t r_tc h_t‖² + (Σ_t r_tc)²   T·C·d

    The residuals are made in tiles of classes, first the normaliser of each token's softmax and then r tile by tile, so that
    no K×C matrix exists. The label's own r_y = −Σ_{c≠y} r_c is taken from the other classes, which keeps full relative
    precision for confident tokens. Cost beside the above: 4KCd flops, 2KCd where one tile holds all classes.

    Args:
        features: H [K, d], the tokens of all sequences one after another. labels: of each token, as in `head_dot`.
        counts: T_i [B] ≥ 0, integers that add up to K.
        weight, bias, loss, class_weight, label_smoothing, pos_weight, ignore_index: as in `head_dot`, with one weight [C, d].
        include_bias: whether the bias is a scored parameter; None: it is if `bias` is given.
        scale: factor on every result. (A mean over tokens is a division by T_i².)
        backend: "auto" or "reference"; there are no kernels of this operation.
        out: receives the result, in the dtype of the computation.

    Returns:
        Squared norms [B] ≥ 0, float64 for float64 features, else float32; 0 for a sequence without tokens. A NaN or an infinite
        feature makes the result of its sequence NaN or infinite.

    Raises:
        InputError, InputTypeError: shapes, dtypes, labels or counts do not fit. UnavailableError: another backend is named.

    Source: self-influence of TracIn (arXiv 2002.08484) with ∇_W ℓ_i = Σ_t r_t h_tᵀ.

    >>> h = torch.tensor([[3.0], [4.0], [5.0]], dtype=torch.float64)
    >>> w = torch.zeros(2, 1, dtype=torch.float64)  # r = ±(1/2, −1/2)
    >>> token_norm(h, [0, 0, 1], [2, 1, 0], w, None).tolist()  # 7²/2 and 5²/2
    [24.5, 12.5, 0.0]
    """
    where = "token_norm"
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
    )
    if len(args.weight) != 1 or _head.tensor(where, "weight", weight).dim() != 2:
        raise InputError(f"{where}: expected one weight [C, d]; got {len(args.weight)} of them. Call it once for each.")
    lengths = _head.tensor(where, "counts", counts).cpu()
    integers = not (lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool)
    rows = len(args.features)
    if lengths.dim() != 1 or not integers or bool((lengths < 0).any()) or int(lengths.sum()) != rows:
        raise InputError(
            f"{where}: expected counts of shape [B], the tokens of each sequence as integers that add up to the {rows} rows of "
            f"features; got {lengths.dtype} {list(lengths.shape)} with the sum {lengths.sum().item()}."
        )
    if check_choice(where, "backend", backend, dispatch.BACKENDS) in ("cpp", "triton"):
        raise UnavailableError(
            f"{where}: expected backend 'auto' or 'reference', since there is no kernel for the norm of a sequence's gradient; "
            f"got {backend!r}. Leave it out."
        )
    with_bias = bias is not None if include_bias is None else include_bias
    out = _head.output(where, args.features.new_empty(len(lengths), 0), out)
    return reference(args, lengths.long(), out, include_bias=with_bias, scale=scale)


def reference(args: Head, counts: Tensor, out: Tensor, *, include_bias: bool, scale: float) -> Tensor:
    """The definition in plain torch: fills `out` [B]. Sequences of about the same length are padded to it and go together."""
    starts, padded = counts.cumsum(0) - counts, _padded(counts)
    out.zero_()
    for length in torch.unique(padded[counts > 0]).tolist():
        alike = (padded == length).nonzero().squeeze(1)
        for part in alike.split(max(1, _head.BLOCK_ROWS // length)):
            place = torch.arange(length)[None, :]
            real = place < counts[part, None]
            rows = torch.where(real, starts[part, None] + place, starts[part, None])
            out[part.to(out.device)] = _norms(args, rows.to(out.device), real.to(out.device), include_bias).to(out.dtype)
    return out.mul_(scale)


def _padded(counts: Tensor) -> Tensor:
    """T rounded up to the next of eight steps to the octave: a function of T alone, and at most an eighth more."""
    step = 2.0 ** (torch.log2(counts.clamp(min=1).double()).floor() - 3)
    step = step.clamp(min=1).long()
    return (counts + step - 1) // step * step


def _norms(args: Head, rows: Tensor, real: Tensor, include_bias: bool) -> Tensor:
    """σ [n] of n sequences whose tokens are the rows [n, L], where `real` says so."""
    n, length = rows.shape
    flat, absent = rows.flatten(), ~real.flatten()
    w, b = args.weight[0], None if args.bias is None else args.bias[0]
    classes, width = w.shape
    first, last = int(flat[0]), int(flat[-1])
    if last - first + 1 == len(flat) and bool(real.all()):  # one after another, as those of equal length are
        h = args.features[first : last + 1].to(w.dtype)
    else:
        h = args.features[flat].to(w.dtype).masked_fill_(absent[:, None], 0)
    form = args.residual.rows(flat)
    uncounted = (absent if form.ignored is None else absent | form.ignored)[:, None]
    tiles = _residual_tiles(h, form, w, b)
    each = h.reshape(n, length, width)
    if 2 * length * (classes + width) <= classes * width:  # float64 costs twice
        gram = torch.zeros(n, length, length, dtype=torch.float64, device=h.device)
        for r in tiles:
            part = r.masked_fill_(uncounted, 0).view(n, length, -1).double()
            gram.baddbmm_(part, part.mT)
        products = each.double() @ each.double().mT + float(include_bias)
        return (gram * products).sum(dim=(1, 2)).clamp(min=0)
    total = torch.zeros(n, dtype=torch.float64, device=h.device)
    for r in tiles:
        part = r.masked_fill_(uncounted, 0).view(n, length, -1)
        total += (part.mT @ each).square().sum(dim=(1, 2))
        if include_bias:
            total += part.sum(dim=1).square().sum(dim=1)
    return total


def _residual_tiles(h: Tensor, form: Residual, w: Tensor, b: Tensor | None) -> Iterator[Tensor]:
    """∂ℓ/∂z of all rows in tiles of classes [rows, tile]."""
    if form.loss != "cross_entropy":
        r = elementwise_residual(_head.linear(h, w, b), form)
        yield r if form.output_weight is None else r * form.output_weight
        return
    tiles = list(_head.row_blocks(len(w), max(256, min(_head.CLASS_TILE, TILE_ENTRIES // len(h)))))
    y, factor = form.labels, h.new_ones(len(h)) if form.row_factor is None else form.row_factor
    kept: Tensor | None = None

    def own(tile: slice) -> tuple[Tensor, Tensor]:
        """(rows whose label is in the tile, its column)"""
        column = y - tile.start
        inside = ((column >= 0) & (column < tile.stop - tile.start)).nonzero().squeeze(1)
        return inside, column[inside]

    # m, the largest logit; S_x, the sum of e^{z−m} over c ≠ y; z_y.
    m, others, label_logit = h.new_full((len(h),), -torch.inf), h.new_zeros(len(h)), h.new_zeros(len(h))
    for tile in tiles:
        z = kept = _head.linear(h, w[tile], None if b is None else b[tile])
        top = torch.maximum(m, z.amax(dim=1))
        powers = torch.exp(z - top[:, None])
        label_logit[own(tile)[0]] = z[own(tile)]
        powers[own(tile)] = 0
        others, m = others * torch.exp(m - top) + powers.sum(dim=1), top
    share = factor / (others + torch.exp(label_logit - m))
    label_residual = _targets_of_others(form, h) - share * others
    for tile in tiles:
        z = kept if kept is not None and len(tiles) == 1 else _head.linear(h, w[tile], None if b is None else b[tile])
        r = share[:, None] * torch.exp(z - m[:, None])
        if form.class_target is not None:
            r -= form.class_target[tile]
        elif form.targets is not None:
            r -= form.targets[:, tile]
        r[own(tile)] = label_residual[own(tile)[0]]
        yield r


def _targets_of_others(form: Residual, h: Tensor) -> Tensor:
    """Σ_{c≠y} t_c [rows]"""
    if form.class_target is not None:
        target = form.class_target.double()
        return (target.sum() - target[form.labels]).to(h.dtype)
    if form.targets is not None:
        return form.targets.scatter(1, form.labels[:, None], 0).sum(dim=1)
    return h.new_zeros(len(h))
