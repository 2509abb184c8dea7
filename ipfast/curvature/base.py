"""What a curvature needs of a model and its training data, and what it gives.

Vectors are flat: a stack of Q of them is [Q, P], the scored parameters one after another, each a part. So that a solver is
written once, for the last layer and for a whole network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .passes import Passes


@dataclass(frozen=True)
class Part:
    """One scored parameter, and where it lies in a flat vector."""

    name: str
    start: int
    size: int

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + self.size)


def parts_of(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Parts one after another, from the number of entries of each parameter."""
    made, start = [], 0
    for name, size in sizes.items():
        made.append(Part(name, start, size))
        start += size
    return tuple(made)


@dataclass(frozen=True)
class Kronecker:
    """A layer whose parameters are one matrix [d_out, d_in (+ 1)] that EKFAC takes for one block: its weight, and its bias as
    the last column.

    Attributes:
        name: of the layer. rows, columns: of the matrix, of one group of a convolution.
        weight, bias: where they lie in a flat vector; bias None: no bias is scored.
        transposed: whether the weight lies as [d_in, d_out].
    """

    name: str
    rows: int
    columns: int
    weight: slice
    bias: slice | None
    transposed: bool = False

    def matrix(self, v: Tensor) -> Tensor:
        """[Q, d_out, d_in (+ 1)] of flat vectors [Q, P]."""
        weight = v[:, self.weight]
        weight = weight.reshape(len(v), -1, self.rows).mT if self.transposed else weight.reshape(len(v), self.rows, -1)
        return weight if self.bias is None else torch.cat([weight, v[:, self.bias].unsqueeze(2)], dim=2)

    def write(self, matrix: Tensor, v: Tensor) -> None:
        """Put matrices [Q, d_out, d_in (+ 1)] back into flat vectors [Q, P]."""
        width = self.columns - (self.bias is not None)
        weight = matrix[:, :, :width]
        v[:, self.weight] = (weight.mT if self.transposed else weight).reshape(len(v), -1)
        if self.bias is not None:
            v[:, self.bias] = matrix[:, :, width]


@dataclass(frozen=True)
class Basis:
    """Eigenvectors of a layer's two covariances: Q_S [d_out, d_out] of the cotangents, Q_A [d_in (+ 1), …] of the inputs."""

    output: Tensor
    input: Tensor


class Gradients(ABC):
    """The gradients of the samples of one block, in whatever form they need not be written out."""

    count: int

    @abstractmethod
    def dots(self, v: Tensor) -> Tensor:
        """⟨v_q, g_i⟩ of each part: [B, Q, L] for v [Q, P]."""

    @abstractmethod
    def squares(self) -> Tensor:
        """‖g_i‖² of each part: [B, L]."""

    @abstractmethod
    def weighted(self, c: Tensor) -> Tensor:
        """Σ_i c_iql g_il: [Q, P] for c [B, Q, L]."""

    @abstractmethod
    def dense(self) -> Iterator[Tensor]:
        """The gradients themselves [b, P], a few at a time."""

    @abstractmethod
    def rotated(self, layer: int, basis: Basis, scale: Tensor) -> Tensor:
        """Σ_jk scale_jk (Q_Sᵀ G_i Q_A)²_jk of one Kronecker layer: [B]."""

    @abstractmethod
    def scaled_squares(self, scale: Tensor) -> Tensor:
        """Σ_k scale_k g_ik² [B] over parameters that belong to no layer; scale [P] is zero at the others."""


