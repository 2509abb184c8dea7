"""DataInf: the mean of the inverses of the samples' own Fisher matrices, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Factors, PointCurvature, Problem
from .damping import SHARE, check_number


@dataclass(frozen=True)
class DataInf(PointCurvature):
    """H⁻¹ ≈ (1/N) Σ_i (g_i g_iᵀ + λ I)⁻¹ for each parameter tensor l by itself, so that by the Sherman-Morrison formula

        q_l = (1/λ_l) (v_l − (1/N) Σ_i c_il g_il),   c_il = ⟨v_l, g_il⟩ / (λ_l + ‖g_il‖²),   λ_l = damping·mean of g_il²

    Two passes over the data, or one more than the scores need; at the last layer no gradient is formed.

    Args:
        damping: λ_l over the mean squared entry of the gradients.

    Source: arXiv 2310.00902, whose code returns the negated scores.
    """

    damping: float = SHARE

    def __post_init__(self) -> None:
        check_number("DataInf", "damping", self.damping, positive=True)

    def fit(self, problem: Problem) -> DataInfFactors:
        return DataInfFactors(self, problem)


class DataInfFactors(Factors):
    """λ_l of each parameter tensor, known after the first solve."""

    def __init__(self, about: DataInf, problem: Problem) -> None:
        self.about, self.problem = about, problem
        self.stats: dict[str, Any] = {}

    def solve(self, v: Tensor) -> Tensor:
        problem = self.problem
        v = v.double()
        # λ is a mean over all samples: their products are kept until it is known, two numbers a sample, query and tensor.
        dots, squares = [], []
        for block in problem.gradients():
            dots.append(block.dots(v).double())
            squares.append(block.squares().double())
        sizes = torch.tensor([part.size for part in problem.parts], dtype=torch.float64, device=problem.device)
        damping = self.about.damping * torch.stack([each.sum(dim=0) for each in squares]).sum(dim=0) / (problem.samples * sizes)
        self.stats["damping"] = damping.tolist()
        met = torch.zeros_like(v)
        for block, dot, square in zip(problem.gradients(), dots, squares, strict=True):
            # A tensor that no sample moves has λ = 0 and gradients of zero: its query meets nothing.
            met += block.weighted(dot / (damping + square).clamp(min=torch.finfo(torch.float64).tiny)[:, None])
        out = v - met / problem.samples
        for part, weight in zip(problem.parts, damping.tolist(), strict=True):
            out[:, part.place] *= 1 / weight if weight > 0 else 0.0
        return out
