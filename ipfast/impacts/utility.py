"""The validation loss."""

from __future__ import annotations

from torch import Tensor

from ..losses import Loss
from .base import Impact, Samples
from .registry import IMPACTS


class Utility(Impact):
    """f = (1/M) Σ_v ℓ_v: removing a sample of negative score lowers it. Source: Eq. (2) of arXiv 2405.17490."""

    name = "utility"
    additive = True

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        return loss.residual(z, labels)


IMPACTS.add(Utility.name, Utility)
