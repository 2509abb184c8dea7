"""A whole network as a function of its scored parameters: per-sample losses, and the gradient of a function of its outputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checks import check_evaluation_mode, check_not_compiled
from ..data import Batch, BatchForm
from ..errors import InputError, InputTypeError
from ..losses import Loss
from .last_layer import find_last_layer
from .outputs import call_arguments, dtypes_explained, label_tensor, logits_of_output, moved, rows_of, samples
from .running import uncompiled, whole_checkpoints
from .tokens import counted_tokens, is_counted, token_labels

Parameters = Mapping[str, Tensor]
"""Name -> tensor. A model's other parameters and buffers keep the values it has."""
SampleLoss = Callable[[Any, Any], Tensor]
"""(model, batch) -> ℓ_i [B], with a batch as the data gives it."""


class Network:
    """ℓ_i as a function of the parameters of a model that is never changed.

    All work is done on a copy of the module structure that shares the model's tensors: parameters, hooks, modes and attention
    forms are exchanged there, so the caller's model stays what it is whatever happens.

    Args:
        where: the calling function, for messages.
        model: an nn.Module, called with a tensor, a tuple of arguments or a dictionary of keyword arguments.
        loss: of ipfast.losses, taken of the model's logits; or a callable (model, batch) -> [B].
        params: "all"; "trainable", those that require gradients; or regular expressions searched for in parameter names.
        tokens: ℓ_i of logits [B, T, C]: "mean" or "sum" over the tokens of a sequence that count.
        precision: None, the model's own; "bf16", its products under torch.autocast, with losses in float32.
        check: refuse a model in train mode.

    Attributes:
        parameters: the scored ones, by name; tied ones once, under their first name.
    """

    def __init__(
        self,
        where: str,
        model: nn.Module,
        loss: Loss | SampleLoss,
        *,
        params: str | Sequence[str] = "all",
        tokens: str = "mean",
        precision: str | None = None,
        check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputTypeError(
                f"{where}: expected model to be an nn.Module for params={params!r}; got {type(model).__name__}. "
                "Leave params out to score its last layer."
            )
        check_not_compiled(where, model, within=True)
        if check:
            check_evaluation_mode(where, model)
        self.where, self.model, self.loss, self.tokens = where, model, loss, tokens
        names = scored_names(where, model, params)
        self._every = _own_values(model)
        self.parameters: dict[str, Tensor] = {name: self._every[name] for name in names}
        self.structure = _shared_copy(model, self._every)
        self.step = SampleLosses(self.structure, loss, tokens)
        self.precision = precision
        self._outputs: tuple[int, ...] | None = None  # shape of a sample's logits
        self._head_name: str | None = None
        self.device = next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores: float64 where every scored parameter is."""
        kinds = {value.dtype for value in self.parameters.values()}
        return torch.float64 if kinds == {torch.float64} else torch.float32

    def losses(self, parameters: Parameters, inputs: Any, labels: Any, *, autocast: bool = True) -> Tensor:
        """ℓ_i [B] with these parameters and buffers in place of the model's own; autocast=False leaves casts to the caller."""
        named = {f"model.{name}": value for name, value in parameters.items()}
        explained = dtypes_explained(self.where, self.model, inputs) if self.precision is None else nullcontext()
        with uncompiled(), explained, self._autocast() if autocast else nullcontext():
            values: Tensor = functional_call(self.step, named, (inputs, labels))
        return values

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def logits(self, parameters: Parameters, inputs: Any) -> Tensor:
        """What the model gives for a batch."""
        arguments, keywords = call_arguments(inputs)
        explained = dtypes_explained(self.where, self.model, inputs) if self.precision is None else nullcontext()
        with uncompiled(), explained, self._autocast():
            output = functional_call(self.structure, dict(parameters), arguments, keywords)
        return in_full(logits_of_output(self.where, self.structure, output))

    @contextmanager
    def moved_features(self, inputs: Any, move: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
        """While logits are computed: the input h of the last linear layer plus move(h, z, W) − h, which is a constant."""
        name = self._head(inputs)
        calls = 0

        def change(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            assert isinstance(module, nn.Linear)
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                h, weight = arguments[0].detach(), in_full(module.weight.detach())
                rows = in_full(h.reshape(-1, h.shape[-1])).to(weight)
                z = nn.functional.linear(rows, weight, None if module.bias is None else in_full(module.bias.detach()))
                offset = (move(rows, z, weight) - rows).view_as(h).to(h.dtype)
            return arguments[0] + offset, *arguments[1:]

        handle = self.structure.get_submodule(name).register_forward_pre_hook(change)
        try:
            yield
        finally:
            handle.remove()
        if calls != 1:
            raise InputError(
                f"{self.where}: expected the last linear layer {name!r} to be called once a batch, whose input is moved; it "
                f"was called {calls} times. Use params='last', or another impact."
            )

    def _head(self, inputs: Any) -> str:
        """Name of the linear layer that gives the logits."""
        if self._head_name is None:
            try:
                last = find_last_layer(self.where, self.structure, first_inputs=lambda: inputs, check=False)
                last.features(self.where, inputs, check=True)
            except InputError as error:
                raise InputError(
                    f"{self.where}: expected a network whose logits are the output of an nn.Linear, whose input an adversary "
                    f"moves; {type(self.model).__name__} ends otherwise. Leave out a final softmax, sigmoid or operation in "
                    "place, or use another impact."
                ) from error
            self._head_name = last.name
        return self._head_name

    def counted_logits(self, parameters: Parameters, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(logits [B, C], prepared labels, None); of tokens those that count [K, C], with the weight [K] of each in the loss of
        its sequence."""
        z = self.logits(parameters, inputs)
        if z.dim() == 2:
            return z, labels, None
        z, about = counted_tokens(z, labels, self.tokens)
        return z, about.labels, about.shares()

    def counted_samples(self, labels: Any, count: int) -> int:
        """How many of `count` samples with prepared labels have a loss."""
        return int(self.has_loss(labels, count).sum())

    def has_loss(self, labels: Any, count: int) -> Tensor:
        """Which of `count` samples with prepared labels have one [count]: not a sequence in which no token counts."""
        return is_counted(labels).any(dim=1) if self.of_tokens else torch.ones(count, dtype=torch.bool)

    @property
    def of_tokens(self) -> bool:
        """Whether the model gives logits for each token, as far as a first batch has told."""
        return isinstance(self.loss, Loss) and self._outputs is not None and len(self._outputs) > 1

    def prepare(self, where: str, inputs: Any, labels: Any, count: int, *, loss: Loss | SampleLoss | None = None) -> Any:
        """Checked labels of a batch, as the loss takes them, where the model is."""
        loss = self.loss if loss is None else loss
        if not isinstance(loss, Loss):
            return self.place(labels)
        if self._outputs is None:
            with torch.no_grad():
                self._outputs = tuple(self.logits(self.buffers(), rows_of(inputs, slice(0, 1), count)).shape[1:])
        outputs = self._outputs or (1,)
        if len(outputs) == 1:
            return self.place(loss.prepare(where, label_tensor(where, labels), count, *outputs))
        length = labels.shape[1] if isinstance(labels, Tensor) and labels.dim() > 1 else outputs[0]
        return self.place(token_labels(where, labels, (count, length), loss=loss, outputs=outputs[-1], encode=None))

    def activation_bytes(self, inputs: Any, labels: Any) -> int:
        """Memory of what the layers give for one sample, derivatives and stored inputs counted."""
        count = samples(inputs) or 1
        seen = [1]

        def add(_module: nn.Module, _arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[0] += output.numel() * output.element_size()

        handles = [m.register_forward_hook(add) for m in self.structure.modules() if not list(m.children())]
        try:
            with torch.no_grad():
                one = slice(0, 1)
                self.losses(self.every() | self.buffers(), rows_of(inputs, one, count), rows_of(labels, one, count))
        finally:
            for handle in handles:
                handle.remove()
        return 4 * seen[0]

    def every(self) -> dict[str, Tensor]:
        """All floating-point parameters of the model, scored or not; tied ones once."""
        return dict(self._every)

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers, for a forward pass that may write into them."""
        return {name: value.clone() for name, value in self.model.named_buffers()}

    def state(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model, where the model is."""
        own = self.model.state_dict()
        wrong = [name for name in values if name not in own] + [name for name in own if name not in values]
        wrong += [name for name in values if name in own and values[name].shape != own[name].shape]
        if wrong:
            raise InputError(
                f"{self.where}: expected states to be state dicts of the whole model; one does not fit at {wrong[0]!r}. Save "
                "model.state_dict() of the model that is scored."
            )
        broken = next((name for name, _ in _every(self.model) if not bool(torch.isfinite(values[name]).all())), None)
        if broken is not None:
            raise InputError(
                f"{self.where}: expected states with finite parameters; {broken} of one has NaN or infinity. Did training "
                "diverge? Leave that checkpoint out."
            )
        first: dict[int, str] = {}
        for name, value in _every(self.model):
            tied = first.setdefault(id(value), name)
            if tied != name and not torch.equal(values[name], values[tied]):
                raise InputError(
                    f"{self.where}: expected states of a model that ties {tied!r} and {name!r}; one has different values for "
                    "them. Save model.state_dict() of the model that is scored."
                )
        once = {*first.values(), *(name for name, _ in self.model.named_buffers())}
        return {name: value.to(own[name].device, own[name].dtype) for name, value in values.items() if name in once}

    def only(self, names: Sequence[str]) -> Network:
        """The network with fewer scored parameters."""
        other = copy.copy(self)
        other.parameters = {name: self.parameters[name] for name in names}
        return other

    def measured_by(self, loss: Loss, tokens: str) -> Network:
        """The network with another loss, and another way to put together those of tokens."""
        other = copy.copy(self)
        other.loss, other.tokens, other.step = loss, tokens, SampleLosses(self.structure, loss, tokens)
        return other

    def place(self, part: Any) -> Any:
        """Inputs or labels, moved to where the model is."""
        return moved(part, self.device)

    def enter(self, batch: Batch) -> tuple[Any, int | None]:
        """(inputs where the model is, how many samples they are of, if any); losses are of batches in this form from now on."""
        self.step.form = batch.form
        placed = self.place(batch.inputs)
        return placed, samples(placed)


class SampleLosses(nn.Module):
    """The loss as the output of a module, so that `functional_call` reaches the model inside a caller's own loss."""

    def __init__(self, model: nn.Module, loss: Loss | SampleLoss, tokens: str, form: BatchForm | None = None) -> None:
        super().__init__()
        self.model, self.loss, self.tokens = model, loss, tokens
        self.form = form or BatchForm()  # of the batches that a loss of the user's own gets

    def forward(self, inputs: Any, labels: Any) -> Tensor:
        if isinstance(self.loss, Loss):
            arguments, keywords = call_arguments(inputs)
            z = logits_of_output("score", self.model, self.model(*arguments, **keywords))
            with torch.autocast(z.device.type, enabled=False):
                return sample_values(self.loss, in_full(z), labels, self.tokens)
        return self.loss(self.model, self.form.joined(inputs, labels))


def sample_values(loss: Loss, z: Tensor, labels: Tensor, tokens: str) -> Tensor:
    """ℓ_i [B] of logits [B, C], or of [B, T, C] over the tokens that count."""
    if z.dim() == 2:
        return loss.value(z, labels)
    if labels.shape[:2] != z.shape[:2]:
        raise InputError(
            f"score: expected labels of the {z.shape[1]} tokens that the model gives logits for; got {list(labels.shape)}. Are "
            "they of the same tokens, shifted or padded alike?"
        )
    # With shapes that do not depend on the labels, as vmap needs them.
    counted = is_counted(labels)
    flat = labels.masked_fill(~counted.view(*counted.shape, *[1] * (labels.dim() - 2)), 0).flatten(0, 1)
    values = loss.value(z.flatten(0, 1), flat).view(counted.shape)
    total = torch.where(counted, values, 0).sum(dim=1)
    return total / counted.sum(dim=1).clamp(min=1) if tokens == "mean" else total


def gradients_of(value: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of a scalar; None for leaves that it does not depend on."""
    with whole_checkpoints("score"):
        return torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)


def in_full(z: Tensor) -> Tensor:
    """Logits, or other values, in float32 where they are narrower."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def scored_names(where: str, model: nn.Module, params: str | Sequence[str]) -> list[str]:
    """Names of the scored parameters, in the model's order; tied ones have their first name."""
    named = {name: value for name, value in model.named_parameters() if value.dtype.is_floating_point}
    imaginary = next((name for name, value in model.named_parameters() if value.dtype.is_complex), None)
    if imaginary is not None and params in ("all", "trainable"):
        raise InputTypeError(
            f"{where}: expected real parameters with params={params!r}; {imaginary} is complex, and has no score. Name the "
            "parameters to score with patterns."
        )
    if params == "all":
        names = list(named)
    elif params == "trainable":
        names = [name for name, value in named.items() if value.requires_grad]
    elif isinstance(params, str) or not all(isinstance(pattern, str) for pattern in params):
        raise InputTypeError(
            f"{where}: expected params to be 'last', 'all', 'trainable' or a list of patterns of parameter names; got "
            f"{params!r}. Put a single pattern into a list."
        )
    else:
        tied = {name: first for first, value in named.items() for name, other in _every(model) if other is value}
        for pattern in params:
            try:
                if not any(re.search(pattern, name) for name in tied):
                    raise InputError(
                        f"{where}: expected params to name parameters of the model; none of its {len(named)} matches "
                        f"{pattern!r}. Names look like {', '.join(list(named)[:3])}."
                    )
            except re.error as error:
                raise InputError(
                    f"{where}: expected params to hold regular expressions; {pattern!r} is none ({error})."
                ) from error
        found = {tied[name] for name in tied if any(re.search(pattern, name) for pattern in params)}
        names = [name for name in named if name in found]
    if not names:
        raise InputError(
            f"{where}: expected params={params!r} to name at least one parameter; it names none of the model's {len(named)}. "
            "Use 'all', or patterns of their names."
        )
    return names


def _own_values(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters without their graph; copied are those that a forward pass renormalises in place, and those
    made in inference mode, which take no part in derivatives."""
    renormalised = {id(module.weight) for module in model.modules() if getattr(module, "max_norm", None) is not None}
    return {
        name: value.detach().clone() if id(value) in renormalised or value.is_inference() else value.detach()
        for name, value in model.named_parameters()
        if value.dtype.is_floating_point
    }


def _every(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _shared_copy(model: nn.Module, own: Mapping[str, Tensor]) -> nn.Module:
    """The module structure anew, around the same parameters and copies of what a forward pass may change, buffers and those of
    the parameters that `own` has copies of; the model itself where it cannot be copied."""
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in _every(model)}
    for name, tensor in model.named_parameters():
        if name in own and own[name].data_ptr() != tensor.data_ptr():
            memo[id(tensor)] = nn.Parameter(own[name], requires_grad=tensor.requires_grad)
    memo |= {id(tensor): tensor.clone() for _, tensor in model.named_buffers()}
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # whatever a module's attributes raise; functional_call alone restores them too
        return model
