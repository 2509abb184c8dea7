"""What should improve: functions f(θ; V) of the validation data, to be lowered."""

from __future__ import annotations

from typing import Any

from ..errors import InputTypeError
from .adversarial import Adversarial
from .base import Impact, Samples
from .counterfactual import Counterfactual
from .custom import Custom
from .demographic_parity import DemographicParity
from .equal_opportunity import EqualOpportunity
from .registry import IMPACTS
from .utility import Utility


def get_impact(where: str, impact: Any) -> Impact:
    """The impact called `impact`, the object itself, or a callable f(logits, labels) -> scalar."""
    if isinstance(impact, Impact):
        return impact
    if isinstance(impact, str):
        return IMPACTS.get(where, impact)()
    if callable(impact) and not (isinstance(impact, type) and issubclass(impact, Impact)):
        return Custom(impact)
    raise InputTypeError(
        f"{where}: expected impact to be a name ({', '.join(IMPACTS)}), an object of ipfast.impacts, or a callable "
        f"f(logits, labels) -> scalar; got {'the class ' if isinstance(impact, type) else ''}"
        f"{impact.__name__ if isinstance(impact, type) else type(impact).__name__}."
    )


__all__ = [
    "IMPACTS",
    "Adversarial",
    "Counterfactual",
    "Custom",
    "DemographicParity",
    "EqualOpportunity",
    "Impact",
    "Samples",
    "Utility",
    "get_impact",
]
