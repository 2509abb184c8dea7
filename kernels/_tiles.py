"""Pieces that the head kernels share, and how their arguments are made."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._tune import PRECISIONS, Config, default_precision

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


INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"))


@triton.jit
def nearest_bf16(x):
    """x rounded to bfloat16, ties to even.

    Triton's interpreter cuts the digits off instead, and multiplies the bits of bfloat16 as if they were whole numbers: there
    the rounding is written out and the result stays float32.
    """
    if INTERPRETED:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(tl.bfloat16)


@triton.jit
def product(h, w, total, PRECISION: tl.constexpr):
    """total + h w for h [B, K] and w [K, C]."""
    if PRECISION == "fp64":
        return total + tl.sum(h[:, :, None] * w[None, :, :], axis=1)
    elif PRECISION == "bf16":  # noqa: RET505 (a chain of compile-time branches)
        return tl.dot(nearest_bf16(h), nearest_bf16(w), total)
    else:
        return tl.dot(h.to(tl.float32), w, total, input_precision=PRECISION)


@triton.jit
def as_multiplied(h, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Features as `product` takes them, in the type of the sums."""
    if PRECISION == "bf16":
        h = nearest_bf16(h)
    return h.to(dtype)


@triton.jit
def class_products(
    features, matrix, bias, first, lane, c0, column, rows, width, stride, classes, total,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """total + H Mᵀ + bias for a block of rows and a tile of classes."""
    for d0 in range(0, width, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        h = load_rows(features, first, lane, d, rows, width, stride)
        total = product(h, load_columns(matrix, c0, column, d, classes, width), total, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + c0 + column, mask=c0 + column < classes, other=0.0)[None, :]
    return total


@triton.jit
def softmax_targets(class_target, targets, first, lane, c, rows, classes, TARGET: tl.constexpr):
    """t of the classes c, beside the label: shared by all rows (1) or soft targets of each row (2)."""
    if TARGET == 1:
        return tl.load(class_target + c, mask=c < classes, other=0.0)[None, :]
    else:  # noqa: RET505 (older versions of triton compile both branches otherwise)
        return load_rows(targets, first, lane, c, rows, classes, classes)


@triton.jit
def residual(z, y, pos_weight, c, classes, LOSS: tl.constexpr, HAS_POS_WEIGHT: tl.constexpr):
    """∂ℓ/∂z of an elementwise loss; (1 − y)σ(z) − π yσ(−z) does not cancel where σ(z) is near a hard target."""
    if LOSS == 2:
        # classes becomes a number of z's type first: 2/C in float32 would spoil a float64 score.
        return (z - y) * 2.0 / (tl.zeros_like(z) + classes)
    e = tl.exp(-tl.abs(z))
    high = 1.0 / (1.0 + e)
    low = e * high
    on = tl.where(z < 0, low, high)
    off = tl.where(z < 0, high, low)
    positive = y
    if HAS_POS_WEIGHT:
        positive = y * tl.load(pos_weight + c, mask=c < classes, other=0.0)[None, :]
    return (1.0 - y) * on - positive * off


NO_TARGET, CLASS_TARGET, SOFT_TARGETS = 0, 1, 2


def chosen_precision(dtype: torch.dtype, precision: str | None) -> str:
    """The precision asked for, or the default one of this machine."""
    if precision is None:
        return default_precision(dtype, interpreted=INTERPRETED.value)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "tf32x3" and torch.version.hip:
        return "ieee"  # AMD's matrix cores multiply float32 exactly, so there is nothing to make up for
    return precision


def launch(
    kernel: Any,
    features: Tensor,
    form: Any,
    weight: Tensor,
    bias: Tensor | None,
    query: tuple[Tensor, Tensor | None] | None,
    out: Tensor,
    *,
    scale: float,
    precision: str,
    config: Config,
    together: int = 1,
    **constants: Any,
) -> Tensor:
    """Run a head kernel over all rows and outputs. An absent array is passed as the weight and never read.

    form: an ipfast.ops residual: what the loss needs of each row. precision: of `chosen_precision`. together: outputs that one
    program computes.
    """
    rows, width = features.shape
    outputs, classes = out.shape[1], weight.shape[1]
    if precision == "bf16" and not INTERPRETED.value:
        # Already rounded: narrow operands go to the tensor cores without passing through registers.
        weight = weight.bfloat16()
        query = None if query is None else (query[0].bfloat16(), query[1])

    def present(value: Tensor | None) -> Tensor:
        return weight if value is None else value

    tensors = [] if query is None else [query[0], present(query[1])]
    if query is None:
        tensors.append(present(form.output_weight))
        constants["HAS_OUTPUT_WEIGHT"] = form.output_weight is not None
    else:
        constants["HAS_QUERY_BIAS"] = query[1] is not None
        constants["WEIGHT_EACH"] = weight.shape[0] > 1
        constants["BIAS_EACH"] = bias is not None and bias.shape[0] > 1
    target = CLASS_TARGET if form.class_target is not None else SOFT_TARGETS if form.targets is not None else NO_TARGET
    # fp64 would pass through a kernel as a float32 scalar; a tensor keeps it exact.
    factor = torch.full((1,), scale, dtype=out.dtype, device=out.device)
    # The outputs of a block of rows come one after the other, so that they find its features in the cache.
    kernel[(triton.cdiv(rows, config.rows) * triton.cdiv(outputs, together),)](
        features,
        form.labels,
        weight,
        present(bias),
        *tensors,
        present(form.row_factor),
        present(form.class_target),
        present(form.targets),
        present(form.pos_weight),
        out,
        factor,
        rows,
        width,
        features.stride(0),
        classes,
        outputs,
        LOSS=_LOSSES[form.loss],
        HAS_BIAS=bias is not None,
        HAS_ROW_FACTOR=form.row_factor is not None,
        HAS_POS_WEIGHT=form.pos_weight is not None,
        TARGET=target,
        PRECISION="fp64" if features.dtype == torch.float64 else precision,
        BLOCK_N=config.rows,
        BLOCK_C=config.classes,
        BLOCK_D=config.width,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **constants,
    )
    return out
