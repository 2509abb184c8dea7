"""The loss of samples that an adversary has moved across the decision boundary."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from ..losses import Loss
from .base import Impact, Samples
from .registry import IMPACTS


class Adversarial(Impact):
    """f = (1/M) Σ_v ℓ(ȟ_v, y_v) with the features that the smallest change brings to another class, y unchanged.

        one output:    ȟ = h − γ (wᵀh + b)/‖w‖² w,    whose logit is (1 − γ)(wᵀh + b)
        C outputs:     ȟ = h − γ (z_ŷ − z_c)/‖w_ŷ − w_c‖² (w_ŷ − w_c),    c = argmin over c ≠ ŷ of (z_ŷ − z_c)/‖w_ŷ − w_c‖

    γ = 1 lands on the boundary, so that γ > 1 changes every prediction of a binary head. The adversary moves the input of the
    last linear layer, which for a linear model is the sample itself, knows the parameters θ_t at which the gradient is taken,
    and moves all of val. What it adds is a constant: no gradient goes through the attack, but over a whole network it does go
    through h.

    Args:
        gamma: γ, above 1.

    Raises:
        InputError: the loss is not one of a binary or a softmax classifier, or no change of the features changes the class.

    Source: Eq. (4) of arXiv 2405.17490; the closed form: Megyeri et al. 2019. The extension to C outputs is that of DeepFool
    (arXiv 1511.04599) for a linear layer.

    >>> w, h = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]])
    >>> (Adversarial(gamma=2.0).attacked(h, h @ w.T, w) @ w.T).round(decimals=5).tolist()
    [[-7.0]]
    """

    name = "adversarial"
    additive = True
    attacks = True

    def __init__(self, gamma: float = 1.3) -> None:
        where = type(self).__name__
        if isinstance(gamma, bool) or not isinstance(gamma, Real):
            raise InputTypeError(f"{where}: expected gamma to be a number above 1; got {type(gamma).__name__}.")
        if not 1 < gamma < math.inf:
            raise InputError(f"{where}: expected gamma to be above 1, where a prediction changes; got {gamma:g}.")
        self.gamma: float = float(gamma)

    def check_outputs(self, where: str, outputs: int, loss: Loss) -> None:
        binary = loss.form == "bce_with_logits" and outputs == 1
        if not binary and not (loss.form == "cross_entropy" and outputs > 1):
            raise InputError(
                f"{where}: expected loss='bce_with_logits' of one output, or loss='cross_entropy' of several, for the impact "
                f"'adversarial', which moves samples to another class; got {loss.form!r} of {outputs}."
            )

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        return loss.residual(z, labels)

    def attacked(self, h: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        wide, z = weight.double(), z.double()
        if z.shape[1] == 1:
            square = wide.square().sum()
            _require_reach(bool(square > 0))
            change = (z / square) * wide
        else:
            change = _to_nearest(z, wide)
        return (h.double() - self.gamma * change).to(h.dtype)

    def options(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


def _to_nearest(z: Tensor, weight: Tensor) -> Tensor:
    """h − x for the point x nearest to h [B, d] at which another class has the largest logit's value."""
    top = z.argmax(dim=1)
    tops, place = torch.unique(top, return_inverse=True)
    # By differences, since norms and products would cancel for rows that are nearly the same.
    length = torch.cdist(weight[tops], weight, compute_mode="donot_use_mm_for_euclid_dist")[place]
    margin = z.gather(1, top[:, None]) - z
    # Rows of equal weights never change places, and a class is none to go to from itself.
    distance = torch.where(length > 0, margin / length, torch.inf).scatter(1, top[:, None], torch.inf)
    nearest = distance.argmin(dim=1)
    rows = nearest[:, None]
    _require_reach(not bool(torch.isinf(distance.gather(1, rows)).any()))
    factor = margin.gather(1, rows) / length.gather(1, rows).square()
    return factor * (weight[top] - weight[nearest])


def _require_reach(reached: bool) -> None:
    """Refuse a head whose weights do not tell classes apart."""
    if not reached:
        raise InputError(
            "query: expected a head in which a change of the features can change the class; all classes have the same weights. "
            "Was it trained?"
        )


IMPACTS.add(Adversarial.name, Adversarial)
