"""The last linear layer of a model, and the features that go into it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import as_tensor, check_evaluation_mode, check_finite_parameters, check_not_compiled
from ..data.files import read_head, read_head_name
from ..errors import InputError, InputTypeError
from ..originals import RefuseOriginals
from .autocast import callers_autocast
from .estimators import EstimatorLabels, is_estimator, read_columns, read_estimator, read_penalty
from .outputs import call_arguments, dtypes_explained, logits_in, moved

LINEAR = 0.02
"""Of the norm of W h + b, by which a head's outputs may differ from it: more than the rounding of bfloat16, which a model may
compute in, and less than what another function makes of it."""
LINEAR_ROWS = 256


@dataclass(frozen=True)
class LastLayer:
    """z = W h + b with h = backbone(inputs); without a backbone the inputs are the features.

    Attributes:
        weight: W [C, d]. bias: b [C] or None.
        backbone: the whole model, run to collect the input of its module `name`; None for features.
        name: of the head in the model, "" for a bare linear layer.
        loss: what the model was trained with, where it says so (scikit-learn), else None.
        encode: labels as the user has them -> labels as the loss takes them; None: unchanged.
        l2: λ of (λ/2)‖W‖² beside the sum of the losses, where the model says so (scikit-learn).
        class_weight: by which the losses of the classes were weighted, where the model says so (scikit-learn).
        original: the model that the backbone is a copy of, if it is.
        columns: names of the features in their order, where the model knows them (scikit-learn).
        parameters: what weight and bias are called in the model that the head is from; tied ones have their first name.
    """

    weight: Tensor
    bias: Tensor | None
    backbone: nn.Module | None = None
    name: str = ""
    loss: str | None = None
    encode: EstimatorLabels | None = None
    l2: float = 0.0
    class_weight: Any = None
    parameters: tuple[str, str] = ("weight", "bias")
    columns: tuple[str, ...] | None = None
    original: nn.Module | None = None

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def to(self, device: torch.device) -> LastLayer:
        """The same layer with its parameters on `device`; a backbone stays where it is."""
        if self.weight.device == device:
            return self
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def module(self) -> nn.Module:
        """The model that a state dict or a training run is of: the whole one, or a linear layer of the head on features."""
        if self.backbone is not None:
            return self.backbone
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        linear = nn.utils.skip_init(nn.Linear, self.width, self.outputs, bias=self.bias is not None, **like)  # type: ignore[no-untyped-call]
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    def at(self, where: str, state: Mapping[str, Tensor], into: nn.Module | None = None) -> LastLayer:
        """The layer where its model has the parameters and buffers of `state`, in a copy or in `into`, an earlier copy."""
        module = into or (self.module() if self.backbone is None else copy.deepcopy(self.backbone))
        try:
            module.load_state_dict(dict(state))
        except RuntimeError as error:
            reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
            kind = "the nn.Linear, for a head on features" if self.backbone is None else "the whole model"
            raise InputError(f"{where}: expected states to be state dicts of {kind}; one does not fit. {reasons}") from error
        linear = module if self.backbone is None else module.get_submodule(self.name)
        assert isinstance(linear, nn.Linear)
        check_finite_parameters(where, weight=linear.weight, bias=linear.bias)
        backbone = None if self.backbone is None else module
        original = self.original or self.backbone
        return replace(self, weight=linear.weight.detach(), bias=_bias(linear), backbone=backbone, original=original)

    def features(self, where: str, inputs: Any, *, check: bool = False) -> Tensor:
        """h [B, d] of a batch, or [B, T, d] of tokens; the backbone runs once, under inference_mode.

        With `check` the head's outputs must be W h + b.
        """
        if self.backbone is None:
            if isinstance(inputs, tuple):
                raise InputError(
                    f"{where}: expected batches (features, labels) for a linear head; got {len(inputs)} inputs a batch."
                )
            h = as_tensor(inputs) if isinstance(inputs, np.ndarray) else torch.as_tensor(inputs)
            return _rows(where, h.detach(), self.width)
        with nullcontext() if self.original is None else RefuseOriginals(where, self.original):
            calls, _ = _head_calls(where, self.backbone, self.name, inputs)
        if len(calls) != 1:
            raise InputError(
                f"{where}: expected the head {self.name!r} to be called once a batch; it was called {len(calls)} times. "
                "Scores of its parameters need one call; name another layer with head=."
            )
        (h, z), *_ = calls
        if check:
            self.require_linear(where, h, z)
        return _rows(where, h, self.width)

    def require_linear(self, where: str, h: Tensor, z: Tensor) -> None:
        """Refuse a head whose outputs z are not W h + b."""
        rows, found = h.reshape(-1, h.shape[-1])[:LINEAR_ROWS], z.reshape(-1, z.shape[-1])[:LINEAR_ROWS].double()
        weight, bias = self.weight.double(), None if self.bias is None else self.bias.double()
        expected = nn.functional.linear(rows.to(weight.device).double(), weight, bias).to(found.device)
        if not bool(((found - expected).norm() <= LINEAR * expected.norm()).all()) and bool(torch.isfinite(expected).all()):
            of = f"the layer {self.name!r}" if self.name else "the nn.Linear"
            raise InputError(
                f"{where}: expected outputs W h + b of the head; those of {of} differ from it by {_apart(found, expected):.2g} "
                "of their size, so a subclass, a hook or an operation in place makes something else of them, whose gradient is "
                "another one. End the model with a plain nn.Linear, or score with params=, which takes any network."
            )


def _head_calls(where: str, model: nn.Module, name: str, inputs: Any) -> tuple[list[tuple[Tensor, Tensor]], Any]:
    """(what goes into the head and what comes out of it, call by call; the model's output) of a batch."""
    calls: list[tuple[Tensor, Tensor]] = []

    def after(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
        calls.append((taken.pop(), output))

    # A copy, since the model may change its features in place afterwards.
    taken: list[Tensor] = []

    def before(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        value = arguments[0] if arguments else keywords["input"]
        taken.append(value.detach().clone())

    head = model.get_submodule(name)
    handles = [
        head.register_forward_pre_hook(before, with_kwargs=True),
        head.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        with torch.inference_mode():
            return calls, _run(where, model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float64).tiny))


def _rows(where: str, h: Tensor, width: int) -> Tensor:
    if h.dim() == 1 and width == 1:
        h = h[:, None]
    if h.dim() not in (2, 3) or h.shape[-1] != width:
        raise InputError(
            f"{where}: expected features of shape [N, {width}] for this head; got {list(h.shape)}. Check that model and data "
            f"belong together. Features of tokens have the shape [N, T, {width}]."
        )
    if h.dtype.is_complex:
        raise InputTypeError(f"{where}: expected real features; got {h.dtype}. Pass real and imaginary parts side by side.")
    if not h.dtype.is_floating_point:
        h = h.float()
    return h


def _run(where: str, model: nn.Module, inputs: Any) -> Any:
    """The model's output on a batch, moved to where the model is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    arguments, keywords = call_arguments(moved(inputs, device))
    with dtypes_explained(where, model, inputs), callers_autocast():
        return model(*arguments, **keywords)


def logits_of(where: str, model: nn.Module, inputs: Any) -> Tensor | None:
    """The logits that a model gives for a batch; None where its output holds none."""
    return logits_in(_run(where, model, inputs))


def find_last_layer(
    where: str, model: Any, *, head: str | None = None, first_inputs: Callable[[], Any] | None = None, check: bool = True
) -> LastLayer:
    """Find the head of `model`: named, or by running the model and seeing which nn.Linear makes its output.

    Args:
        where: the calling function, for messages.
        model: an nn.Module ending in an nn.Linear, a bare nn.Linear, a fitted scikit-learn linear classifier, or the path of
            a head.
        head: name of the head among model.named_modules(); None finds it.
        first_inputs: gives the inputs of one batch to find the head with.
        check: refuse a model in train mode and a head with NaN.
    """
    origin = ""
    if isinstance(model, (str, os.PathLike)):
        model, origin = read_head(where, model), read_head_name(where, model)
    if is_estimator(model):
        weight, bias, loss, encode = read_estimator(where, model)
        last = LastLayer(
            weight,
            bias,
            loss=loss,
            encode=encode,
            l2=read_penalty(model),
            class_weight=getattr(model, "class_weight", None),
            columns=read_columns(model),
        )
    elif isinstance(model, nn.Linear):
        names = (f"{origin}.weight", f"{origin}.bias") if origin else ("weight", "bias")
        _require_numbers(where, model)
        h, z = _tried(model)  # before the weight is read, which a hook may compute
        last = LastLayer(model.weight.detach(), _bias(model), parameters=names)
        if check:
            last.require_linear(where, h, z)
    elif isinstance(model, nn.Module):
        check_not_compiled(where, model, within=False)
        if check:
            check_evaluation_mode(where, model)
        inputs = None if first_inputs is None or head is not None else first_inputs()
        name = head if head is not None else _find_by_running(where, model, inputs)
        linear = _linear_called(where, model, name)
        _require_numbers(where, linear)
        last = LastLayer(linear.weight.detach(), _bias(linear), model, name, parameters=_parameter_names(model, name, linear))
        if check and head is None:
            calls, output = _head_calls(where, model, name, inputs)
            logits = logits_in(output)
            assert logits is not None  # by which the head was found
            last.require_linear(where, calls[-1][0], logits)
    else:
        raise InputTypeError(
            f"{where}: expected model to be an nn.Module that ends in an nn.Linear, an nn.Linear on features, or a fitted "
            f"scikit-learn linear classifier; got {type(model).__name__}."
        )
    if check:
        check_finite_parameters(where, weight=last.weight, bias=last.bias)
    return last


def _require_numbers(where: str, linear: nn.Linear) -> None:
    """Refuse a head without features, or without values."""
    if not linear.in_features:
        raise InputError(f"{where}: expected a head of at least one feature; got d = 0. Check what was selected.")
    if any(value.is_meta for value in linear.parameters()):
        raise InputError(f"{where}: expected a head with values; it is on the device 'meta'. Load the model first.")


def _tried(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Some features, and what the layer makes of them."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4, linear.in_features, generator=generator).to(linear.weight)
    with torch.inference_mode():
        return h, linear(h)


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _parameter_names(model: nn.Module, name: str, linear: nn.Linear) -> tuple[str, str]:
    """Names of weight and bias in the model; of tied parameters the first one."""
    first = {id(parameter): key for key, parameter in model.named_parameters()}
    return first.get(id(linear.weight), f"{name}.weight"), first.get(id(linear.bias), f"{name}.bias")


def _linear_called(where: str, model: nn.Module, name: str) -> nn.Linear:
    modules = dict(model.named_modules())
    linears = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
    if name not in modules:
        raise InputError(
            f"{where}: expected head to name a layer of the model; there is no {name!r}. Its linear layers are: "
            f"{', '.join(linears) or 'none'}."
        )
    module = modules[name]
    if not isinstance(module, nn.Linear):
        raise InputTypeError(
            f"{where}: expected the head to be an nn.Linear; {name!r} is a {type(module).__name__}. Its linear layers are: "
            f"{', '.join(linears) or 'none'}."
        )
    return module


def _find_by_running(where: str, model: nn.Module, inputs: Any) -> str:
    if inputs is None:
        raise InputError(f"{where}: expected head to name the model's last linear layer, since there is no data to find it.")
    calls: list[tuple[str, int, int]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _arguments, output: calls.append((name, output.data_ptr(), output.numel()))

    handles = [
        module.register_forward_hook(record(name)) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    try:
        with torch.inference_mode():
            logits = logits_of(where, model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if logits is not None:
        # The output must be the layer's own, not a softmax of it: same memory, same number of elements.
        for name, pointer, elements in reversed(calls):
            if pointer == logits.data_ptr() and elements == logits.numel():
                return name
    names = list(dict.fromkeys(name for name, _, _ in calls))
    raise InputError(
        f"{where}: expected a model whose output is the output of an nn.Linear; {type(model).__name__} ends otherwise "
        f"(linear layers that ran: {', '.join(names) or 'none'}). Leave out a final softmax or sigmoid, or name the layer "
        "whose outputs are the logits, as in head='fc'."
    )
