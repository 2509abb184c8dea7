"""A Neumann series for the inverse Hessian: products with the Hessian only."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, IpfastWarning
from ..registry import check_choice
from .base import Gradients, PointCurvature, Problem, QuadraticFactors
from .damping import SHARE, check_number, chosen_damping
from .exact import CholeskyFactors

POWER_STEPS = 20
MARGIN = 1.1
"""Scale over the largest eigenvalue, which twenty power iterations tell to a few per cent from below."""
GROWTH = 1e3
"""Of the change from one step to the next over the first one, by which a series is known to diverge."""
SELF_BYTES = 64 * 2**20
"""Solutions h_i [P] that the self-influence holds at once."""

SOLVED = 8192
"""Parameters up to which the limit of the self-influence's series is solved."""


@dataclass(frozen=True)
class LiSSA(PointCurvature):
    """h_0 = v, h_{j+1} = v + h_j − (∇²L + damping·I) h_j / scale, and H⁻¹v ≈ h_J / scale.

    It converges to (∇²L + damping·I)⁻¹ v.

    Every step is a pass over all samples: at the last layer 6NCd operations a query, without a gradient. It stops where the
    estimated distance to the limit is below tol; a series that grows is an error.

    With operator="fisher" it is the variant of other papers on this subject, of fixed length and without a scale, for each
    parameter tensor by itself: r_{j+1} = v + r_j − (F + λ_l) r_j, F = (1/N) Σ g_i g_iᵀ, λ_l = 0.1·mean of g², J = 10.

    Args:
        damping: a number, in units of the mean loss; "auto": 0.1·tr(∇²L)/P. Of "fisher": λ_l over the mean of g², 0.1.
        scale: a number above half of the largest eigenvalue; "auto": 1.1 times the largest, by 20 power iterations.
        steps: J at most; None: 1000, of "fisher" 10, and all of them.
        tol: relative distance to the limit.
        operator: "hessian", "ggn" (never indefinite) or "fisher".
        mode: of the self-influence: "full", ⟨g_i, H⁻¹ g_i⟩ with the curvature of all data: a series of its own for each sample,
            so N passes a step, but with up to 8192 parameters and steps=None its limit, by a Cholesky factor; or "single",
            that of each sample alone by "fisher", which some papers ran.

    Source: arXiv 1602.03943; for influence arXiv 1703.04730, where the effective damping is δ·scale.
    """

    quadratics = True

    damping: float | str = "auto"
    scale: float | str = "auto"
    steps: int | None = None
    tol: float = 1e-3
    operator: str = "hessian"
    mode: str = "full"

    def __post_init__(self) -> None:
        check_number("LiSSA", "damping", self.damping, allowed="auto")
        check_number("LiSSA", "scale", self.scale, allowed="auto", positive=True)
        check_number("LiSSA", "tol", self.tol)
        check_choice("LiSSA", "operator", self.operator, ("hessian", "ggn", "fisher"))
        check_choice("LiSSA", "mode", self.mode, ("full", "single"))
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1):
            raise InputError(f"LiSSA: expected steps to be a whole number above 0, or None; got {self.steps!r}.")

    def fit(self, problem: Problem) -> QuadraticFactors:
        if self.operator == "fisher" or self.mode == "single":
            return FisherSeries(self, problem)
        return Series(self, problem)


