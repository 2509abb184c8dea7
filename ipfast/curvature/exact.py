"""The Hessian itself, factored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, IpfastWarning
from .base import Gradients, PointCurvature, Problem, StoredFactors
from .damping import check_number

LARGEST = 20_000
"""Scored parameters at most: their Hessian takes 8P² bytes."""
CONDITION = 1e12
"""Of a matrix that a Cholesky factor is trusted with."""
NULL = 1e-11
"""Eigenvalues below this share of the largest are zero: rounding in the sums leaves about as much."""
NOISE = 10.0
"""Times the most negative eigenvalue of a Hessian that has none, below which one above zero is no more than that."""
CONVEX_SHARE = 1e-3
"""Of the mean |λ|, by which an indefinite Hessian is damped beyond its lowest eigenvalue."""
FLAT = 1e-6
"""Share of a query's norm in the null space that is worth a warning."""


@dataclass(frozen=True)
class Exact(PointCurvature):
    """H = ∇²L + (l2/N)·diag(penalised) + damping·I, with L the mean training loss, solved in float64.

    For few parameters: O(NP² + P³) operations and 8P² bytes. With l2 the training penalty of a converged convex model, s_i/N is
    Eq. (1) of arXiv 2405.17490, the change of the impact when sample i is removed, to first order.

    Args:
        l2: λ of the penalty (λ/2)‖θ‖² that was added to the SUM of the training losses, biases apart; None: what a scikit-learn
            estimator says of itself, else 0.
        damping: a number; "auto": none where H is positive definite; where it is singular and the loss convex (a softmax head
            without l2), the minimum-norm solution, which is right for a query orthogonal to the null space; where it is
            indefinite, max(0, −λ_min) + 10⁻³·mean|λ|. `stats` says which.
        ggn: take the Gauss-Newton part of the Hessian, which is never indefinite.

    Raises (when fitted):
        InputError: more than 20,000 parameters, or a matrix that is not positive definite with the damping given.
    """

    quadratics = True
    stored = True

    l2: float | None = None
    damping: float | str = "auto"
    ggn: bool = False

    def __post_init__(self) -> None:
        check_number("Exact", "l2", self.l2)
        check_number("Exact", "damping", self.damping, allowed="auto")

    def fit(self, problem: Problem) -> StoredFactors:
        if problem.size > LARGEST:
            raise InputError(
                f"{problem.where}: expected at most {LARGEST:,} scored parameters for the exact Hessian, whose "
                f"{problem.size:,}² "
                f"entries would take {8 * problem.size**2 / 2**30:.0f} GiB. Use EKFAC, LiSSA, CG or DataInf, or name fewer "
                "params."
            )
        l2 = problem.l2 if self.l2 is None else float(self.l2)
        matrix = problem.dense(ggn=self.ggn)
        matrix = (matrix + matrix.T) / 2
        matrix.diagonal().add_(problem.penalised, alpha=l2 / problem.samples)
        if not bool(torch.isfinite(matrix).all()):
            raise InputError(f"{problem.where}: expected a finite Hessian; got NaN or infinity. Check the model and the data.")
        stats: dict[str, Any] = {"l2": l2, "damping": 0.0}
        if isinstance(self.damping, (int, float)):
            stats["damping"] = float(self.damping)
            matrix.diagonal().add_(self.damping)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if int(failed):
                raise InputError(
                    f"{problem.where}: expected a positive definite Hessian with damping={self.damping:g}; it is not. Pass a "
                    "larger damping, damping='auto', or ggn=True."
                )
            return CholeskyFactors(factor, stats)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        spread = factor.diagonal()
        if not int(failed) and float(spread.max() / spread.min()) ** 2 < CONDITION:
            return CholeskyFactors(factor, stats)
        values, vectors = torch.linalg.eigh(matrix)
        lowest, largest = float(values[0]), float(values.abs().max())
        if largest == 0:
            raise InputError(f"{problem.where}: expected a curvature; the Hessian is zero. Pass damping=.")
        if problem.convex or self.ggn or lowest > -problem.rounding * largest:
            # What is below zero is rounding, and so is what is about as large above it.
            kept = values > max(NULL * largest, NOISE * max(0.0, -lowest))
            if not bool(kept.any()):
                raise InputError(f"{problem.where}: expected a curvature above zero; got none. Pass damping=.")
            stats |= {"solve": "minimum norm", "rank": int(kept.sum()), "smallest_eigenvalue": float(values[kept].min())}
            return EigenFactors(vectors[:, kept], values[kept], stats, where=problem.where)
        stats["damping"] = max(0.0, -lowest) + CONVEX_SHARE * float(values.abs().mean())
        stats["lowest_eigenvalue"] = lowest
        return EigenFactors(vectors, values + stats["damping"], stats)


class CholeskyFactors(StoredFactors):
    """H = L Lᵀ."""

    kind = "cholesky"

    def __init__(self, factor: Tensor, stats: dict[str, Any]) -> None:
        self.factor, self.stats = factor, stats

    def solve(self, v: Tensor) -> Tensor:
        return torch.cholesky_solve(v.to(self.factor).T, self.factor).T

    def quadratic(self, gradients: Gradients) -> Tensor:
        # Not cholesky_solve: the square of one triangular solve cannot become negative.
        found = [
            torch.linalg.solve_triangular(self.factor, g.to(self.factor).T, upper=False).square().sum(dim=0)
            for g in gradients.dense()
        ]
        return torch.cat(found)

    def tensors(self) -> dict[str, Tensor]:
        return {"cholesky": self.factor}

    @classmethod
    def restored(
        cls, where: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], stats: dict[str, Any]
    ) -> CholeskyFactors:
        return cls(tensors["cholesky"], stats)


class EigenFactors(StoredFactors):
    """H⁻¹ = U diag(1/λ) Uᵀ on the span of U.

    Args:
        where: the calling function, to warn of queries outside that span; None: no warning.
    """

    kind = "eigenvectors"

    def __init__(self, vectors: Tensor, values: Tensor, stats: dict[str, Any], where: str | None = None) -> None:
        self.vectors, self.values, self.stats, self.where = vectors, values, stats, where

    def solve(self, v: Tensor) -> Tensor:
        v = v.to(self.vectors)
        inside = v @ self.vectors
        if self.where is not None:
            share = float(((v - inside @ self.vectors.T).norm(dim=1) / v.norm(dim=1).clamp(min=1e-300)).max())
            self.stats["outside"] = share
            if share > FLAT:
                warnings.warn(
                    f"{self.where}: {share:.2g} of the query's norm lies where the training loss is flat, so that no solve can "
                    "tell its effect; that part is left out. Pass the l2 of the training, or damping=.",
                    IpfastWarning,
                    stacklevel=2,
                )
        return (inside / self.values) @ self.vectors.T

    def quadratic(self, gradients: Gradients) -> Tensor:
        found = [((g.to(self.vectors) @ self.vectors).square() / self.values).sum(dim=1) for g in gradients.dense()]
        return torch.cat(found)

    def tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "values": self.values}

    def described(self) -> dict[str, Any]:
        return {"warns": self.where is not None}

    @classmethod
    def restored(
        cls, where: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], stats: dict[str, Any]
    ) -> EigenFactors:
        return cls(tensors["vectors"], tensors["values"], stats, where if about["warns"] else None)
