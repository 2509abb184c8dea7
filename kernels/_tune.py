"""Block sizes of the head kernels: one pure function, so that a choice can be read, tested and overridden."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
"""How float32 products are taken: exactly, by three or one TF32 products, or rounded to bfloat16. Sums are float32 always."""


@dataclass(frozen=True)
class Config:
    """One program scores `rows` rows against `classes` classes at a time, over chunks of `width` features."""

    rows: int
    classes: int
    width: int
    num_warps: int
    num_stages: int


def default_config(width: int, classes: int, dtype: torch.dtype, precision: str = "ieee") -> Config:
    """Block sizes for a head of `classes` × `width`.

    They do not depend on the number of rows, so that a score is the same bits in whatever batch its row comes.

    Args:
        width: d. classes: C. dtype: of the features. precision: one of PRECISIONS.

    >>> default_config(512, 10, torch.float32).classes
    16
    """
    chunk = min(max(_power_of_two(width), 16), 64)
    if dtype == torch.float64:
        # No tensor-core product in double on every target: products are broadcast and summed, so tiles are small.
        return Config(rows=16, classes=min(max(_power_of_two(classes), 2), 8), width=min(chunk, 16), num_warps=4, num_stages=1)
    tile = min(max(_power_of_two(classes), 16), 64)
    if precision == "ieee":
        # Exact float32 products run outside the tensor cores and hold both operands in registers.
        return Config(rows=32, classes=min(tile, 32), width=min(chunk, 32), num_warps=4, num_stages=2)
    return Config(rows=64, classes=tile, width=chunk, num_warps=4, num_stages=2 if precision == "tf32x3" else 3)


def _power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()
