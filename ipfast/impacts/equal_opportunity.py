"""The gap between two groups among the samples whose label is positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputTypeError
from ..losses import Loss
from ..registry import check_choice
from .base import Impact, Samples
from .demographic_parity import gap_cotangent, require_groups
from .probability import Positive
from .registry import IMPACTS
from .two_groups import TwoGroups


class EqualOpportunity(Impact):
    """f = |Δ| over the samples of val whose label is the positive class.

        of="loss":         Δ = mean of ℓ over group 0 − mean of ℓ over group 1
        of="probability":  Δ = mean of ŷ over group 1 − mean of ŷ over group 0, the gap of the true positive rates

    Both grow as group 1 is served better.

    Args:
        groups, signed, positive: as in DemographicParity.
        of: what is compared.

    Raises:
        InputError, InputTypeError: groups are not M of two values, or labels of val are soft.

    Source: the loss gap is that of the code of Chhabra et al., "What data benefits my classifier?" (ICLR 2024); equal
    opportunity itself is that of Hardt et al., arXiv 1610.02413.
    """

    name = "equal_opportunity"
    additive = False
    by_sample = True

    def __init__(self, groups: Any = None, *, of: str = "loss", signed: bool = False, positive: int | None = None) -> None:
        where = type(self).__name__
        require_groups(where, self.name, groups)
        self.of = check_choice(where, "of", of, ("loss", "probability"))
        if not isinstance(signed, bool):
            raise InputTypeError(f"{where}: expected signed to be True or False; got {type(signed).__name__}.")
        self.groups, self.signed, self.positive = TwoGroups(where, groups), signed, Positive(where, positive)

    def check_samples(self, where: str, names: Sequence[str] | None, counts: Sequence[int | None]) -> None:
        self.groups.check(where, names, counts)

    def check_outputs(self, where: str, outputs: int, loss: Loss) -> None:
        self.positive.check(where, outputs, loss)

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        one, chosen = self.groups.of(samples), self.positive.labelled(labels, loss)
        z, labels = z[chosen], labels[chosen]
        if self.of == "probability":
            value, slope = self.positive.probability(z, loss)
        else:  # group 0 − group 1
            value, slope = -loss.value(z, labels), -loss.residual(z, labels)
        part = gap_cotangent(
            self.groups, one[chosen], value, slope, signed=self.signed, among="samples of val with a positive label"
        )
        every = torch.zeros(len(chosen), z.shape[1], dtype=part.dtype, device=part.device)
        every[chosen] = part
        return every

    def options(self) -> dict[str, Any]:
        about = {"of": self.of, "signed": self.signed, "positive": self.positive.given}
        return {**about, "groups": list(self.groups.names)}


IMPACTS.add(EqualOpportunity.name, EqualOpportunity)
