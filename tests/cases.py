"""Shapes and data that every backend of every head operation is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOSSES = ("cross_entropy", "bce_with_logits", "mse")


@dataclass(frozen=True)
class HeadCase:
    """One shape: N rows, d features, C outputs."""

    name: str
    rows: int
    width: int
    classes: int

    def __str__(self) -> str:
        return self.name


HEAD_CASES = (
    HeadCase("aligned", 64, 128, 16),
    HeadCase("ragged", 45, 75, 9),
    HeadCase("prime", 37, 61, 13),
    HeadCase("one_sample", 1, 33, 5),
    HeadCase("two_classes", 50, 40, 2),
    HeadCase("one_feature", 19, 1, 3),
    HeadCase("thousand_classes", 21, 48, 1000),
    HeadCase("several_tiles", 70, 20, 613),
)


@dataclass(frozen=True)
class HeadData:
    """Arguments of head_dot; `norm_arguments` are those of head_norm."""

    h: Tensor
    y: Tensor
    w: Tensor
    b: Tensor
    g: Tensor
    gb: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return self.h, self.y, self.w, self.b, self.g, self.gb

    @property
    def norm_arguments(self) -> tuple[Tensor, ...]:
        return self.h, self.y, self.w, self.b


def head_data(case: HeadCase, loss: str, dtype: torch.dtype, seed: int = 0) -> HeadData:
    """Random data of a case; the values are exact in `dtype`, so every dtype has its own float64 truth."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, d, c = case.rows, case.width, case.classes
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    h = normal(n, d).to(dtype)
    w = (2 * normal(c, d) / d**0.5).to(compute)
    b, g, gb = (t.to(compute) for t in (normal(c), normal(c, d) / c, normal(c) / c))
    if loss == "cross_entropy":
        y = torch.randint(0, c, (n,), generator=generator)
    elif loss == "bce_with_logits":
        y = torch.randint(0, 2, (n, c), generator=generator).to(compute)
    else:
        y = normal(n, c).to(compute)
    return HeadData(h, y, w, b, g, gb)


def confident_case(dtype: torch.dtype) -> HeadData:
    """Samples whose own class has probability 1 − 1e-3, …, 1 − 1e-8: where the plain form cancels."""
    generator = torch.Generator().manual_seed(1)
    classes, width = 10, 32
    w = torch.linalg.qr(torch.randn(width, classes, generator=generator, dtype=torch.float64))[0].T.contiguous()
    doubt = torch.tensor([1e-3, 1e-5, 1e-7, 1e-8], dtype=torch.float64)
    y = torch.arange(4)
    # With orthonormal rows of W, h = Wᵀ z has exactly the logits z: z_y = log((C−1)(1−δ)/δ), 0 elsewhere.
    z = torch.zeros(4, classes, dtype=torch.float64)
    z[torch.arange(4), y] = torch.log((classes - 1) * (1 - doubt) / doubt)
    g = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    gb = torch.randn(classes, generator=generator, dtype=torch.float64)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return HeadData((z @ w).to(dtype), y, w.to(compute), torch.zeros(classes, dtype=compute), g.to(compute), gb.to(compute))
