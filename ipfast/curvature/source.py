"""SOURCE: the training run unrolled segment by segment, with EKFAC factors of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Curvature, Problem
from .ekfac import EKFAC, EKFACFactors


@dataclass(frozen=True)
class Source(Curvature):
    """With η_l K_l of the segments of a training run (`Segments`) and H_l their curvature,

        q_L = ∇f(θ_T),   q_{l−1} = exp(−η_l K_l H_l) q_l,   s_i = Σ_l ⟨(I − exp(−η_l K_l H_l)) H_l⁻¹ q_l, ḡ_li⟩

    with ḡ_li the mean gradient of sample i over the checkpoints of segment l. s_i/N estimates the change of the impact when
    sample i is left out of the run. H_l has EKFAC's form, of covariances averaged over the segment's checkpoints; no damping
    is needed.

    Args:
        empirical, seed: as in EKFAC.

    Source: arXiv 2405.12186.
    """

    stored = True

    empirical: bool = False
    seed: int = 0

    def fit_segment(self, problems: Callable[[], Iterable[Problem]]) -> EKFACFactors:
        """EKFAC factors of one segment, of covariances and second moments averaged over the problems at its checkpoints, which
        are gone through twice."""
        return EKFAC(damping=None, empirical=self.empirical, seed=self.seed).fit_mean(problems)

    def unrolled(
        self, factors: Sequence[EKFACFactors], times: Sequence[float], v: Tensor
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The query of each segment [Q, P] in order, from ∇f at the end of the run, and what is worth telling."""
        found: list[Tensor] = []
        about: list[dict[str, Any]] = []
        q = v.double()
        for factor, time in zip(reversed(factors), reversed(times), strict=True):
            found.append(factor.apply(q, lambda values, t=time: t * _decay(t * values)))  # type: ignore[misc]
            q = factor.apply(q, lambda values, t=time: torch.exp(-t * values))  # type: ignore[misc]
            about.append({"time": time, "kept": float(q.norm() / v.norm().clamp(min=1e-300))})
        return found[::-1], about[::-1]


def _decay(x: Tensor) -> Tensor:
    """(1 − e^{−x})/x, one at zero."""
    return torch.where(x.abs() < 1e-300, torch.ones_like(x), -torch.expm1(-x) / x.where(x != 0, torch.ones_like(x)))
