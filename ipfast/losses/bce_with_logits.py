"""Binary cross-entropy on logits, one or several outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import labels as accepted
from ..registry import check_choice
from .base import Loss
from .registry import LOSSES


class BCEWithLogits(Loss):
    """ℓ = Σ_c [−y_c log σ(z_c) − (1−y_c) log σ(−z_c)], residual r = σ(z) − y; targets [B, C] (or [B] for C = 1) in 0..1.

    Args:
        reduction: over the C outputs of one sample: "sum" (default), or "mean" as in torch.nn.BCEWithLogitsLoss().
    """

    form = "bce_with_logits"

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = check_choice("BCEWithLogits", "reduction", reduction, ("sum", "mean"))

    def scale(self, outputs: int) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / outputs

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        return accepted.targets(where, labels, rows, outputs, self.form)

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(z, labels.to(z.dtype), reduction="none")
        return each.sum(dim=1) * self.scale(z.shape[1])

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        y = labels.to(z.dtype)
        return self.scale(z.shape[1]) * ((1 - y) * torch.sigmoid(z) - y * torch.sigmoid(-z))


LOSSES.add(BCEWithLogits.form, BCEWithLogits)
