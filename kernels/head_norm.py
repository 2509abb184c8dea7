"""head_norm on the GPU: the squared norm of every row's last-layer gradient. Meaning: ipfast/ops/head_norm.py."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._tiles import (
    as_multiplied,
    chosen_precision,
    class_products,
    launch,
    load_columns,
    load_rows,
    product,
    residual,
    softmax_targets,
)
from ._tune import Config, default_config, fits_large_tiles


@triton.jit
def head_norm_kernel(
    features,  # [N, d]
    labels,  # [N] int64, or targets [N, C] of an elementwise loss
    weight,  # [C, d]
    bias,  # [C]
    output_weight,  # [C]
    row_factor,  # [N]
    class_target,  # [C]
    targets,  # [N, C]
    pos_weight,  # [C]
    out,  # [N, 1]
    scale,  # [1]
    rows,
    width,
    stride,
    classes,
    outputs,
    LOSS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OUTPUT_WEIGHT: tl.constexpr,
    HAS_ROW_FACTOR: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    TARGET: tl.constexpr,
    INCLUDE_BIAS: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """‖r‖²(‖h‖² + 1); for softmax summed over the classes other than the label, where nothing cancels."""
    first = tl.program_id(0) * BLOCK_N
    lane = tl.arange(0, BLOCK_N)
    n = first + lane
    dtype = out.dtype.element_ty
    live = n < rows
    top = tl.full((BLOCK_N,), float("-inf"), dtype)
    own = tl.zeros((BLOCK_N,), dtype)
    others = tl.zeros((BLOCK_N,), dtype)
    squares = tl.zeros((BLOCK_N,), dtype)
    size = tl.zeros((BLOCK_N,), dtype)
    label = tl.zeros((BLOCK_N,), tl.int64)
    column = tl.arange(0, BLOCK_C)
    if LOSS == 0:
        label = tl.load(labels + n, mask=live, other=0)
    for c0 in range(0, classes, BLOCK_C):
        c = c0 + column
        real = c < classes
        z = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        for d0 in range(0, width, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            h = load_rows(features, first, lane, d, rows, width, stride)
            z = product(h, load_columns(weight, c0, column, d, classes, width), z, PRECISION)
            if c0 == 0:
                exact = as_multiplied(h, dtype, PRECISION)
                size += tl.sum(exact * exact, axis=1)
        if HAS_BIAS:
            z += tl.load(bias + c, mask=real, other=0.0)[None, :]
        if LOSS == 0:
            z = tl.where(real[None, :], z, float("-inf"))
            is_label = c[None, :] == label[:, None]
            raised = tl.maximum(top, tl.max(z, axis=1))
            shrink = tl.exp(top - raised)
            p = tl.exp(z - raised[:, None])
            rest = tl.where(is_label, 0.0, p)
            own = own * shrink + tl.sum(tl.where(is_label, p, 0.0), axis=1)
            others = others * shrink + tl.sum(rest, axis=1)
            squares = squares * shrink * shrink + tl.sum(rest * rest, axis=1)
            top = raised
        else:
            y = load_rows(labels, first, lane, c, rows, classes, classes)
            r = residual(z, y, pos_weight, c, classes, LOSS, HAS_POS_WEIGHT)
            if HAS_OUTPUT_WEIGHT:
                r = r * tl.load(output_weight + c, mask=real, other=0.0)[None, :]
            squares += tl.sum(tl.where(real[None, :], r * r, 0.0), axis=1)
    if LOSS == 0:
        every = others + own
        factor = tl.full((BLOCK_N,), 1.0, dtype)
        if HAS_ROW_FACTOR:
            factor = tl.load(row_factor + n, mask=live, other=0.0)
        if TARGET > 0:
            # r_c = a p_c − t_c needs the whole sum first: a second pass over the classes.
            squares = tl.zeros((BLOCK_N,), dtype)
            others = tl.zeros((BLOCK_N,), dtype)
            for c0 in range(0, classes, BLOCK_C):
                c = c0 + column
                z = class_products(
                    features, weight, bias, first, lane, c0, column, rows, width, stride, classes,
                    tl.zeros((BLOCK_N, BLOCK_C), dtype), HAS_BIAS, PRECISION, BLOCK_D,
                )  # fmt: skip
                t = softmax_targets(class_target, targets, first, lane, c0 + column, rows, classes, TARGET)
                r = (factor / every)[:, None] * tl.exp(z - top[:, None]) - t
                kept = (c < classes)[None, :] & (c[None, :] != label[:, None])
                r = tl.where(kept, r, 0.0)
                squares += tl.sum(r * r, axis=1)
                others += tl.sum(r, axis=1)
            squares = squares + others * others
        else:
            squares = factor * factor * (squares + others * others) / (every * every)
    if INCLUDE_BIAS:
        size += 1.0
    tl.store(out + n, squares * size * tl.load(scale), mask=live)


def head_norm(
    features: Tensor,
    form: Any,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    include_bias: bool,
    scale: float,
    precision: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """Fill `out` [N] with squared norms; the arguments are those of ipfast.ops.head_norm, checked.

    precision: one of PRECISIONS; None: the default of this machine. config: block sizes; None: the default ones.
    """
    classes = weight.shape[1]
    precision = chosen_precision(features.dtype, precision)
    large = fits_large_tiles(features, form)
    chosen = config or default_config(features.shape[1], classes, features.dtype, precision, query=False, large=large)
    launch(
        head_norm_kernel, features, form, weight, bias, None, out[:, None],
        scale=scale, precision=precision, config=chosen, INCLUDE_BIAS=include_bias, SINGLE=classes <= chosen.classes,
    )  # fmt: skip
    return out
