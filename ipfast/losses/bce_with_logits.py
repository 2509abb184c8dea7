"""Binary cross-entropy on logits, one or several outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import labels as accepted
from ..registry import check_choice
from .base import Loss, as_argument, check_length, class_vector, like
from .registry import LOSSES


class BCEWithLogits(Loss):
    """ℓ = Σ_c w_c [−π_c y_c log σ(z_c) − (1−y_c) log σ(−z_c)], residual r = w∘((1 + (π−1)∘y)∘σ(z) − π∘y).

    Targets [B, C] (or [B] for C = 1) in 0..1.

    Args:
        reduction: over the C outputs of one sample: "sum" (default), or "mean" as in torch.nn.BCEWithLogitsLoss().
        pos_weight: π [C], factor of the positive targets. weight: w [C], factor of each output. Both as in torch.
    """

    form = "bce_with_logits"

    def __init__(self, reduction: str = "sum", pos_weight: Any = None, weight: Any = None) -> None:
        where = "BCEWithLogits"
        self.reduction = check_choice(where, "reduction", reduction, ("sum", "mean"))
        self.pos_weight = class_vector(where, "pos_weight", pos_weight)
        self.weight = class_vector(where, "weight", weight)

    def scale(self, outputs: int) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / outputs

    def form_options(self) -> dict[str, Any]:
        return {"class_weight": as_argument(self.weight), "pos_weight": as_argument(self.pos_weight)}

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        check_length(where, "weight", self.weight, outputs)
        check_length(where, "pos_weight", self.pos_weight, outputs)
        return accepted.targets(where, labels, rows, outputs, self.form)

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        # torch's own formula subtracts z from itself for a confident negative.
        y = labels.to(z.dtype)
        each = -self._positive(y, z) * F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z)
        return self._weighted(each).sum(dim=1) * self.scale(z.shape[1])

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        y = labels.to(z.dtype)
        each = (1 - y) * torch.sigmoid(z) - self._positive(y, z) * torch.sigmoid(-z)
        return self.scale(z.shape[1]) * self._weighted(each)

    def hessian(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        y = labels.to(z.dtype)
        each = (1 - y + self._positive(y, z)) * torch.sigmoid(z) * torch.sigmoid(-z)
        return self.scale(z.shape[1]) * self._weighted(each), None

    def _positive(self, y: Tensor, z: Tensor) -> Tensor:
        return y if self.pos_weight is None else like(self.pos_weight, z) * y

    def _weighted(self, each: Tensor) -> Tensor:
        return each if self.weight is None else like(self.weight, each) * each


LOSSES.add(BCEWithLogits.form, BCEWithLogits)
