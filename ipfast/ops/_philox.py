"""Philox4x32-10 in NumPy and in torch: a counter and a key to four random words, without a state (Salmon et al., SC 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF


def fnv1a32(data: bytes) -> int:
    """FNV-1a, 32 bits."""
    result = 0x811C9DC5
    for byte in data:
        result = (result ^ byte) * 0x01000193 & WORD
    return result


def numpy_words(c0: Any, c1: Any, c2: int, c3: int, seed: int) -> np.ndarray:
    """Words [..., 4] (uint64, each below 2³²) of the counters (c0, c1, c2, c3); c0 and c1 broadcast, seed is 64 bits."""
    first, second = np.broadcast_arrays(np.asarray(c0, dtype=np.uint64), np.asarray(c1, dtype=np.uint64))
    x0, x1, x2, x3 = first, second, np.full_like(first, c2), np.full_like(first, c3)
    m0, m1, low, half = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1]), np.uint64(WORD), np.uint64(32)
    for k0, k1 in _round_keys(seed):
        a, b = m0 * x0, m1 * x2
        x0, x1, x2, x3 = (b >> half) ^ x1 ^ np.uint64(k0), b & low, (a >> half) ^ x3 ^ np.uint64(k1), a & low
    return np.stack((x0, x1, x2, x3), axis=-1)


def torch_words(c0: Tensor, c1: Tensor, c2: int, c3: int, seed: int) -> Tensor:
    """`numpy_words` in int64 tensors on the counters' device."""
    x0, x1 = c0 + torch.zeros_like(c1), c1 + torch.zeros_like(c0)
    x2, x3 = torch.full_like(x0, c2), torch.full_like(x0, c3)
    for k0, k1 in _round_keys(seed):
        (high_a, low_a), (high_b, low_b) = _wide_product(x0, MULTIPLIERS[0]), _wide_product(x2, MULTIPLIERS[1])
        x0, x1, x2, x3 = high_b ^ x1 ^ k0, low_b, high_a ^ x3 ^ k1, low_a
    return torch.stack((x0, x1, x2, x3), dim=-1)


def _round_keys(seed: int) -> list[tuple[int, int]]:
    low, high = seed & WORD, seed >> 32
    return [(low + r * KEY_STEPS[0] & WORD, high + r * KEY_STEPS[1] & WORD) for r in range(ROUNDS)]


def _wide_product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of x·multiplier, by halves of x: int64 has no room for 64 unsigned bits."""
    upper, lower = (x >> 16) * multiplier, (x & 0xFFFF) * multiplier
    return (upper + (lower >> 16)) >> 16, ((upper & 0xFFFF) << 16) + lower & WORD
