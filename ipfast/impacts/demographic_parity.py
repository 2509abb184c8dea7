"""The gap between the positive rates of two groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from ..losses import Loss
from .base import Impact, Samples
from .probability import Positive
from .registry import IMPACTS
from .two_groups import TwoGroups


class DemographicParity(Impact):
    """f = |Δ|, Δ = mean of ŷ over group 1 − mean of ŷ over group 0, with the probability ŷ of the positive class.

        ∂f/∂z_v = sign(Δ) (±1/|V_g|) ∂ŷ_v/∂z_v,    + for group 1, sign(0) = 0

    Probabilities in place of hard predictions are what makes the gap differentiable. A negative score says that f falls,
    and the model becomes fairer, without the sample. That holds as far as Δ = 0: with too many samples dropped the gap opens
    again on the other side.

    Args:
        groups: [M] the sensitive group of each sample of val, in its order: two values, numbers or strings, of which the one
            that sorts first is group 0. An array, a tensor, a Series or an .npy path; of several validation sets a mapping from
            their names. With val_groups each query takes its own samples.
        signed: take f = Δ, which falls as group 0 gains on group 1, whatever its sign is.
        positive: number of the positive class; None: class 1 of two. A single output tells classes 0 and 1 apart.

    Raises:
        InputError, InputTypeError: groups are not M of two values. Where M is known, that is found before any work.

    Source: Eq. (3) of arXiv 2405.17490.

    >>> parity, p = DemographicParity([0, 1]), torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=torch.float64)
    >>> from ipfast.losses import CrossEntropy
    >>> parity.cotangent(p.log(), torch.tensor([0, 0]), CrossEntropy(), Samples(torch.arange(2))).mul(16).round().tolist()
    [[-3.0, 3.0], [3.0, -3.0]]
    """

    name = "demographic_parity"
    additive = False
    by_sample = True

    def __init__(self, groups: Any = None, *, signed: bool = False, positive: int | None = None) -> None:
        where = type(self).__name__
        require_groups(where, self.name, groups)
        if not isinstance(signed, bool):
            raise InputTypeError(f"{where}: expected signed to be True or False; got {type(signed).__name__}.")
        self.groups, self.signed, self.positive = TwoGroups(where, groups), signed, Positive(where, positive)

    def check_samples(self, where: str, names: Sequence[str] | None, counts: Sequence[int | None]) -> None:
        self.groups.check(where, names, counts)

    def check_outputs(self, where: str, outputs: int, loss: Loss) -> None:
        self.positive.check(where, outputs, loss)

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        one = self.groups.of(samples)
        value, slope = self.positive.probability(z, loss)
        return gap_cotangent(self.groups, one, value, slope, signed=self.signed, among="samples of val")

    def options(self) -> dict[str, Any]:
        return {"signed": self.signed, "positive": self.positive.given, "groups": list(self.groups.names)}


def require_groups(where: str, name: str, groups: Any) -> None:
    """Refuse an impact of groups that was asked for by its name alone."""
    if groups is None:
        raise InputError(
            f"{where}: expected groups, the sensitive group of each validation sample; got None. Pass "
            f"impact=ipfast.{where}(groups=...) in place of {name!r}."
        )


def gap_cotangent(groups: TwoGroups, one: Tensor, value: Tensor, slope: Tensor, *, signed: bool, among: str) -> Tensor:
    """∂f/∂z [B, C] of the gap of the mean of `value` [B], whose derivative is `slope` [B, C], between the groups."""
    zeros, ones = groups.require_both(one, among)
    sign = 1.0 if signed else float(torch.sign(value[one].mean() - value[~one].mean()))
    weight = torch.where(one, slope.new_tensor(sign / ones), slope.new_tensor(-sign / zeros))
    return weight[:, None] * slope


IMPACTS.add(DemographicParity.name, DemographicParity)
