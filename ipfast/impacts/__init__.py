"""What should improve: functions f(θ; V) of the validation data, to be lowered."""

from __future__ import annotations

from typing import Any

from ..errors import InputTypeError
from .base import Impact
from .custom import Custom
from .registry import IMPACTS
from .utility import Utility


def get_impact(where: str, impact: Any) -> Impact:
    """The impact called `impact`, the object itself, or a callable f(logits, labels) -> scalar."""
    if isinstance(impact, Impact):
        return impact
    if isinstance(impact, str):
        return IMPACTS.get(where, impact)()
    if callable(impact):
        return Custom(impact)
    raise InputTypeError(
        f"{where}: expected impact to be a name ({', '.join(IMPACTS)}) or a callable f(logits, labels) -> scalar; "
        f"got {type(impact).__name__}."
    )


__all__ = ["IMPACTS", "Custom", "Impact", "Utility", "get_impact"]
