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


def default_config(
    width: int,
    classes: int,
    dtype: torch.dtype,
    precision: str = "ieee",
    *,
    query: bool = True,
    hip: bool = torch.version.hip is not None,
) -> Config:
    """Block sizes for a head of `classes` × `width`.

    They do not depend on the number of rows, so that a score is the same bits in whatever batch its row comes. None spills on
    sm_80, sm_90 or gfx942, whatever the loss (tests/kernels).

    Args:
        width: d. classes: C. dtype: of the features. precision: one of PRECISIONS.
        query: whether products with a query are held beside the logits (head_dot; not head_norm).
        hip: whether the GPU is AMD's.

    >>> default_config(512, 10, torch.float32).classes
    16
    """
    few = classes <= 16
    if dtype == torch.float64:
        # No tensor-core product in double on every target: products are broadcast and summed, so tiles are small.
        return Config(16, 4, 16, 4, 1) if query else Config(16, 8, 8, 4, 1)
    width = min(max(_power_of_two(width), 16), 32)
    if precision == "ieee":
        # Exact float32 products run outside the tensor cores and hold both operands in registers.
        return Config(32, 16, width, 4, 1) if few else Config(32, 32, width, 8, 1)
    if precision == "tf32x3":
        # Three products a tile need their split operands in registers too.
        return Config(64, 16, width, 8, 2)
    if hip:
        # A second stage would keep its addresses in scalar registers, of which there are too few.
        return Config(64, 16, width, 4, 1) if few or query else Config(64, 32, width, 8, 1)
    return Config(64, 16, width, 4, 1 if precision == "tf32" and query else 2) if few else Config(64, 32, width, 8, 2)


def _power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()
