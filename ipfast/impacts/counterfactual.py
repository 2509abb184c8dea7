"""The gap between the predictions for samples and for their counterparts, such as texts that name another gender."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import Loss
from ..registry import check_choice
from .base import Impact, Samples
from .registry import IMPACTS


class Counterfactual(Impact):
    """f = (1/M) Σ_v d(x_v, x'_v), x'_v the counterpart of x_v; p and p' are their probabilities, z and z' their logits.

        kind="squared":   d = ‖p − p'‖²
        kind="abs":       d = ½ Σ_c |p_c − p'_c|, which of two classes is |p_1 − p'_1|
        kind="symkl":     d = KL(p‖p') + KL(p'‖p)
        kind="logit_sq":  d = ‖z − z'‖²

    The gradient goes through both branches. One output of a binary head stands for p = (1 − σ(z), σ(z)). A negative score says
    that the predictions of the pairs come closer without the sample.

    Args:
        pairs: the counterparts of val, in its order: what val may be, with the same labels; or an array, tensor or .npy path
            of inputs [M, ...] alone, where val is arrays. Of several validation sets a mapping from their names. A sample may
            be its own counterpart, and then adds nothing.
        kind: what d is.

    Raises:
        InputError, InputTypeError: pairs do not belong to val. Where the lengths are known, that is found before any work.

    Source: section 6 of arXiv 2405.17490 measures the share of pairs whose predictions differ, which has no derivative; the
    squared gap is zero where they agree.

    >>> z = torch.tensor([[0.0], [0.0]], dtype=torch.float64)
    >>> from ipfast.losses import BCEWithLogits
    >>> gap = Counterfactual(pairs=torch.zeros(1, 3), kind="logit_sq")
    >>> gap.cotangent(z + torch.tensor([[1.0], [0.0]]), z, BCEWithLogits(), Samples(torch.tensor([0, 0]))).tolist()
    [[2.0], [-2.0]]
    """

    name = "counterfactual"
    additive = False
    by_sample = True

    def __init__(self, pairs: Any = None, *, kind: str = "squared") -> None:
        where = type(self).__name__
        self.kind = check_choice(where, "kind", kind, tuple(_GAPS))
        if pairs is None:
            raise InputError(
                f"{where}: expected pairs, the counterpart of each validation sample; got None. Pass "
                f"impact=ipfast.{where}(pairs=...) in place of {self.name!r}."
            )
        self.pairs = pairs

    def check_outputs(self, where: str, outputs: int, loss: Loss) -> None:
        if self.kind == "logit_sq":
            return
        binary = loss.form == "bce_with_logits" and outputs == 1
        if not binary and not (loss.form == "cross_entropy" and outputs > 1):
            raise InputError(
                f"{where}: expected loss='bce_with_logits' of one output, or loss='cross_entropy' of several, for the "
                f"probabilities of Counterfactual; got {loss.form!r} of {outputs}. kind='logit_sq' takes any."
            )

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        if samples is None:
            raise InputError(
                "query: expected one row of logits for each sample of val, to compare it with its counterpart; got those of "
                "tokens. Pool the tokens of a sequence first."
            )
        half = len(z) // 2
        if len(z) != 2 * half or not torch.equal(samples.rows[:half], samples.rows[half:]):
            raise InputError("query: expected as many pairs as samples of val; got other ones. Give each sample a counterpart.")
        differ = (labels[:half] != labels[half:]).reshape(half, -1).any(dim=1)
        if bool(differ.any()):
            row = int(samples.rows[differ.nonzero()[0, 0]])
            raise InputError(
                f"query: expected pairs in the order of val, each with the label of its sample; row {row} has another label. "
                "Was one of them shuffled or filtered?"
            )
        one_output = z.shape[1] == 1 and self.kind != "logit_sq"
        if one_output:
            z = torch.cat([torch.zeros_like(z), z], dim=1)
        found = torch.cat(_GAPS[self.kind](z[:half], z[half:])) / half
        return found[:, 1:] if one_output else found

    def options(self) -> dict[str, Any]:
        return {"kind": self.kind}


def _squared(z: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    p, q = z.softmax(dim=1), other.softmax(dim=1)
    apart = 2 * _difference(p, q)
    return _through_softmax(p, apart), _through_softmax(q, -apart)


def _abs(z: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    p, q = z.softmax(dim=1), other.softmax(dim=1)
    sign = torch.sign(_difference(p, q)) / 2
    return _through_softmax(p, sign), _through_softmax(q, -sign)


def _symkl(z: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    # Σ_c (p_c − q_c)(z_c − z'_c): the normalisers cancel.
    p, q = z.softmax(dim=1), other.softmax(dim=1)
    apart = _difference(p, q)
    return _through_softmax(p, z - other) + apart, _through_softmax(q, other - z) - apart


def _logit_sq(z: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * (z - other), 2 * (other - z)


_GAPS = {"squared": _squared, "abs": _abs, "symkl": _symkl, "logit_sq": _logit_sq}
"""∂d/∂z and ∂d/∂z' [B, C] of each pair."""


def _difference(p: Tensor, q: Tensor) -> Tensor:
    """p − q, of the likeliest class by the others, since a difference of two numbers near one loses what is left of them."""
    top = p.argmax(dim=1, keepdim=True)
    rest = (p - q).scatter(1, top, 0)
    return rest.scatter(1, top, -rest.sum(dim=1, keepdim=True))


def _through_softmax(p: Tensor, a: Tensor) -> Tensor:
    """J_p a = p∘a − p⟨p, a⟩ [B, C], with a centred at the likeliest class for the same reason."""
    a = a - a.gather(1, p.argmax(dim=1, keepdim=True))
    return p * (a - (p * a).sum(dim=1, keepdim=True))


IMPACTS.add(Counterfactual.name, Counterfactual)
