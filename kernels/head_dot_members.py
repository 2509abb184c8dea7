"""head_dot on the GPU for several queries at few classes: the members of an ensemble share every tile of the features.

A program holds the classes of all its queries side by side, class c of query q in column q·C + c, so that one matrix product
serves them all; softmax and sums then go by the columns of each query. Meaning: ipfast/ops/head_dot.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._tiles import load_columns, load_rows, product, residual, softmax_targets


@triton.jit
def load_listed(pointer, rows, columns, inside, width):
    """The listed rows of a dense matrix of `width` columns, transposed: [columns, rows]."""
    mask = inside[None, :] & (columns < width)[:, None]
    return tl.load(pointer + rows[None, :] * width + columns[:, None], mask=mask, other=0.0)


@triton.jit
def head_dot_members_kernel(
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
    MEMBERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of rows and MEMBERS queries, all of whose classes fit one tile."""
    groups = tl.cdiv(outputs, MEMBERS)
    first = (tl.program_id(0) // groups) * BLOCK_N
    q0 = (tl.program_id(0) % groups) * MEMBERS
    lane = tl.arange(0, BLOCK_N)
    n = first + lane
    live = n < rows
    dtype = out.dtype.element_ty
    column = tl.arange(0, BLOCK_C)
    member = column // classes
    c = column % classes
    real = (member < MEMBERS) & (q0 + member < outputs)
    start = q0 * classes  # class c of query q0 + member lies in row q0·C + column
    limit = tl.minimum(outputs, q0 + MEMBERS) * classes
    z = tl.zeros((BLOCK_N, BLOCK_C), dtype)
    u = tl.zeros((BLOCK_N, BLOCK_C), dtype)
    for d0 in range(0, width, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        h = load_rows(features, first, lane, d, rows, width, stride)
        if WEIGHT_EACH:  # noqa: SIM108 (triton's own ternary compiles both sides)
            w = load_columns(weight, start, column, d, limit, width)
        else:
            w = load_listed(weight, c, d, real, width)
        z = product(h, w, z, PRECISION)
        u = product(h, load_columns(query, start, column, d, limit, width), u, PRECISION)
    if HAS_BIAS:
        at = start + column if BIAS_EACH else c
        z += tl.load(bias + at, mask=real, other=0.0)[None, :]
    if HAS_QUERY_BIAS:
        u += tl.load(query_bias + start + column, mask=real, other=0.0)[None, :]
    factor = tl.load(scale)
    if LOSS == 0:
        label = tl.load(labels + n, mask=live, other=0)
        is_label = c[None, :] == label[:, None]
        top = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        own = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        for m in tl.static_range(MEMBERS):
            mine = (real & (member == m))[None, :]
            top = tl.where(mine, tl.max(tl.where(mine, z, float("-inf")), axis=1)[:, None], top)
            own = tl.where(mine, tl.sum(tl.where(mine & is_label, u, 0.0), axis=1)[:, None], own)
        p = tl.where(real[None, :], tl.exp(z - top), 0.0)
        # The label's own term is zero by definition, whatever the rounding of u_y.
        centred = tl.where(is_label, 0.0, u - own)
        terms = p * centred
        if TARGET > 0:
            aims = softmax_targets(class_target, targets, first, lane, c, rows, classes, TARGET) * centred
        if HAS_ROW_FACTOR:
            weighting = tl.load(row_factor + n, mask=live, other=0.0)
        for m in tl.static_range(MEMBERS):
            mine = (real & (member == m))[None, :]
            score = tl.sum(tl.where(mine, terms, 0.0), axis=1) / tl.sum(tl.where(mine, p, 0.0), axis=1)
            if HAS_ROW_FACTOR:
                score = score * weighting
            if TARGET > 0:
                score = score - tl.sum(tl.where(mine, aims, 0.0), axis=1)
            tl.store(out + n.to(tl.int64) * outputs + q0 + m, score * factor, mask=n < tl.where(q0 + m < outputs, rows, 0))
    else:
        y = load_rows(labels, first, lane, c, rows, classes, classes)
        terms = residual(z, y, pos_weight, c, classes, LOSS, HAS_POS_WEIGHT) * u
        for m in tl.static_range(MEMBERS):
            mine = (real & (member == m))[None, :]
            score = tl.sum(tl.where(mine, terms, 0.0), axis=1)
            tl.store(out + n.to(tl.int64) * outputs + q0 + m, score * factor, mask=n < tl.where(q0 + m < outputs, rows, 0))
