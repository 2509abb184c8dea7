"""The inverse on the span of the largest eigenvectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import random_seed
from ..errors import InputError
from .base import Gradients, PointCurvature, Problem, StoredFactors
from .damping import check_number

SMALL = 1e-12
"""Eigenvalues below this share of the largest are taken for zero."""
NOISE = 10.0
"""The same of a convex loss, in units of its lowest eigenvalue, where that is below zero."""


@dataclass(frozen=True)
class Arnoldi(PointCurvature):
    """H⁻¹ v ≈ Σ_k ⟨u_k, v⟩ u_k / (λ_k + damping) over the `rank` eigenvalues of ∇²L that are largest in size
    (scipy.sparse.linalg.eigsh, the symmetric form of Arnoldi's iteration). Parts of v outside their span are left out.

    Args:
        rank: eigenvectors at most, P − 1 of a smaller problem.
        damping: added to the eigenvalues.
        ggn: take the Gauss-Newton part of the Hessian.
        seed: of the first vector.

    Source: arXiv 2112.03052.
    """

    quadratics = True
    stored = True

    rank: int = 50
    damping: float = 0.0
    ggn: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("Arnoldi", "damping", self.damping)
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"Arnoldi: expected rank to be a whole number above 0; got {self.rank!r}.")
        random_seed("Arnoldi", self.seed)

    def fit(self, problem: Problem) -> ArnoldiFactors:
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        if problem.size < 2:
            raise InputError(
                f"{problem.where}: expected at least two scored parameters for Arnoldi; got {problem.size}. Use Exact."
            )
        steps = 0

        def apply(p: np.ndarray) -> np.ndarray:
            nonlocal steps
            steps += 1
            direction = torch.from_numpy(np.ascontiguousarray(p).reshape(1, -1)).to(problem.device)
            return np.asarray(problem.hessian(direction, ggn=self.ggn).cpu().numpy().ravel())

        operator = LinearOperator((problem.size, problem.size), matvec=apply, dtype=np.float64)
        first = np.random.default_rng(self.seed).normal(size=problem.size)
        try:
            values, vectors = eigsh(operator, k=min(self.rank, problem.size - 1), which="LM", v0=first)
        except ArpackError as error:
            raise InputError(
                f"{problem.where}: expected a finite curvature above zero for Arnoldi; got none, or one whose eigenvalues are "
                f"not found ({error}). Check the model and the data, or use Exact or EKFAC."
            ) from error
        floor = SMALL * np.abs(values).max()
        if problem.convex:  # then what is below zero is rounding, and so is what is about as large above it
            floor = max(floor, NOISE * max(0.0, -float(values.min())))
        kept = np.abs(values) > floor
        if not np.isfinite(values).all() or not kept.any():
            raise InputError(f"{problem.where}: expected a finite curvature above zero for Arnoldi; got none.")
        if (values[kept] + self.damping <= 0).any():
            lowest = float(values.min())
            raise InputError(
                f"{problem.where}: expected eigenvalues above zero for Arnoldi; one of the largest in size is {lowest:.3g}. "
                "Pass damping= above that, or ggn=True."
            )
        stats = {"rank": int(kept.sum()), "largest": float(values.max()), "smallest": float(values[kept].min()), "steps": steps}
        found = torch.from_numpy(np.ascontiguousarray(vectors[:, kept].T)), torch.from_numpy(values[kept] + self.damping)
        return ArnoldiFactors(found[0].to(problem.device), found[1].to(problem.device), stats)


class ArnoldiFactors(StoredFactors):
    """Eigenvectors [K, P] and damped eigenvalues [K]."""

    kind = "arnoldi"

    def __init__(self, vectors: Tensor, values: Tensor, stats: dict[str, Any]) -> None:
        self.vectors, self.values, self.stats = vectors, values, stats

    def solve(self, v: Tensor) -> Tensor:
        return ((v.to(self.vectors) @ self.vectors.T) / self.values) @ self.vectors

    def quadratic(self, gradients: Gradients) -> Tensor:
        along = gradients.dots(self.vectors).sum(dim=2).double()
        return (along.square() / self.values).sum(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "values": self.values}

    @classmethod
    def restored(
        cls, where: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], stats: dict[str, Any]
    ) -> ArnoldiFactors:
        return cls(tensors["vectors"], tensors["values"], stats)
