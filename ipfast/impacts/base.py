"""What an impact must tell: its gradient with respect to the validation logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ..losses import Loss


class Impact(ABC):
    """f(θ; V), a function that one wants to be low.

    At the last layer its gradient is G = Z̄ᵀH_v, G_b = Z̄ᵀ1 with the cotangent Z̄ = ∂f/∂z [M, C].
    """

    name: ClassVar[str]
    additive: ClassVar[bool]
    """Whether f is a mean over V of terms that each depend on one sample: then V is streamed once."""

    @abstractmethod
    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """Z̄ [B, C] in float64: of each sample's own term if additive (the mean is taken outside), else of f over V."""