class Series(QuadraticFactors):
    """The series with the Hessian."""

    def __init__(self, about: LiSSA, problem: Problem) -> None:
        self.about, self.problem = about, problem
        self.ggn = about.operator == "ggn"
        self._factors: CholeskyFactors | None = None
        self.damping = chosen_damping(problem.where, about.damping, problem, ggn=self.ggn)
        self.scale = self._scale() if isinstance(about.scale, str) else float(about.scale)
        self.stats: dict[str, Any] = {"damping": self.damping, "scale": self.scale, "steps": 0, "converged": True}

    def _apply(self, v: Tensor) -> Tensor:
        return self.problem.hessian(v, ggn=self.ggn).add_(v, alpha=self.damping)

    def _scale(self) -> float:
        """MARGIN times the largest |eigenvalue| of ∇²L + damping."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(1, self.problem.size, generator=generator, dtype=torch.float64).to(self.problem.device)
        largest = 0.0
        for _ in range(POWER_STEPS):
            v = self._apply(v / v.norm())
            largest = float(v.norm())
            if not math.isfinite(largest) or largest == 0:
                raise InputError(
                    f"{self.problem.where}: expected a finite curvature above zero for LiSSA; got {largest:g}. Pass damping=."
                )
        return MARGIN * largest

    def solve(self, v: Tensor) -> Tensor:
        about, where = self.about, self.problem.where
        v = v.double()
        h, before, first = v.clone(), math.inf, 0.0
        most = about.steps or 1000
        distance = math.inf
        for step in range(1, most + 1):
            change = v - self._apply(h) / self.scale
            size = float((change.norm(dim=1) / v.norm(dim=1).clamp(min=1e-300)).max())
            first = first or size
            if not math.isfinite(size) or size > GROWTH * max(first, 1.0):
                raise InputError(
                    f"{where}: expected LiSSA to converge; after {step} steps it grows (change {size:.3g} of the query). "
                    f"The Hessian has an eigenvalue above 2·scale = {2 * self.scale:.3g} or below zero. Pass a larger scale "
                    "or damping, or operator='ggn'."
                )
            h += change
            self.stats["steps"] = step
            reached = float((change.norm(dim=1) / h.norm(dim=1).clamp(min=1e-300)).max())
            # What is left of a geometric series is its last step over 1 − ratio.
            ratio = min(size / before, 1 - 1e-12) if before else 0.0
            distance = reached * ratio / (1 - ratio) if math.isfinite(before) else math.inf
            before = size
            if reached == 0 or distance <= about.tol:
                break
        else:
            self.stats["converged"] = False
            warnings.warn(
                f"{where}: LiSSA stopped after {most} steps about {distance:.2g} of the solution's norm from its limit, where "
                f"{about.tol:g} was asked for. Pass more steps or a larger damping.",
                IpfastWarning,
                stacklevel=2,
            )
        return h / self.scale

    def quadratic(self, gradients: Gradients) -> Tensor:
        if self.about.steps is None and self.problem.size <= SOLVED:
            return self._limit().quadratic(gradients)
        found = []
        rows = max(1, SELF_BYTES // (8 * self.problem.size))
        for piece in gradients.dense():
            for first in range(0, len(piece), rows):
                g = piece[first : first + rows]
                found.append((g * self.solve(g)).sum(dim=1))
        return torch.cat(found)

    def _limit(self) -> CholeskyFactors:
        """What the series of every sample converges to, solved: of few parameters in far less time."""
        if self._factors is None:
            matrix = self.problem.dense(ggn=self.ggn)
            matrix = (matrix + matrix.T) / 2
            matrix.diagonal().add_(self.damping)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if int(failed):
                raise InputError(
                    f"{self.problem.where}: expected LiSSA to converge; the Hessian has an eigenvalue below zero. Pass a "
                    "larger damping, or operator='ggn'."
                )
            self._factors = CholeskyFactors(factor, {})
        return self._factors


class FisherSeries(QuadraticFactors):
    """The series of fixed length with the empirical Fisher matrix of each parameter tensor."""

    def __init__(self, about: LiSSA, problem: Problem) -> None:
        self.about, self.problem = about, problem
        self.steps = about.steps or 10
        self.share = SHARE if isinstance(about.damping, str) else float(about.damping)
        total = torch.zeros(len(problem.parts), dtype=torch.float64, device=problem.device)
        if about.mode == "full":
            for block in problem.gradients():
                total += block.squares().double().sum(dim=0)
        sizes = torch.tensor([part.size for part in problem.parts], dtype=torch.float64, device=problem.device)
        self.sizes = sizes
        self.damping = self.share * total / (problem.samples * sizes)
        self.stats: dict[str, Any] = {"damping": self.damping.tolist(), "steps": self.steps}

    def solve(self, v: Tensor) -> Tensor:
        problem = self.problem
        v = v.double()
        r = v.clone()
        for step in range(self.steps):
            applied = torch.zeros_like(r)
            for block in problem.gradients():
                applied += block.weighted(block.dots(r))
            applied /= problem.samples
            for index, part in enumerate(problem.parts):
                applied[:, part.place] += self.damping[index] * r[:, part.place]
            r = v + r - applied
            if not bool(torch.isfinite(r).all()) or float(r.norm()) > GROWTH * self.steps * float(v.norm()):
                raise InputError(
                    f"{problem.where}: expected LiSSA with operator='fisher' to converge; it grows after {step + 1} "
                    "steps, since the largest eigenvalue of the Fisher matrix is above 2. Use operator='hessian', which "
                    "finds its own scale."
                )
        return r

    def quadratic(self, gradients: Gradients) -> Tensor:
        if self.about.mode == "full":
            return torch.cat([(g * self.solve(g)).sum(dim=1) for g in gradients.dense()])
        # F = g gᵀ of the sample alone: the series stays on the line of g, so that one number follows it.
        squares = gradients.squares().double()
        along = torch.ones_like(squares)
        for _ in range(self.steps):
            along = 1 + along - (squares + self.share * squares / self.sizes) * along
        values = (along * squares).sum(dim=1)
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"{self.problem.where}: expected LiSSA with mode='single' to converge; a sample's squared gradient norm is "
                "above 2. Use mode='full'."
            )
        return values
