"""Pieces that the head kernels share, and how their arguments are made."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._tune import PRECISIONS, Config, default_config

CROSS_ENTROPY, BCE_WITH_LOGITS, MSE = 0, 1, 2
_LOSSES = {"cross_entropy": CROSS_ENTROPY, "bce_with_logits": BCE_WITH_LOGITS, "mse": MSE}


@triton.jit
def load_rows(pointer, first, rows, columns, height, width, stride):
    """Rows first + rows of a [height, width] matrix whose rows lie `stride` elements apart, zero outside.

    The first row's address is 64-bit, since N·d may pass 2³¹; offsets inside a tile are 32-bit, which saves registers.
    """
    inside = (first + rows < height)[:, None] & (columns < width)[None, :]
    start = pointer + tl.cast(first, tl.int64) * stride
    return tl.load(start + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_columns(pointer, first, rows, columns, height, width):
    """A tile of a dense [height, width] matrix, transposed: [columns, rows]."""
    inside = (first + rows < height)[None, :] & (columns < width)[:, None]
    start = pointer + tl.cast(first, tl.int64) * width
    return tl.load(start + rows[None, :] * width + columns[:, None], mask=inside, other=0.0)


@triton.jit
def product(h, w, total, PRECISION: tl.constexpr):
    """total + h w for h [B, K] and w [K, C]."""
    if PRECISION == "fp64":
        return total + tl.sum(h[:, :, None] * w[None, :, :], axis=1)
    elif PRECISION == "bf16":  # noqa: RET505 (a chain of compile-time branches)
        return tl.dot(h.to(tl.bfloat16), w.to(tl.bfloat16), total)
    else:
        return tl.dot(h.to(tl.float32), w, total, input_precision=PRECISION)


@triton.jit
def residual(z, y, classes, LOSS: tl.constexpr):
    """∂ℓ/∂z of an elementwise loss; (1 − y)σ(z) − yσ(−z) does not cancel where σ(z) is near a hard target."""
    if LOSS == 2:
        # classes becomes a number of z's type first: 2/C in float32 would spoil a float64 score.
        return (z - y) * 2.0 / (tl.zeros_like(z) + classes)
    e = tl.exp(-tl.abs(z))
    high = 1.0 / (1.0 + e)
    low = e * high
    on = tl.where(z < 0, low, high)
    off = tl.where(z < 0, high, low)
    return (1.0 - y) * on - y * off


def launch(
    kernel: Any,
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query: tuple[Tensor, Tensor | None] | None,
    out: Tensor,
    *,
    loss: str,
    scale: float,
    precision: str,
    config: Config | None,
    **constants: Any,
) -> Tensor:
    """Run a head kernel over all rows. An absent vector is passed as the weight and never read."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "tf32x3" and torch.version.hip:
        precision = "ieee"  # AMD's matrix cores multiply float32 exactly, so there is nothing to make up for
    rows, width = features.shape
    classes = weight.shape[0]
    chosen = config or default_config(width, classes, features.dtype, precision)
    if query is not None:
        constants["HAS_QUERY_BIAS"] = query[1] is not None
    tensors = [] if query is None else [query[0], weight if query[1] is None else query[1]]
    # fp64 would pass through a kernel as a float32 scalar; a tensor keeps it exact.
    factor = torch.full((1,), scale, dtype=out.dtype, device=out.device)
    kernel[(triton.cdiv(rows, chosen.rows),)](
        features,
        labels,
        weight,
        weight if bias is None else bias,
        *tensors,
        out,
        factor,
        rows,
        width,
        features.stride(0),
        classes,
        LOSS=_LOSSES[loss],
        HAS_BIAS=bias is not None,
        SINGLE=classes <= chosen.classes,
        PRECISION="fp64" if features.dtype == torch.float64 else precision,
        BLOCK_N=chosen.rows,
        BLOCK_C=chosen.classes,
        BLOCK_D=chosen.width,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        **constants,
    )
    return out
