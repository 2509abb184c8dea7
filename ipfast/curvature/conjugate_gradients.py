"""Conjugate gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, IpfastWarning
from .base import Gradients, PointCurvature, Problem, QuadraticFactors
from .damping import check_number, chosen_damping


@dataclass(frozen=True)
class CG(PointCurvature):
    """(∇²L + damping·I)⁻¹ v by conjugate gradients (scipy.sparse.linalg.cg), a pass over the data a step and query.

    It needs a positive definite matrix; a direction of negative curvature is an error.

    Args:
        damping: a number; "auto": 0.1·tr(∇²L)/P, as LiSSA's.
        steps: at most. tol: of the residual, relative to v.
        ggn: take the Gauss-Newton part of the Hessian, which is never indefinite.
    """

    quadratics = True

    damping: float | str = "auto"
    steps: int = 1000
    tol: float = 1e-5
    ggn: bool = False

    def __post_init__(self) -> None:
        check_number("CG", "damping", self.damping, allowed="auto")
        check_number("CG", "tol", self.tol, positive=True)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"CG: expected steps to be a whole number above 0; got {self.steps!r}.")

    def fit(self, problem: Problem) -> CGFactors:
        return CGFactors(self, problem)


class CGFactors(QuadraticFactors):
    """The damping, and products with the Hessian."""

    def __init__(self, about: CG, problem: Problem) -> None:
        self.about, self.problem = about, problem
        self.damping = chosen_damping(problem.where, about.damping, problem, ggn=about.ggn)
        self.stats: dict[str, Any] = {"damping": self.damping, "steps": 0}

    def solve(self, v: Tensor) -> Tensor:
        from scipy.sparse.linalg import LinearOperator, cg

        size, steps = self.problem.size, 0

        def apply(p: np.ndarray) -> np.ndarray:
            nonlocal steps
            steps += 1
            direction = torch.from_numpy(p.reshape(1, -1)).to(self.problem.device)
            product = self.problem.hessian(direction, ggn=self.about.ggn).add_(direction, alpha=self.damping)
            bent = float((direction * product).sum())
            if not bent > 0 and bool(direction.any()):
                curvature = bent / float(direction.square().sum())
                raise InputError(
                    f"{self.problem.where}: expected a positive definite Hessian for CG; a direction has the eigenvalue "
                    f"{curvature:.3g} or one below it with damping={self.damping:.3g}. Pass a damping that is larger by more "
                    "than that, or ggn=True."
                )
            return np.asarray(product.cpu().numpy().ravel())

        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
        found = []
        for row in v.double().cpu().numpy():
            solution, left = cg(operator, row, rtol=self.about.tol, maxiter=self.about.steps)
            if left:
                warnings.warn(
                    f"{self.problem.where}: CG stopped after {self.about.steps} steps before its residual was below "
                    f"{self.about.tol:g} of the query. Pass more steps or a larger damping.",
                    IpfastWarning,
                    stacklevel=2,
                )
            found.append(torch.from_numpy(solution))
        self.stats["steps"] = steps
        return torch.stack(found).to(v.device)

    def quadratic(self, gradients: Gradients) -> Tensor:
        return torch.cat([(g * self.solve(g)).sum(dim=1) for g in gradients.dense()])
