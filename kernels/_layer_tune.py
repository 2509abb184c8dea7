"""Block sizes of the layer kernels: one pure function, as `default_config` of the head kernels, and found in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerConfig:
    """One program holds a tile of `tokens` × `outputs` (contract), `outputs` × `inputs` (direct) or twice `tokens` × `tokens`
    (gram) and goes through the third axis in steps."""

    tokens: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def default_layer_config(
    route: str, dtype: torch.dtype, precision: str = "ieee", *, hip: bool = torch.version.hip is not None
) -> LayerConfig:
    """Block sizes of a route of layer_dot or layer_norm_sq.

    They do not depend on the number of samples, so that a score is the same bits in whatever batch its sample comes. None
    spills on sm_80, sm_90 or gfx942 (tests/kernels).

    Args:
        route: "contract", "direct" or "gram". dtype: of the computation (float64) or of the narrower inputs.
        precision: one of PRECISIONS. hip: whether the GPU is AMD's.

    >>> default_layer_config("direct", torch.float32).inputs
    32
    """
    if dtype == torch.float64:
        # No tensor-core product in double on every target: products are broadcast and summed, so tiles are small.
        return {
            "contract": LayerConfig(16, 4, 16, 4, 1),
            "direct": LayerConfig(8, 16, 8, 4, 1),
            "gram": LayerConfig(8, 8, 8, 4, 1),
        }[route]
    if precision == "ieee":
        # Exact float32 products run outside the tensor cores and hold both operands in registers.
        return LayerConfig(32, 32, 16 if route == "contract" else 32, 8, 1)
    if precision == "tf32x3":
        # Three products a tile need their split operands in registers too.
        return {
            "contract": LayerConfig(64, 32, 32, 8, 2),
            "direct": LayerConfig(16, 64, 32, 8, 2),
            "gram": LayerConfig(32, 32, 32, 8, 1),
        }[route]
    if hip:
        # A second stage would keep its addresses in scalar registers, of which there are too few.
        return {
            "contract": LayerConfig(64, 64, 32, 8, 1),
            "direct": LayerConfig(32, 64, 32, 8, 1),
            "gram": LayerConfig(64, 32, 32, 8, 1),
        }[route]
    return {
        "contract": LayerConfig(64, 64, 32, 8, 2),
        "direct": LayerConfig(32, 64, 64, 8, 2),
        "gram": LayerConfig(64, 32, 32, 8, 1),
    }[route]
