"""The predicted probability of a positive class, and its derivative with respect to the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from ..losses import Loss


class Positive:
    """ŷ = softmax(z)_k under cross-entropy, σ(z_k) under binary cross-entropy, for the positive class k.

    A single output tells two classes apart: of class 1 ŷ is σ(z), of class 0 it is σ(−z).

    Args:
        where: the impact, for messages.
        positive: k; None: class 1 of two.
    """

    def __init__(self, where: str, positive: Any) -> None:
        if positive is not None and (isinstance(positive, bool) or not hasattr(positive, "__index__")):
            raise InputTypeError(f"{where}: expected positive to be the number of a class; got {type(positive).__name__}.")
        self.where, self.given = where, None if positive is None else int(positive.__index__())

    def check(self, where: str, outputs: int, loss: Loss) -> None:
        """Refuse a loss without probabilities, and a class that does not exist or is not named."""
        softmax = loss.form == "cross_entropy"
        if not softmax and loss.form != "bce_with_logits":
            raise InputError(
                f"{where}: expected loss to be 'cross_entropy' or 'bce_with_logits', whose logits give probabilities, for "
                f"{self.where}; got {loss.form!r}."
            )
        if softmax and outputs < 2:
            raise InputError(
                f"{where}: expected two outputs or more with loss='cross_entropy' for {self.where}; got {outputs}, whose "
                "probability is always 1. Is it loss='bce_with_logits'?"
            )
        if self.given is None and outputs > (2 if softmax else 1):
            raise InputError(
                f"{where}: expected positive to be named, since there are {outputs} outputs; got None. Pass "
                f"{self.where}(..., positive=1) with the number of the class, on the command line --positive 1."
            )
        classes = max(outputs, 2)  # of one output two
        if self.given is not None and not 0 <= self.given < classes:
            raise InputError(f"{where}: expected positive to be in 0..{classes - 1}; got {self.given}.")

    @property
    def _number(self) -> int:
        """k"""
        return 1 if self.given is None else self.given

    def probability(self, z: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """(ŷ [B], ∂ŷ/∂z [B, C])"""
        k = self._number
        if loss.form == "bce_with_logits":
            one = z.shape[1] == 1
            sign, column = (1 if k else -1, 0) if one else (1, k)
            slope = torch.zeros_like(z)
            slope[:, column] = sign * torch.sigmoid(z[:, column]) * torch.sigmoid(-z[:, column])
            return torch.sigmoid(sign * z[:, column]), slope
        p = z.softmax(dim=1)
        slope = -p[:, k, None] * p
        slope[:, k] = 0
        slope[:, k] = -slope.sum(dim=1)  # p_k (1 − p_k) without a difference from one
        return p[:, k], slope

    def labelled(self, labels: Tensor, loss: Loss) -> Tensor:
        """Which samples have the label k: [B] bool."""
        k = self._number
        if loss.form == "cross_entropy":
            if labels.dim() != 1:
                raise InputError(
                    f"query: expected integer labels of val for {self.where}, which looks at the samples of one class; got "
                    f"soft targets {list(labels.shape)}."
                )
            return labels == k
        one = labels.shape[1] == 1
        y = labels[:, 0 if one else k]
        if not bool(((y == 0) | (y == 1)).all()):
            raise InputError(
                f"query: expected labels of val to be 0 or 1 for {self.where}, which looks at the positive samples; got others."
            )
        return y == (k if one else 1)
