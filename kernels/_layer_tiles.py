"""Pieces that the layer kernels share: tiles of any strides, products, and the sum of what the programs leave."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SUM_TILE = {"BLOCK_N": 16, "BLOCK_K": 32}
"""Results and terms that one program adds up at once."""


@triton.jit
def load_tile(pointer, first, row, second, column, height, width, row_stride, column_stride):
    """Rows first + row and columns second + column of a [height, width] matrix of any strides, zero outside.

    The tile's corner has a 64-bit address; offsets inside a tile are 32-bit, which saves registers.
    """
    inside = (first + row < height)[:, None] & (second + column < width)[None, :]
    corner = pointer + tl.cast(first, tl.int64) * row_stride + tl.cast(second, tl.int64) * column_stride
    return tl.load(corner + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def multiply(x, y, total, PRECISION: tl.constexpr):
    """total + x y for x [M, K] and y [K, N]."""
    if PRECISION == "fp64":
        return total + tl.sum(x.to(tl.float64)[:, :, None] * y.to(tl.float64)[None, :, :], axis=1)
    elif PRECISION == "bf16":  # noqa: RET505 (a chain of compile-time branches)
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16), total)
    else:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision=PRECISION)


@triton.jit
def weight_gradient(
    a, b, first_input, first_output, tokens, inputs, outputs, a_token, a_channel, b_token, b_channel, g,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """(g + Σ_t b_t a_tᵀ, Σ_t b_t) of one tile of a group's weight [outputs, inputs]; the second only with HAS_BIAS."""
    row = tl.arange(0, BLOCK_O)
    column = tl.arange(0, BLOCK_I)
    token = tl.arange(0, BLOCK_T)
    # Summed over the tokens of a tile at the end: a reduction in this loop is one that some versions of triton cannot compile.
    summed = tl.zeros((BLOCK_O, BLOCK_T), g.dtype)
    for t0 in range(0, tokens, BLOCK_T):
        y = load_tile(b, first_output, row, t0, token, outputs, tokens, b_channel, b_token)
        x = load_tile(a, t0, token, first_input, column, tokens, inputs, a_token, a_channel)
        g = multiply(y, x, g, PRECISION)
        if HAS_BIAS:
            summed += y.to(g.dtype)
    return g, tl.sum(summed, axis=1)


@triton.jit
def placed(SAMPLES: tl.constexpr, samples, tiles):
    """(sample, tile) of this program: SAMPLES samples by turns at each tile, so that its query is fetched once for them."""
    program = tl.program_id(0)
    together = SAMPLES * tiles
    first = program // together * SAMPLES
    count = tl.minimum(samples - first, SAMPLES)
    rest = program % together
    return first + rest % count, rest // count


@triton.jit
def sum_parts_kernel(
    parts,  # [N, K, Q]
    out,  # [N, Q]
    size,  # N·Q
    terms,  # K
    queries,  # Q
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums in a fixed order and in float64, whatever the number of rows."""
    place = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    term = tl.arange(0, BLOCK_K)
    corner = parts + (place // queries * terms * queries + place % queries)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float64)
    for k0 in range(0, terms, BLOCK_K):
        inside = (place < size)[:, None] & (k0 + term < terms)[None, :]
        total += tl.load(corner + tl.cast(k0 + term, tl.int64)[None, :] * queries, mask=inside, other=0.0).to(tl.float64)
    tl.store(out + place, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=place < size)


def sum_parts(parts: Tensor, out: Tensor) -> Tensor:
    """out [N, Q] = Σ_k parts [N, K, Q]."""
    _, terms, queries = parts.shape
    if out.data_ptr() != parts.data_ptr():
        blocks = triton.cdiv(out.numel(), SUM_TILE["BLOCK_N"])
        sum_parts_kernel[(blocks,)](parts, out, out.numel(), terms, queries, **SUM_TILE)
    return out


def parts_of(out: Tensor, rows: int, terms: int, queries: int) -> Tensor:
    """Room [rows, terms, queries] for what the programs leave; `out` itself where nothing is left to add."""
    if rows * terms * queries == out.numel():
        return out.view(rows, terms, queries)
    return out.new_empty(rows, terms, queries)


def constants(out: Tensor, precision: str, config: Any) -> dict[str, Any]:
    """The compile-time arguments that all layer kernels have; precision: of `chosen_precision`."""
    return {
        "PRECISION": "fp64" if out.dtype == torch.float64 else precision,
        "BLOCK_O": config.outputs,
        "BLOCK_I": config.inputs,
        "BLOCK_T": config.tokens,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def channel_strides(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Strides of the samples, tokens and channels of both."""
    return (*a.stride(), *b.stride())
