"""layer_norm_sq on the GPU: every sample's squared gradient norm at a linear layer. Meaning: ipfast/ops/layer_norm_sq.py.

gram: about B·T²(d_in + d_out) flops; a program multiplies a tile of tokens with itself and with all later ones. One token a
sample needs no product: both norms are read off a tile of samples.
direct: 2·B·T·d_in·d_out; a program holds a tile of Σ_t b_t a_tᵀ in registers.
Both leave terms that a second kernel adds in a fixed order. Sums are float32 (float64 for float64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._layer_tiles import channel_strides, constants, load_tile, multiply, parts_of, placed, sum_parts, weight_gradient
from ._layer_tune import LayerConfig, default_layer_config
from ._tiles import chosen_precision

TOKEN_TILE = (16, 64)
"""Samples and channels of a tile, where a sample has one token."""


@triton.jit
def token_products(
    rows, t0, t1, tokens, width, token_stride, channel_stride, total,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """total + x_t · x_t' for a tile of tokens t and one of tokens t'."""
    token = tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_D)
    for d0 in range(0, width, BLOCK_D):
        x = load_tile(rows, t0, token, d0, channel, tokens, width, token_stride, channel_stride)
        y = load_tile(rows, d0, channel, t1, token, width, tokens, channel_stride, token_stride)
        total = multiply(x, y, total, PRECISION)
    return total


@triton.jit
def layer_gram_kernel(
    parts,  # [B, P, 1]: P tiles of tokens of every group
    a,  # [B, T, d_in]
    b,  # [B, T, d_out]
    samples,
    tokens,
    inputs,  # of one group
    outputs,  # of one group
    groups,
    a_sample, a_token, a_channel, b_sample, b_token, b_channel,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Σ_{t,t'} (a_t·a_t' + 1)(b_t·b_t') for a tile of tokens t and all t' from that tile on, later ones counted twice."""
    program = tl.program_id(0)
    tiles = tl.cdiv(tokens, BLOCK_T)
    t0 = program % tiles * BLOCK_T
    group = tl.cast(program // tiles % groups, tl.int64)
    sample = tl.cast(program // tiles // groups, tl.int64)
    a += sample * a_sample + group * inputs * a_channel
    b += sample * b_sample + group * outputs * b_channel
    dtype = parts.dtype.element_ty
    score = tl.zeros((BLOCK_T,), dtype)
    for t1 in range(t0, tokens, BLOCK_T):
        x = token_products(
            a, t0, t1, tokens, inputs, a_token, a_channel, tl.zeros((BLOCK_T, BLOCK_T), dtype), PRECISION, BLOCK_T, BLOCK_I
        )
        y = token_products(
            b, t0, t1, tokens, outputs, b_token, b_channel, tl.zeros((BLOCK_T, BLOCK_T), dtype), PRECISION, BLOCK_T, BLOCK_O
        )
        if HAS_BIAS:
            x += 1.0  # where there is no token, y is zero
        both = tl.sum(x * y, axis=1)
        score += tl.where(t1 > t0, 2.0 * both, both)
    tl.store(parts + program, tl.sum(score, axis=0))


@triton.jit
def layer_square_kernel(
    parts,  # [B, P, 1]: P tiles of the weight
    a,  # [B, T, d_in]
    b,  # [B, T, d_out]
    samples,
    tokens,
    tiles,  # P
    inputs,  # of one group
    outputs,  # of one group
    a_sample, a_token, a_channel, b_sample, b_token, b_channel,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """‖Σ_t b_t a_tᵀ‖² over a tile of the weight; the first tile of a row adds the bias."""
    sample, tile = placed(1, samples, tiles)
    sample = tl.cast(sample, tl.int64)
    across = tl.cdiv(inputs, BLOCK_I)
    in_group = tl.cdiv(outputs, BLOCK_O) * across
    group = tl.cast(tile // in_group, tl.int64)
    o0 = tile % in_group // across * BLOCK_O
    i0 = tile % across * BLOCK_I
    a += sample * a_sample + group * inputs * a_channel
    b += sample * b_sample + group * outputs * b_channel
    dtype = parts.dtype.element_ty
    g, summed = weight_gradient(
        a, b, i0, o0, tokens, inputs, outputs, a_token, a_channel, b_token, b_channel, tl.zeros((BLOCK_O, BLOCK_I), dtype),
        HAS_BIAS, PRECISION, BLOCK_O, BLOCK_I, BLOCK_T,
    )  # fmt: skip
    terms = tl.sum(g * g, axis=1)
    if HAS_BIAS:
        terms += tl.where(i0 == 0, summed * summed, 0.0)
    tl.store(parts + sample * tiles + tile, tl.sum(terms, axis=0))


@triton.jit
def layer_token_kernel(
    parts,  # [B, G, 1]
    a,  # [B, 1, d_in]
    b,  # [B, 1, d_out]
    samples,
    inputs,  # of one group
    outputs,  # of one group
    groups,
    a_sample, a_channel, b_sample, b_channel,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(‖a‖² + 1)‖b‖² of a tile of samples of one token."""
    first = tl.program_id(0) // groups * BLOCK_N
    group = tl.cast(tl.program_id(0) % groups, tl.int64)
    a += group * inputs * a_channel
    b += group * outputs * b_channel
    sample = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    dtype = parts.dtype.element_ty
    x = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    y = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    for d0 in range(0, inputs, BLOCK_D):
        tile = load_tile(a, first, sample, d0, channel, samples, inputs, a_sample, a_channel).to(dtype)
        x += tile * tile
    for d0 in range(0, outputs, BLOCK_D):
        tile = load_tile(b, first, sample, d0, channel, samples, outputs, b_sample, b_channel).to(dtype)
        y += tile * tile
    size = tl.sum(x, axis=1)
    if HAS_BIAS:
        size += 1.0
    place = tl.cast(first + sample, tl.int64) * groups + group
    tl.store(parts + place, size * tl.sum(y, axis=1), mask=first + sample < samples)


def layer_norm_sq(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    groups: int,
    include_bias: bool,
    route: str,
    precision: str | None = None,
    config: LayerConfig | None = None,
) -> Tensor:
    """Fill `out` [B] with squared norms; a [B, T, d_in], b [B, T, d_out] of any strides."""
    samples, tokens, _ = a.shape
    inputs, outputs = a.shape[2] // groups, b.shape[2] // groups
    if tokens == 1 and route == "gram":
        parts = parts_of(out, samples, groups, 1)
        layer_token_kernel[(groups * triton.cdiv(samples, TOKEN_TILE[0]),)](
            parts, a, b, samples, inputs, outputs, groups, a.stride(0), a.stride(2), b.stride(0), b.stride(2),
            HAS_BIAS=include_bias, BLOCK_N=TOKEN_TILE[0], BLOCK_D=TOKEN_TILE[1],
        )  # fmt: skip
        return sum_parts(parts, out[:, None])
    precision = chosen_precision(out.dtype, precision)
    chosen = config or default_layer_config(route, torch.float64 if out.dtype == torch.float64 else a.dtype, precision)
    fixed = {**constants(out, precision, chosen), "HAS_BIAS": include_bias}
    if route == "direct":
        tiles = groups * triton.cdiv(outputs, chosen.outputs) * triton.cdiv(inputs, chosen.inputs)
        parts = parts_of(out, samples, tiles, 1)
        layer_square_kernel[(samples * tiles,)](
            parts, a, b, samples, tokens, tiles, inputs, outputs, *channel_strides(a, b), **fixed
        )
    else:
        tiles = groups * triton.cdiv(tokens, chosen.tokens)
        parts = parts_of(out, samples, tiles, 1)
        layer_gram_kernel[(samples * tiles,)](
            parts, a, b, samples, tokens, inputs, outputs, groups, *channel_strides(a, b), **fixed
        )
    return sum_parts(parts, out[:, None])
