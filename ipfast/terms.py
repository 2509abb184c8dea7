"""The terms of a query: what is computed at each point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .curvature import Problem, QuadraticFactors
from .points import Point


@dataclass(frozen=True)
class Dot:
    """w·⟨q, ∇ℓ_i(θ)⟩ with the query q in two parts, G [C, d] and G_b [C]; [Q, C, d] and [Q, C] for several queries."""

    weight: float
    point: Point
    gradient: Tensor
    bias_gradient: Tensor | None


@dataclass(frozen=True)
class NetworkDot:
    """w·⟨q, ∇ℓ_i(θ)⟩ with the query q by parameter name, each [Q, *shape]."""

    weight: float
    point: Point
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Quadratic:
    """w·⟨∇ℓ_i(θ), H⁻¹ ∇ℓ_i(θ)⟩, the self-influence.

    Attributes:
        factors: a curvature fitted to `problem`; None: H = I.
    """

    weight: float
    point: Point
    factors: QuadraticFactors | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class LossDeviation:
    """w·(ℓ_i(θ) − max(ℓ_i(θ̂), ε))·c with c = ℓ_V(θ) − max(ℓ_V(θ̂), ε): GEX's own estimator. The first term of a query is θ̂.

    Attributes:
        deviation: c [Q]; None: the sample's own deviation, squared.
        floor: ε.
    """

    weight: float
    point: Point
    deviation: Tensor | None
    floor: float


Term = Dot | NetworkDot | Quadratic | LossDeviation
