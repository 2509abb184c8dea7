"""Forward-mode rules: functions of torch on dual numbers, faster than torch's own.

A dual number x + ε ẋ carries a value and its derivative along the query. torch has a forward derivative for nearly every
function; a rule here takes the place of one that a network spends its time in, and computes value and derivative with fewer
passes over memory. Rules are found by the function that is called, so they serve modules and functional code alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import TorchFunctionMode

Rule = Callable[..., Any]
RULES: dict[Callable[..., Any], Rule] = {}


def rule(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for functions of torch, with their arguments; NotImplemented leaves a call to torch."""

    def register(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, made))
        return made

    return register


@overload
def parts(value: Tensor) -> tuple[Tensor, Tensor | None]: ...
@overload
def parts(value: Tensor | None) -> tuple[Tensor | None, Tensor | None]: ...
def parts(value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(x, ẋ); ẋ is None where x does not depend on the scored parameters."""
    if value is None:
        return None, None
    unpacked = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return unpacked.primal, unpacked.tangent


def dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    """x + ε ẋ"""
    if tangent is None:
        return value
    made: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


class TangentRules(TorchFunctionMode):
    """Within this context functions of torch go by the rules, where there is one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = RULES.get(function)
        if found is not None and not torch.is_autocast_enabled():
            result = found(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return function(*args, **(kwargs or {}))
