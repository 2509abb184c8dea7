"""Block sizes of the head kernels: pure functions, so that a choice can be read, tested and overridden.

The large sizes are those that `python -m bench tune` found fastest on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def default_precision(dtype: torch.dtype, *, hip: bool = torch.version.hip is not None, interpreted: bool = False) -> str:
    """How products of float32 precision are taken: on NVIDIA by three TF32 products on the tensor cores, whose 22 bits of each
    operand keep the error of a sum within float32's own, and which are several times faster than products outside them.

    >>> default_precision(torch.float32, hip=True)
    'ieee'
    """
    return "ieee" if hip or interpreted or dtype == torch.float64 else "tf32x3"


LARGE_TILES = 160 * 1024
"""Bytes of shared memory a block that the large tiles need."""


def fits_large_tiles(features: torch.Tensor, form: Any) -> bool:
    """Whether rows are multiples of 16 elements, which alone are copied without passing through registers, the loss is a
    cross-entropy of plain labels, which leaves registers free, and the GPU is a Hopper or later with room for large tiles.

    It does not depend on the number of rows, nor may any choice that bits hang on. form: an ipfast.ops residual.
    """
    plain = form.loss == "cross_entropy" and form.class_target is None and form.targets is None
    device = features.device
    if not plain or features.shape[1] % 16 or features.stride(0) % 16 or device.type != "cuda" or torch.version.hip:
        return False
    about = torch.cuda.get_device_properties(device)
    return about.major >= 9 and about.shared_memory_per_block_optin >= LARGE_TILES


def default_config(
    width: int,
    classes: int,
    dtype: torch.dtype,
    precision: str = "ieee",
    *,
    query: bool = True,
    large: bool = False,
    hip: bool = torch.version.hip is not None,
) -> Config:
    """Block sizes for a head of `classes` × `width`.

    They do not depend on the number of rows, so that a score is the same bits in whatever batch its row comes. None spills on
    sm_80, sm_90 or gfx942, whatever the loss, but for some bytes of the large ones (tests/kernels).

    Args:
        width: d. classes: C. dtype: of the features. precision: one of PRECISIONS.
        query: whether products with a query are held beside the logits (head_dot; not head_norm).
        large: whether `fits_large_tiles`.
        hip: whether the GPU is AMD's.

    >>> default_config(512, 10, torch.float32).classes
    16
    """
    few = classes <= 16
    if dtype == torch.float64:
        # No tensor-core product in double on every target: products are broadcast and summed, so tiles are small.
        return Config(16, 4, 16, 4, 1) if query else Config(16, 8, 8, 4, 1)
    chunk = max(_power_of_two(width), 16)
    if large and precision == "tf32x3":
        return (
            Config(128, 16, min(chunk, 32), 8, 3) if few else Config(128, min(_power_of_two(classes), 64), min(chunk, 64), 8, 3)
        )
    if large and precision in ("tf32", "bf16"):
        chunk = min(chunk, 64)
        if few:
            return Config(128 if precision == "bf16" and query else 64, 16, chunk, 4, 3)
        tile = min(_power_of_two(classes), 128 if dtype == torch.bfloat16 else 64)
        return Config(128, tile, chunk, 8, 3 if precision == "bf16" else 2)
    chunk = min(chunk, 32)
    if precision == "ieee":
        # Exact float32 products run outside the tensor cores and hold both operands in registers.
        return Config(32, 16, chunk, 4, 1) if few else Config(32, 32, chunk, 8, 1)
    if precision == "tf32x3":
        # Three products a tile need their split operands in registers too.
        return Config(64, 16, chunk, 8, 2)
    if hip:
        # A second stage would keep its addresses in scalar registers, of which there are too few.
        return Config(64, 16, chunk, 4, 1) if few or query else Config(64, 32, chunk, 8, 1)
    return Config(64, 16, chunk, 4, 1 if precision == "tf32" and query else 2) if few else Config(64, 32, chunk, 8, 2)


COLUMNS = 64
"""Columns of a tile that holds the classes of several queries."""
MOST_TOGETHER = 8
"""Queries that one program meets at most: their sums are written out one after the other."""


def queries_together(classes: int, queries: int, dtype: torch.dtype, *, hip: bool = torch.version.hip is not None) -> int:
    """How many queries one program meets with a block of rows, whose features are then read once for all of them; one on AMD's
    GPUs, where a tile of them spills.

    >>> queries_together(10, 5, torch.float32)
    5
    >>> queries_together(1000, 5, torch.float32)
    1
    """
    if dtype == torch.float64 or hip:
        return 1
    return max(min(queries, COLUMNS // classes, MOST_TOGETHER), 1)


def members_config(width: int, columns: int, precision: str = "ieee", *, large: bool = False) -> Config:
    """Block sizes where the classes of several queries lie side by side in `columns` columns (at most COLUMNS).

    >>> members_config(512, 50).classes
    64
    """
    tile, chunk = max(_power_of_two(columns), 16), max(_power_of_two(width), 16)
    if large and precision == "bf16":
        return Config(64, tile, min(chunk, 64), 4, 3)
    if large and precision != "ieee":
        return Config(128, tile, min(chunk, 64), 8, 3)
    return Config(32, tile, min(chunk, 32), 8, 1 if precision == "ieee" else 2)


def _power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()
