"""No curvature: the Hessian-free influence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .base import Gradients, PointCurvature, Problem, QuadraticFactors


@dataclass(frozen=True)
class Identity(PointCurvature):
    """H⁻¹ = I: the query is the gradient of the impact itself, and the self-influence is ‖g_i‖². It needs no training data."""

    quadratics = True

    def fit(self, problem: Problem) -> QuadraticFactors:
        return _Identity()


class _Identity(QuadraticFactors):
    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}

    def solve(self, v: Tensor) -> Tensor:
        return v

    def quadratic(self, gradients: Gradients) -> Tensor:
        return gradients.squares().sum(dim=1)
