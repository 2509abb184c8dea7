"""head_norm on the GPU: the squared norm of every row's last-layer gradient. Meaning: ipfast/ops/head_norm.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._tiles import launch, load_columns, load_rows, product, residual
from ._tune import Config


@triton.jit
def head_norm_kernel(
    features,
    labels,
    weight,
    bias,
    out,
    scale,
    rows,
    width,
    stride,
    classes,
    LOSS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    if LOSS == 0:
        label = tl.load(labels + n, mask=live, other=0)
    for c0 in range(0, classes, BLOCK_C):
        column = tl.arange(0, BLOCK_C)
        c = c0 + column
        z = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        for d0 in range(0, width, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            h = load_rows(features, first, lane, d, rows, width, stride)
            z = product(h, load_columns(weight, c0, column, d, classes, width), z, PRECISION)
            if c0 == 0:
                exact = h.to(dtype)
                size += tl.sum(exact * exact, axis=1)
        real = c < classes
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
            r = residual(z, load_rows(labels, first, lane, c, rows, classes, classes), classes, LOSS)
            squares += tl.sum(tl.where(real[None, :], r * r, 0.0), axis=1)
    if LOSS == 0:
        every = others + own
        squares = (squares + others * others) / (every * every)
    if INCLUDE_BIAS:
        size += 1.0
    tl.store(out + n, squares * size * tl.load(scale), mask=live)


def head_norm(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    loss: str,
    include_bias: bool,
    scale: float,
    precision: str = "ieee",
    config: Config | None = None,
) -> Tensor:
    """Fill `out` [N] with squared norms; the arguments are those of ipfast.ops.head_norm, checked and contiguous."""
    return launch(
        head_norm_kernel,
        features,
        labels,
        weight,
        bias,
        None,
        out,
        loss=loss,
        scale=scale,
        precision=precision,
        config=config,
        INCLUDE_BIAS=include_bias,
    )
