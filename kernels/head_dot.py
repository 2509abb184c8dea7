"""head_dot on the GPU: every row's last-layer gradient times one query gradient. Meaning: ipfast/ops/head_dot.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._tiles import launch, load_columns, load_rows, product, residual
from ._tune import Config


@triton.jit
def head_dot_kernel(
    features,
    labels,
    weight,
    bias,
    query,
    query_bias,
    out,
    scale,
    rows,
    width,
    stride,
    classes,
    LOSS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_QUERY_BIAS: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One block of rows against all classes: logits z and products u of a tile of classes, then a running softmax."""
    first = tl.program_id(0) * BLOCK_N
    lane = tl.arange(0, BLOCK_N)
    n = first + lane
    dtype = out.dtype.element_ty
    live = n < rows
    top = tl.full((BLOCK_N,), float("-inf"), dtype)
    total = tl.zeros((BLOCK_N,), dtype)
    moment = tl.zeros((BLOCK_N,), dtype)
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
                own += tl.sum(load_rows(features, first, lane, d, rows, width, stride).to(dtype) * g, axis=1)
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
        else:
            y = load_rows(labels, first, lane, c, rows, classes, classes)
            moment += tl.sum(tl.where(real[None, :], residual(z, y, classes, LOSS) * u, 0.0), axis=1)
    if LOSS == 0:
        moment = moment / total
    tl.store(out + n, moment * tl.load(scale), mask=live)


def head_dot(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query_weight: Tensor,
    query_bias: Tensor | None,
    out: Tensor,
    *,
    loss: str,
    scale: float,
    precision: str = "ieee",
    config: Config | None = None,
) -> Tensor:
    """Fill `out` [N] with the scores; the arguments are those of ipfast.ops.head_dot, checked and contiguous."""
    query = (query_weight, query_bias)
    return launch(
        head_dot_kernel, features, labels, weight, bias, query, out, loss=loss, scale=scale, precision=precision, config=config
    )
