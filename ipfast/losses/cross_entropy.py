"""Cross-entropy with hard labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..ops import labels as accepted
from .base import Loss
from .registry import LOSSES


class CrossEntropy(Loss):
    """ℓ = −log softmax(z)_y, residual r = softmax(z) − e_y; labels [B] are integers in 0..C−1."""

    form = "cross_entropy"

    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        return accepted.class_labels(where, labels, rows, outputs)

    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(z, labels, reduction="none")

    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        # r_y = −Σ_{c≠y} p_c, because p_y − 1 loses everything where p_y rounds to one.
        p = z.softmax(dim=1).scatter(1, labels[:, None], 0)
        return p.scatter(1, labels[:, None], -p.sum(dim=1, keepdim=True))


LOSSES.add(CrossEntropy.form, CrossEntropy)
