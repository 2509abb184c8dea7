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
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

Rule = Callable[..., Any]
RULES: dict[Callable[..., Any], Rule] = {}


PRODUCTS = {
    *(F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.scaled_dot_product_attention),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d, torch.einsum, torch.tensordot),
    *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, Tensor.addmm, Tensor.baddbmm),
}
"""Functions that torch.autocast takes in the narrow dtype."""
FULL = {
    *(F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm, F.instance_norm),
    *(F.multi_head_attention_forward, F.prelu, F.bilinear),
    *(torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu),
    *(torch.gru_cell, torch.lstm_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),
}
"""Functions that need their arguments in one dtype; here float32."""


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
    """Within this context functions of torch go by the rules, where there is one.

    What a network computes under torch.no_grad() is constant to autograd. Forward mode, which takes no notice of that, loses
    its derivatives there; so this context must be entered with gradients enabled.

    Args:
        products: dtype of products, as under torch.autocast, whose casts lose the derivative; None: that of the arguments.
    """

    def __init__(self, products: torch.dtype | None = None) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            result = function(*args, **kwargs)
            return result if args and result is args[0] else tree_map_only(Tensor, _constant, result)
        device = next((kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)), None)
        if device is not None:  # of the network's own
            with torch.autocast(device, enabled=False):
                return self._applied(function, args, kwargs, torch.get_autocast_dtype(device))
        return self._applied(function, args, kwargs, self.products)

    @staticmethod
    def _applied(function: Any, args: Any, kwargs: Any, products: torch.dtype | None) -> Any:
        if (products is not None or function in RULES) and any(map(_differentiated, tree_leaves((args, kwargs)))):
            return function(*args, **kwargs)
        if products is not None:
            args, kwargs = _cast(function, args, kwargs, products)
        found = RULES.get(function)
        if found is not None:
            result = found(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(*args, **kwargs)


def _differentiated(value: Any) -> bool:
    """Whether the network itself takes a derivative by this tensor, which must keep its tangent on the way; or maps over it."""
    return isinstance(value, Tensor) and (value.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(value))


def _constant(value: Tensor) -> Tensor:
    """x without ẋ."""
    return parts(value)[0]


def _cast(function: Any, args: Any, kwargs: Any, products: torch.dtype) -> tuple[Any, Any]:
    """Arguments of products in the narrow dtype, of other functions in float32 where they are of several dtypes."""
    kinds = {value.dtype for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
    if function in PRODUCTS:
        wanted, given = products, {torch.float32}
    elif {products, torch.float32} <= kinds and function in FULL:
        wanted, given = torch.float32, {products}
    else:
        return args, kwargs

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in given:
            return value
        x, dx = parts(value)
        return dual(x.to(wanted), None if dx is None else dx.to(wanted))

    return tree_map(cast, (args, kwargs))  # type: ignore[no-any-return]
