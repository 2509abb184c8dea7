"""Squared error."""

from __future__ import annotations

from torch import Tensor

from ..ops import labels as accepted
from ..registry import check_choice
from .base import Loss
from .registry import LOSSES

_FACTOR = {"mean": 1.0, "sum": 1.0, "half": 0.5}


class MSE(Loss):
    """ℓ = ‖z − y‖²/C, residual r = (2/C)(z − y); targets [B, C] (or [B] for C = 1).

    Args:
        reduction: over the C outputs of one sample: "mean" (default, as torch.nn.MSELoss()), "sum" (‖z − y‖²) or "half"
            (½‖z − y‖²).
    """

    form = "mse"

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_choice("MSE", "reduction", reduction, tuple(_FACTOR))

    def scale(self, outputs: int) -> float:
        return _FACTOR[self.reduction] * (1 if self.reduction == "mean" else outputs)

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        return accepted.targets(where, labels, rows, outputs, self.form)

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        return (z - labels.to(z.dtype)).square().mean(dim=1) * self.scale(z.shape[1])

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        return (2 * self.scale(z.shape[1]) / z.shape[1]) * (z - labels.to(z.dtype))

    def hessian(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return z.new_full(z.shape, 2 * self.scale(z.shape[1]) / z.shape[1]), None


LOSSES.add(MSE.form, MSE)