class Problem(ABC):
    """The training loss at one point as a function of the scored parameters: L(θ) = (1/N) Σ_i ℓ_i(θ), without a regulariser.

    Attributes:
        where: the calling function, for messages.
        parts: the scored parameters. size: P. dtype, device: of vectors.
        layers: those that EKFAC knows; others are diagonal there.
        convex: whether L is convex in them, so that its Hessian has no negative eigenvalue.
        passes: how passes that sum something up are shown and kept.
        l2: λ of (λ/2)‖θ‖² beside the SUM of the losses, where the model says what it was trained with. penalised: [P], one
            for each entry that the penalty counts.
    """

    where: str
    parts: tuple[Part, ...]
    layers: tuple[Kronecker, ...]
    dtype: torch.dtype
    device: torch.device
    convex: bool
    l2: float
    penalised: Tensor
    passes: Passes = Passes()
    rounding: float = 1e-11
    """Share of the largest eigenvalue, by which one of a singular Hessian may be below zero."""

    @property
    def size(self) -> int:
        return self.parts[-1].start + self.parts[-1].size

    @property
    @abstractmethod
    def samples(self) -> int:
        """N."""

    @abstractmethod
    def hessian(self, v: Tensor, *, ggn: bool = False) -> Tensor:
        """∇²L v, or its Gauss-Newton part, for v [Q, P]; one pass over the data. At the last layer they are the same."""

    @abstractmethod
    def trace(self, *, ggn: bool = False) -> float:
        """tr ∇²L, exact or estimated."""

    @abstractmethod
    def gradients(self) -> Iterator[Gradients]:
        """Blocks of samples; one pass over the data."""

    @abstractmethod
    def block(self, inputs: Any, labels: Any) -> Gradients:
        """The gradients of the samples of one batch: of features and labels at the last layer, of inputs of a network."""

    @abstractmethod
    def covariances(self, *, empirical: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
        """(Σ b bᵀ, Σ ā āᵀ)/N of each layer, float64: of cotangents at labels of the model or the data, and of inputs."""

    @abstractmethod
    def second_moments(self, bases: Sequence[Basis], *, empirical: bool, seed: int) -> list[Tensor]:
        """(1/N) Σ_i (Q_Sᵀ G_i Q_A)² [d_out, d_in (+ 1)] of each layer, float64."""

    @abstractmethod
    def rest_moments(self, *, empirical: bool, seed: int) -> Tensor:
        """(1/N) Σ_i g_i² [P] of the parameters that belong to no layer, zero elsewhere; float64."""

    @abstractmethod
    def dense(self, *, ggn: bool = False) -> Tensor:
        """∇²L [P, P], float64."""


class Factors(ABC):
    """A curvature fitted to a problem.

    Attributes:
        stats: what was chosen and found: damping, steps, eigenvalues.
    """

    stats: dict[str, Any]

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """H⁻¹ v for v [Q, P]."""


class QuadraticFactors(Factors):
    """Those that give self-influence too."""

    @abstractmethod
    def quadratic(self, gradients: Gradients) -> Tensor:
        """⟨g_i, H⁻¹ g_i⟩ [B]."""


class StoredFactors(QuadraticFactors):
    """Those that need the data no more, and can be kept in a file."""

    kind: ClassVar[str]
    """In files."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was found, by name: all that `solve` needs, beside `described`."""

    def described(self) -> dict[str, Any]:
        """The rest of it, as JSON."""
        return {}

    @classmethod
    @abstractmethod
    def restored(
        cls, where: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], stats: dict[str, Any]
    ) -> StoredFactors:
        """The same factors from what `tensors` and `described` have given."""


@dataclass(frozen=True)
class Curvature:
    """What stands for the inverse Hessian H⁻¹ between the query and the training gradients.

    H is that of the MEAN training loss, so that s_i/N estimates the change of the impact when sample i is removed.

    Attributes:
        quadratics: whether it gives self-influence ⟨g_i, H⁻¹ g_i⟩.
        stored: whether its factors need the data no more, once they are there, so that they can be kept in a file.
    """

    quadratics: ClassVar[bool] = False
    stored: ClassVar[bool] = False

    @property
    def original(self) -> Curvature:
        """Itself; of factors from a file the curvature that they are of."""
        return self


@dataclass(frozen=True)
class PointCurvature(Curvature, ABC):
    """One that is fitted at each point for itself, unlike that of a segment of a training run."""

    @abstractmethod
    def fit(self, problem: Problem) -> Factors:
        """Look at the training data."""
