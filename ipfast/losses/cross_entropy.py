"""Cross-entropy with hard labels or soft targets, class weights and label smoothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import whole_as_int64
from ..errors import InputError, InputTypeError
from ..ops import labels as accepted
from .base import Loss, as_argument, check_length, class_vector, like
from .registry import LOSSES

SHORT_ROW = 32
"""Classes up to which a row is short beside the vectors of a processor."""


class CrossEntropy(Loss):
    """ℓ = −Σ_c t_c log softmax(z)_c, residual r = (Σt) softmax(z) − t, as torch.nn.CrossEntropyLoss(reduction="none").

    Hard labels [B] in 0..C−1 have t = (1−ε) w_y e_y + (ε/C) w, soft targets q [B, C] have t = w∘((1−ε) q + ε/C).

    Args:
        weight: w [C], factor of each class's target.
        label_smoothing: ε, the share of the target that goes to all classes alike.
        ignore_index: hard label of samples whose loss is zero; None: every label must be a class.
    """

    form = "cross_entropy"

    def __init__(self, weight: Any = None, label_smoothing: float = 0.0, ignore_index: int | None = None) -> None:
        where = "CrossEntropy"
        if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
            raise InputTypeError(
                f"{where}: expected label_smoothing to be a number between 0 and 1; got {type(label_smoothing).__name__}."
            )
        if not 0 <= label_smoothing <= 1:
            raise InputError(
                f"{where}: expected label_smoothing between 0 and 1, as a share of the target; got {label_smoothing:g}."
            )
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise InputTypeError(
                f"{where}: expected ignore_index to be an integer label, such as -100; got {type(ignore_index).__name__}."
            )
        self.weight = class_vector(where, "weight", weight)
        self.label_smoothing = float(label_smoothing)
        self.ignore_index = ignore_index

    def form_options(self) -> dict[str, Any]:
        return {
            "class_weight": as_argument(self.weight),
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
        }

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        check_length(where, "weight", self.weight, outputs)
        if outputs < 2:
            raise InputError(
                f"{where}: expected two outputs or more with loss='cross_entropy'; got one, whose probability is always 1 and "
                "whose loss is always 0. Pass loss='bce_with_logits' for an output that tells two classes apart."
            )
        if labels.dtype.is_floating_point and labels.dim() == 2:
            if self.ignore_index is not None:
                raise InputError(
                    f"{where}: expected integer labels for a loss with ignore_index; got soft targets {list(labels.shape)}. "
                    "Leave ignore_index out, and give a sample to be ignored targets of zero."
                )
            return accepted.soft_targets(where, labels, rows, outputs)
        if self.ignore_index is None:
            return accepted.class_labels(where, labels, rows, outputs)
        labels = whole_as_int64(labels)
        ignored = labels == self.ignore_index
        return accepted.class_labels(where, labels.masked_fill(ignored, 0), rows, outputs).masked_fill(
            ignored, self.ignore_index
        )

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        # −log p_c = (m − z_c) + log(1 + rest): without a subtraction of two sums, whatever the confidence.
        z, labels, ignored = self._counted(z, labels)
        top = z.argmax(dim=1, keepdim=True)
        below = z.gather(1, top) - z
        rest = torch.exp(-below).scatter(1, top, 0).sum(dim=1).log1p()
        if labels.dim() == 2:
            t = self._soft(z, labels)
            return (t * below).sum(dim=1) + t.sum(dim=1) * rest
        hard, shared = self._shares(z, labels)
        value = hard * (below.gather(1, labels[:, None])[:, 0] + rest)
        if shared is not None:
            value = value + below @ shared + shared.sum() * rest
        return value if ignored is None else value.masked_fill(ignored, 0)

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        # r_y = −Σ_{c≠y} r_c, because p_y − 1 loses everything where p_y rounds to one; y is the label or the largest target.
        z, labels, ignored = self._counted(z, labels)
        p = softmax(z)
        if labels.dim() == 2:
            t = self._soft(z, labels)
            r, y = t.sum(dim=1, keepdim=True) * p - t, t.argmax(dim=1, keepdim=True)
        else:
            hard, shared = self._shares(z, labels)
            y = labels[:, None]
            r = hard[:, None] * p if shared is None else (hard + shared.sum())[:, None] * p - shared
        r = r.scatter(1, y, 0)
        r = r.scatter(1, y, -r.sum(dim=1, keepdim=True))
        return r if ignored is None else r.masked_fill(ignored[:, None], 0)

    def hessian(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        z, labels, ignored = self._counted(z, labels)
        p = softmax(z)
        if labels.dim() == 2:
            total = self._soft(z, labels).sum(dim=1)
        else:
            hard, shared = self._shares(z, labels)
            total = hard if shared is None else hard + shared.sum()
        if ignored is not None:
            total = total.masked_fill(ignored, 0)
        return total[:, None] * p, total.sqrt()[:, None] * p

    def _counted(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(z, labels, ignored rows) with numbers in the ignored rows that do no harm."""
        if self.ignore_index is None:
            return z, labels, None
        ignored = labels == self.ignore_index
        return z.masked_fill(ignored[:, None], 0), labels.masked_fill(ignored, 0), ignored

    def _soft(self, z: Tensor, q: Tensor) -> Tensor:
        """t [B, C] of soft targets."""
        t = q.to(z.dtype)
        if self.label_smoothing:
            t = (1 - self.label_smoothing) * t + self.label_smoothing / z.shape[1]
        return t if self.weight is None else t * like(self.weight, z)

    def _shares(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """((1−ε) w_y [B], (ε/C) w [C] or None where ε = 0)"""
        w = z.new_ones(z.shape[1]) if self.weight is None else like(self.weight, z)
        shared = self.label_smoothing / z.shape[1] * w if self.label_smoothing else None
        return (1 - self.label_smoothing) * w[y], shared


def softmax(z: Tensor) -> Tensor:
    """The softmax of every row; of short rows on a CPU down the columns of the transpose, which torch does ten times faster."""
    if z.device.type == "cpu" and z.shape[1] <= SHORT_ROW:
        return z.T.contiguous().softmax(dim=0).T
    return z.softmax(dim=1)


LOSSES.add(CrossEntropy.form, CrossEntropy)
