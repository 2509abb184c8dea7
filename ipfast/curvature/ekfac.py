"""Eigenvalue-corrected Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import random_seed
from ..errors import InputError, InputTypeError
from .base import Basis, Gradients, Kronecker, Part, PointCurvature, Problem, StoredFactors
from .damping import SHARE, check_number


@dataclass(frozen=True)
class EKFAC(PointCurvature):
    """H ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ of each linear or convolutional layer, so that

        q = Q_S [ (Q_Sᵀ V Q_A) ⊘ (Λ + λ) ] Q_Aᵀ

    with Q_A, Q_S the eigenvectors of the layer's two covariances, (1/N) Σ ā āᵀ of inputs and (1/N) Σ b bᵀ of cotangents,
    and Λ = (1/N) Σ_i (Q_Sᵀ G_i Q_A)² the second moments of the samples' gradients in that basis. Labels are the model's own
    (the true Fisher matrix): at the last layer in closed form, elsewhere sampled. Two passes over the data, and
    O(d_in³ + d_out³) for each layer. Parameters of other layers have a diagonal Fisher matrix.

    Args:
        damping: λ; None: 0.1·mean(Λ) of each layer.
        empirical: take the labels of the data.
        seed: of the sampled labels.

    Source: arXiv 2308.03296.
    """

    quadratics = True
    stored = True

    damping: float | None = None
    empirical: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("EKFAC", "damping", self.damping)
        random_seed("EKFAC", self.seed)
        if not isinstance(self.empirical, bool):
            raise InputTypeError(f"EKFAC: expected empirical to be True or False; got {self.empirical!r}.")

    def fit(self, problem: Problem) -> EKFACFactors:
        return self.fit_mean(lambda: [problem])

    def fit_mean(self, problems: Callable[[], Iterable[Problem]]) -> EKFACFactors:
        """Of covariances, and then second moments, averaged over several problems of the same parameters."""
        options: dict[str, Any] = {"empirical": self.empirical, "seed": self.seed}
        covariances = _mean([matrix for pair in problem.covariances(**options) for matrix in pair] for problem in problems())
        bases: list[Basis] = []
        found: list[list[Tensor]] = []
        for problem in problems():
            if not bases:
                for index, layer in enumerate(problem.layers):
                    outputs, inputs = covariances[2 * index : 2 * index + 2]
                    bases.append(Basis(_vectors(outputs, problem.where, layer), _vectors(inputs, problem.where, layer)))
                # Of an interrupted fit those in which it has summed: another computation may turn those of equal eigenvalues.
                vectors = [matrix for basis in bases for matrix in (basis.output, basis.input)]
                for _ in problem.passes.over("eigenvectors", vectors, (), len):
                    pass
            found.append([*problem.second_moments(bases, **options), problem.rest_moments(**options)])
        *moments, rest = _mean(found)
        return EKFACFactors(problem.layers, bases, moments, _loose(problem), rest, self.damping, problem.where)


def _mean(several: Iterable[list[Tensor]]) -> list[Tensor]:
    """The mean of lists of tensors, one by one."""
    total: list[Tensor] = []
    count = 0
    for values in several:
        total = [a + b for a, b in zip(total, values, strict=True)] if total else values
        count += 1
    return [value / count for value in total]


def _vectors(covariance: Tensor, where: str, layer: Kronecker) -> Tensor:
    if not bool(torch.isfinite(covariance).all()):
        raise InputError(
            f"{where}: expected finite inputs and cotangents of layer {layer.name!r} for EKFAC; got NaN or infinity."
        )
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors


def _loose(problem: Problem) -> list[Part]:
    """Parameters that belong to no layer."""
    taken = {place.start for layer in problem.layers for place in (layer.weight, layer.bias) if place is not None}
    return [part for part in problem.parts if part.start not in taken]


class EKFACFactors(StoredFactors):
    """Bases and second moments of the layers, and of the other parameters their second moments alone."""

    kind = "ekfac"

    def __init__(
        self,
        layers: Sequence[Kronecker],
        bases: Sequence[Basis],
        moments: Sequence[Tensor],
        loose: Sequence[Part],
        rest: Tensor,
        damping: float | None,
        where: str,
    ) -> None:
        self.layers, self.bases, self.moments, self.loose, self.rest = layers, bases, moments, loose, rest
        self.damping = damping
        self.dampings = [_damping(damping, moment, where, layer.name) for layer, moment in zip(layers, moments, strict=True)]
        self.loose_dampings = [_damping(damping, rest[part.place], where, part.name) for part in loose]
        names = [layer.name for layer in layers] + [part.name for part in loose]
        self.stats: dict[str, Any] = {"damping": dict(zip(names, [*self.dampings, *self.loose_dampings], strict=True))}

    def solve(self, v: Tensor) -> Tensor:
        dampings = [*self.dampings, *self.loose_dampings]
        return self._applied(v, [lambda values, damping=damping: 1 / (values + damping) for damping in dampings])  # type: ignore[misc]

    def apply(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(H) v, with f of the eigenvalues, which are not damped."""
        return self._applied(v, [function] * (len(self.layers) + len(self.loose)))

    def _applied(self, v: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        v, out = v.double(), torch.zeros_like(v, dtype=torch.float64)
        for layer, basis, moment, function in zip(self.layers, self.bases, self.moments, functions, strict=False):
            rotated = (basis.output.T @ layer.matrix(v) @ basis.input) * function(moment)
            layer.write(basis.output @ rotated @ basis.input.T, out)
        for part, function in zip(self.loose, functions[len(self.layers) :], strict=True):
            out[:, part.place] = v[:, part.place] * function(self.rest[part.place])
        return out

    def quadratic(self, gradients: Gradients) -> Tensor:
        total: Tensor | None = None
        for index, (basis, moment, damping) in enumerate(zip(self.bases, self.moments, self.dampings, strict=True)):
            part = gradients.rotated(index, basis, 1 / (moment + damping))
            total = part if total is None else total + part
        if self.loose:
            scale = torch.zeros_like(self.rest)
            for part_, damping in zip(self.loose, self.loose_dampings, strict=True):
                scale[part_.place] = 1 / (self.rest[part_.place] + damping)
            loose = gradients.scaled_squares(scale)
            total = loose if total is None else total + loose
        assert total is not None
        return total

    def tensors(self) -> dict[str, Tensor]:
        found = {"rest": self.rest}
        for index, (basis, moments) in enumerate(zip(self.bases, self.moments, strict=True)):
            found |= {f"{index}.outputs": basis.output, f"{index}.inputs": basis.input, f"{index}.moments": moments}
        return found

    def described(self) -> dict[str, Any]:
        layers = [
            {
                **vars(layer),
                "weight": [layer.weight.start, layer.weight.stop],
                "bias": None if layer.bias is None else [layer.bias.start, layer.bias.stop],
            }
            for layer in self.layers
        ]
        return {"layers": layers, "loose": [vars(part) for part in self.loose], "damping": self.damping}

    @classmethod
    def restored(
        cls, where: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], stats: dict[str, Any]
    ) -> EKFACFactors:
        layers = [
            Kronecker(
                **{
                    **layer,
                    "weight": slice(*layer["weight"]),
                    "bias": None if layer["bias"] is None else slice(*layer["bias"]),
                }
            )
            for layer in about["layers"]
        ]
        bases = [Basis(tensors[f"{index}.outputs"], tensors[f"{index}.inputs"]) for index in range(len(layers))]
        moments = [tensors[f"{index}.moments"] for index in range(len(layers))]
        loose = [Part(**part) for part in about["loose"]]
        return cls(layers, bases, moments, loose, tensors["rest"], about["damping"], where)


def _damping(damping: float | None, moments: Tensor, where: str, name: str) -> float:
    if damping is not None:
        if damping == 0 and bool((moments <= 0).any()):
            raise InputError(
                f"{where}: expected damping above 0 for EKFAC, since {name!r} has directions without any curvature; got 0. "
                "Leave damping out, or pass a small number."
            )
        return float(damping)
    mean = float(moments.mean())
    # A layer whose gradients all are zero meets nothing; any number will do that is no division by zero.
    return SHARE * mean if mean > 0 else 1.0
