"""head_dot on the GPU: every row's last-layer gradient times one query gradient or several. Meaning: ipfast/ops/head_dot.py."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._tiles import as_multiplied, chosen_precision, launch, load_columns, load_rows, product, residual, softmax_targets
from ._tune import Config, default_config, fits_large_tiles, members_config, queries_together
from .head_dot_members import head_dot_members_kernel


@triton.jit
def head_dot_kernel(
    features,  # [N, d]
    labels,  # [N] int64, or targets [N, C] of an elementwise loss
    weight,  # [1 or Q, C, d]
    bias,  # [1 or Q, C]
    query,  # [Q, C, d]
    query_bias,  # [Q, C]
    row_factor,  # [N]
    class_target,  # [C]
    targets,  # [N, C]
    pos_weight,  # [C]
    out,  # [N, Q]
    scale,  # [1]
    rows,
    width,
    stride,
    classes,
    outputs,
    LOSS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_QUERY_BIAS: tl.constexpr,
    WEIGHT_EACH: tl.constexpr,
    BIAS_EACH: tl.constexpr,
    HAS_ROW_FACTOR: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    TARGET: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of rows and one query against all classes: logits z and products u of a tile, then a running softmax."""
    first = (tl.program_id(0) // outputs) * BLOCK_N
    q = tl.program_id(0) % outputs
    matrix = tl.cast(q, tl.int64) * classes * width
    query += matrix
    query_bias += tl.cast(q, tl.int64) * classes
    if WEIGHT_EACH:
        weight += matrix
    if BIAS_EACH:
        bias += tl.cast(q, tl.int64) * classes
    lane = tl.arange(0, BLOCK_N)
    n = first + lane
    dtype = out.dtype.element_ty
    live = n < rows
    top = tl.full((BLOCK_N,), float("-inf"), dtype)
    total = tl.zeros((BLOCK_N,), dtype)
    moment = tl.zeros((BLOCK_N,), dtype)
    aim = tl.zeros((BLOCK_N,), dtype)
    label = tl.zeros((BLOCK_N,), tl.int64)
    own = tl.zeros((BLOCK_N,), dtype)
    if LOSS == 0:
        label = tl.load(labels + n, mask=live, other=0)
        if not SINGLE:
            # u_y is needed before the first tile; with one tile it is picked from u below.
            for d0 in range(0, width, BLOCK_D):
                d = d0 + tl.arange(0, BLOCK_D)
                inside = live[:, None] & (d < width)[None, :]
                g = tl.load(query + label[:, None] * width + d[None, :], mask=inside, other=0.0)
                h = load_rows(features, first, lane, d, rows, width, stride)
                own += tl.sum(as_multiplied(h, dtype, PRECISION) * g.to(dtype), axis=1)
            if HAS_QUERY_BIAS:
                own += tl.load(query_bias + label)
    for c0 in range(0, classes, BLOCK_C):
        column = tl.arange(0, BLOCK_C)
        c = c0 + column
        z = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        u = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        for d0 in range(0, width, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            h = load_rows(features, first, lane, d, rows, width, stride)
            z = product(h, load_columns(weight, c0, column, d, classes, width), z, PRECISION)
            u = product(h, load_columns(query, c0, column, d, classes, width), u, PRECISION)
        real = c < classes
        if HAS_BIAS:
            z += tl.load(bias + c, mask=real, other=0.0)[None, :]
        if HAS_QUERY_BIAS:
            u += tl.load(query_bias + c, mask=real, other=0.0)[None, :]
        if LOSS == 0:
            z = tl.where(real[None, :], z, float("-inf"))
            is_label = c[None, :] == label[:, None]
            if SINGLE:
                own = tl.sum(tl.where(is_label, u, 0.0), axis=1)
            # The label's own term is zero by definition, whatever the rounding of u_y.
            centred = tl.where(is_label, 0.0, u - own[:, None])
            raised = tl.maximum(top, tl.max(z, axis=1))
            shrink = tl.exp(top - raised)
            p = tl.exp(z - raised[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            moment = moment * shrink + tl.sum(p * centred, axis=1)
            top = raised
            if TARGET > 0:
                t = softmax_targets(class_target, targets, first, lane, c, rows, classes, TARGET)
                aim += tl.sum(tl.where(real[None, :], t * centred, 0.0), axis=1)
        else:
            y = load_rows(labels, first, lane, c, rows, classes, classes)
            r = residual(z, y, pos_weight, c, classes, LOSS, HAS_POS_WEIGHT)
            moment += tl.sum(tl.where(real[None, :], r * u, 0.0), axis=1)
    if LOSS == 0:
        moment = moment / total
        if HAS_ROW_FACTOR:
            moment = moment * tl.load(row_factor + n, mask=live, other=0.0)
        moment = moment - aim
    place = n.to(tl.int64) * outputs + q
    tl.store(out + place, moment * tl.load(scale), mask=live)


def head_dot(
    features: Tensor,
    form: Any,
    weight: Tensor,
    bias: Tensor | None,
    query_weight: Tensor,
    query_bias: Tensor | None,
    out: Tensor,
    *,
    scale: float,
    precision: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """Fill `out` [N, Q] with the scores; the arguments are those of ipfast.ops.head_dot, checked and stacked.

    precision: one of PRECISIONS; None: the default of this machine. config: block sizes; None: the default ones.
    """
    classes, width, outputs = weight.shape[1], features.shape[1], out.shape[1]
    precision = chosen_precision(features.dtype, precision)
    together = queries_together(classes, outputs, features.dtype)
    large = fits_large_tiles(features, form)
    kernel: Any
    if together > 1:
        kernel = head_dot_members_kernel
        chosen = config or members_config(width, together * classes, precision, large=large)
        constants = {"MEMBERS": together}
    else:
        kernel = head_dot_kernel
        chosen = config or default_config(width, classes, features.dtype, precision, large=large)
        constants = {"SINGLE": classes <= chosen.classes}
    query = (query_weight, query_bias)
    return launch(
        kernel, features, form, weight, bias, query, out,
        scale=scale, precision=precision, config=chosen, together=together, **constants,
    )  # fmt: skip
