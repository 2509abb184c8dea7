"""What the machine can do: copy bandwidth and matrix products, timed in the same rounds as the contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .measure import Timing

COPY, PRODUCT = "roofline: copy", "roofline: product"


@dataclass(frozen=True)
class Roofline:
    """What one dtype can reach on one device; the faster fifth of the repeats counts."""

    copy_bytes_per_second: float  # read plus written
    product_flops_per_second: float


class Probe:
    """A copy between two large buffers and a product of two large square matrices."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        on_gpu = device.type == "cuda"
        self.count, self.size = (2**28, 8192) if on_gpu else (2**26, 2048)
        self.source = torch.ones(self.count, dtype=dtype, device=device)
        self.target = torch.zeros_like(self.source)
        self.left, self.right = (torch.randn(self.size, self.size, device=device).to(dtype) for _ in range(2))
        self.product = torch.zeros_like(self.left)

    @property
    def calls(self) -> dict[str, Callable[[], object]]:
        """To be timed with the contenders."""
        return {
            COPY: lambda: self.target.copy_(self.source),
            PRODUCT: lambda: torch.mm(self.left, self.right, out=self.product),
        }

    def result(self, timings: Mapping[str, Timing]) -> Roofline:
        """From the timings of `calls`."""
        moved = 2 * self.count * self.source.element_size()
        return Roofline(moved / timings[COPY].p20, 2 * self.size**3 / timings[PRODUCT].p20)
