"""layer_dot on the GPU: every sample's gradient at a linear layer times queries. Meaning: ipfast/ops/layer_dot.py.

contract: 2·Q·B·T·d_in·d_out flops; a program multiplies a tile of tokens with a piece of V_q and keeps b_tᵀ(V a_t) only.
direct: 2·B·T·d_in·d_out + 2·Q·B·d_in·d_out; a program holds a tile of Σ_t b_t a_tᵀ in registers and meets all queries with it.
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

PIECE = 256
"""Outputs that one program of contract goes through: few tokens then still make many programs."""
SAMPLES = 8
"""Samples that meet a tile of the queries one after the other, while it is in the cache."""


@triton.jit
def layer_contract_kernel(
    parts,  # [B·T, P, Q]: P pieces of the outputs
    a,  # [B, T, d_in]
    b,  # [B, T, d_out]
    query,  # [Q, d_out, d_in/G]
    query_bias,  # [Q, d_out]
    tokens,
    queries,
    pieces,
    inputs,  # of one group
    outputs,  # of one group
    channels,  # d_out
    a_sample, a_token, a_channel, b_sample, b_token, b_channel,
    HAS_BIAS: tl.constexpr,
    PIECE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """b_tᵀ (V a_t + V_b) over a piece of the outputs, for a tile of a sample's tokens and one query."""
    program = tl.program_id(0)
    q = program % queries
    piece = program // queries % pieces
    tile = program // queries // pieces
    tiles = tl.cdiv(tokens, BLOCK_T)
    sample = tl.cast(tile // tiles, tl.int64)
    t0 = tile % tiles * BLOCK_T
    in_group = tl.cdiv(outputs, PIECE)
    group = piece // in_group
    start = piece % in_group * PIECE
    stop = tl.minimum(start + PIECE, outputs)
    a += sample * a_sample + tl.cast(group, tl.int64) * inputs * a_channel
    b += sample * b_sample + tl.cast(group, tl.int64) * outputs * b_channel
    query += (tl.cast(q, tl.int64) * channels + group * outputs) * inputs
    query_bias += tl.cast(q, tl.int64) * channels + group * outputs
    token = tl.arange(0, BLOCK_T)
    output = tl.arange(0, BLOCK_O)
    column = tl.arange(0, BLOCK_I)
    dtype = parts.dtype.element_ty
    score = tl.zeros((BLOCK_T,), dtype)
    for o0 in range(start, stop, BLOCK_O):
        u = tl.zeros((BLOCK_T, BLOCK_O), dtype)
        for i0 in range(0, inputs, BLOCK_I):
            x = load_tile(a, t0, token, i0, column, tokens, inputs, a_token, a_channel)
            v = load_tile(query, i0, column, o0, output, inputs, stop, 1, inputs)
            u = multiply(x, v, u, PRECISION)
        if HAS_BIAS:
            u += tl.load(query_bias + o0 + output, mask=o0 + output < stop, other=0.0)[None, :]
        y = load_tile(b, t0, token, o0, output, tokens, stop, b_token, b_channel)
        score += tl.sum(u * y.to(dtype), axis=1)
    place = ((sample * tokens + t0 + token) * pieces + piece) * queries + q
    tl.store(parts + place, score, mask=t0 + token < tokens)


@triton.jit
def layer_direct_kernel(
    parts,  # [B, P, Q]: P tiles of the weight
    a,  # [B, T, d_in]
    b,  # [B, T, d_out]
    query,  # [Q, d_out, d_in/G]
    query_bias,  # [Q, d_out]
    samples,
    tokens,
    queries,
    tiles,  # P
    inputs,  # of one group
    outputs,  # of one group
    channels,  # d_out
    a_sample, a_token, a_channel, b_sample, b_token, b_channel,
    HAS_BIAS: tl.constexpr,
    SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """⟨V_q, Σ_t b_t a_tᵀ⟩ over a tile of the weight, for one sample and all queries; the first tile of a row adds the bias."""
    sample, tile = placed(SAMPLES, samples, tiles)
    sample = tl.cast(sample, tl.int64)
    across = tl.cdiv(inputs, BLOCK_I)
    in_group = tl.cdiv(outputs, BLOCK_O) * across
    group = tile // in_group
    o0 = tile % in_group // across * BLOCK_O
    i0 = tile % across * BLOCK_I
    a += sample * a_sample + tl.cast(group, tl.int64) * inputs * a_channel
    b += sample * b_sample + tl.cast(group, tl.int64) * outputs * b_channel
    dtype = parts.dtype.element_ty
    output = tl.arange(0, BLOCK_O)
    column = tl.arange(0, BLOCK_I)
    g, summed = weight_gradient(
        a, b, i0, o0, tokens, inputs, outputs, a_token, a_channel, b_token, b_channel, tl.zeros((BLOCK_O, BLOCK_I), dtype),
        HAS_BIAS, PRECISION, BLOCK_O, BLOCK_I, BLOCK_T,
    )  # fmt: skip
    place = parts + (sample * tiles + tile) * queries
    for q in range(queries):
        first = tl.cast(q, tl.int64) * channels + group * outputs
        v = load_tile(query + first * inputs, o0, output, i0, column, outputs, inputs, inputs, 1)
        terms = tl.sum(g * v, axis=1)
        if HAS_BIAS:
            stop = tl.where(i0 == 0, outputs, 0)
            terms += summed * tl.load(query_bias + first + o0 + output, mask=o0 + output < stop, other=0.0)
        tl.store(place + q, tl.sum(terms, axis=0))


def layer_dot(
    a: Tensor,
    b: Tensor,
    query: Tensor,
    query_bias: Tensor | None,
    out: Tensor,
    *,
    groups: int,
    route: str,
    precision: str | None = None,
    config: LayerConfig | None = None,
) -> Tensor:
    """Fill `out` [B, 1 or T, Q]; a [B, T, d_in] and b [B, T, d_out] of any strides, query [Q, d_out, d_in/G], query_bias."""
    samples, tokens, _ = a.shape
    queries, channels, inputs = query.shape
    outputs = channels // groups
    precision = chosen_precision(out.dtype, precision)
    chosen = config or default_layer_config(route, torch.float64 if out.dtype == torch.float64 else a.dtype, precision)
    fixed = {**constants(out, precision, chosen), "HAS_BIAS": query_bias is not None}
    bias = query if query_bias is None else query_bias  # an absent array is never read
    if route == "direct":
        tiles = groups * triton.cdiv(outputs, chosen.outputs) * triton.cdiv(inputs, chosen.inputs)
        parts = parts_of(out, samples, tiles, queries)
        layer_direct_kernel[(samples * tiles,)](
            parts, a, b, query, bias, samples, tokens, queries, tiles, inputs, outputs, channels, *channel_strides(a, b),
            SAMPLES=SAMPLES, **fixed,
        )  # fmt: skip
        return sum_parts(parts, out[:, 0])
    pieces = groups * triton.cdiv(outputs, PIECE)
    terms = pieces * tokens // out.shape[1]  # of each result
    parts = parts_of(out, samples * out.shape[1], terms, queries)
    if all(value.stride(0) == tokens * value.stride(1) for value in (a, b)):
        # Tokens that follow each other from sample to sample fill the tiles even where a sample has few.
        a, b = a.flatten(0, 1)[None], b.flatten(0, 1)[None]
    layer_contract_kernel[(a.shape[0] * triton.cdiv(a.shape[1], chosen.tokens) * pieces * queries,)](
        parts, a, b, query, bias, a.shape[1], queries, pieces, inputs, outputs, channels, *channel_strides(a, b),
        PIECE=PIECE, **fixed,
    )  # fmt: skip
    return sum_parts(parts, out.flatten(0, 1))
