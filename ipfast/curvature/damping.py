"""How much is added to a curvature's diagonal, where the caller does not say."""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError, InputTypeError
from .base import Problem

SHARE = 0.1
"""Of the mean eigenvalue."""


def check_number(where: str, argument: str, value: Any, *, allowed: str | None = None, positive: bool = False) -> None:
    """Refuse what is neither a finite number ≥ 0 (> 0) nor the word that is allowed in its place; None is allowed where None is
    the word."""
    if value == allowed and type(value) is type(allowed):
        return
    words = "" if allowed is None else f", or {allowed!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputTypeError(f"{where}: expected {argument} to be a number{words}; got {value!r}.")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise InputError(f"{where}: expected {argument} to be a finite number {bound}{words}; got {value!r}.")


def chosen_damping(where: str, damping: float | str, problem: Problem, *, ggn: bool = False) -> float:
    """The damping asked for; "auto" is SHARE of the mean eigenvalue tr(∇²L)/P."""
    if not isinstance(damping, str):
        return float(damping)
    mean = problem.trace(ggn=ggn) / problem.size
    if not math.isfinite(mean) or mean <= 0:
        raise InputError(
            f"{where}: expected a mean curvature above zero for damping='auto'; got {mean:.3g}, so the training loss is flat "
            "or mostly bent downwards here. Pass damping=, or ggn=True."
        )
    return SHARE * mean
