"""Which scored parameters are taken layer by layer, found by watching the network run on one sample and on two."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..layers import LayerRule, can_share, layer_rule
from .network import Network
from .outputs import rows_of, samples
from .running import without_fast_path

ELSEWHERE = "its layer does not have the samples in its first dimension"


@dataclass
class Use:
    """A layer with scored parameters and a rule.

    Attributes:
        name: of the layer. names: its own parameter names -> those of the network.
        copy_input: whether its input is changed in place before the backward pass reaches it, and so must be copied.
        spread: whether its output is one for all samples, as that of position embeddings, and so must be given to each.
    """

    name: str
    module: nn.Module
    rule: LayerRule
    names: dict[str, str]
    copy_input: bool = False
    spread: bool = False


@dataclass
class Plan:
    """Which scored parameters are taken layer by layer, and which otherwise.

    Attributes:
        uses: the layers.
        repeated: parameters that several layers or calls share, whose gradients add up before a norm is taken.
        remainder: parameters without a rule, or used outside of their layers; name -> why.
    """

    uses: list[Use] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    remainder: dict[str, str] = field(default_factory=dict)

    def forms(self, name: str) -> bool:
        """Whether a parameter's gradient is formed for a norm: where it is shared in a way that no rule knows."""
        rules = [use.rule for use in self.uses if name in use.names.values()] if name in self.repeated else []
        return bool(rules) and not can_share(rules)


def make_plan(network: Network, inputs: Any, labels: Any) -> Plan:
    """The plan for a network, from one sample and from all of these few."""
    owners = _owners(network)
    probe = _Probe(network, owners)
    count = samples(inputs) or 1
    for rows in range(1, count + 1):
        probe.run(rows_of(inputs, slice(0, rows), count), rows_of(labels, slice(0, rows), count), rows)
    plan = Plan()
    for name in network.parameters:
        places = [module for module, own in owners.items() if name in own.values()]
        if not places:
            plan.remainder[name] = "no layer of a known type has it"
        elif name in probe.outside:
            plan.remainder[name] = f"used by {probe.outside[name]}, outside of its layer"
        elif not any(probe.calls[module] for module in places):
            plan.remainder[name] = "its layer was not called on the first samples"
        elif any(module in probe.unusual for module in places):
            plan.remainder[name] = ELSEWHERE
        elif sum(probe.calls[module] for module in places) > 1:
            plan.repeated.add(name)
    modules = dict(network.structure.named_modules())
    for module_name, own in owners.items():
        taken = {short: full for short, full in own.items() if full not in plan.remainder}
        rule = layer_rule(modules[module_name])
        if taken and rule is not None:
            spread = count > 1 and module_name in probe.single
            plan.uses.append(Use(module_name, modules[module_name], rule, taken, spread=spread))
    return plan


def input_of(arguments: Any, keywords: Any) -> Tensor:
    """What a layer was called on."""
    value: Tensor = arguments[0] if arguments else next(iter(keywords.values()))
    return value


def sizes_of(arguments: Any, keywords: Any, output: Any) -> list[int]:
    """First dimensions of a layer's input and output."""
    both = (input_of(arguments, keywords), output)
    return [len(value) for value in both if isinstance(value, Tensor) and value.dim()]


def _owners(network: Network) -> dict[str, dict[str, str]]:
    """Layers with a rule: name -> {own parameter name: the network's name}, of scored parameters."""
    first = {id(value): name for name, value in network.model.named_parameters()}
    found = {}
    for name, module in network.structure.named_modules():
        original = network.model.get_submodule(name)
        own = {short: first[id(value)] for short, value in original.named_parameters(recurse=False)}
        # A rule knows no others, such as those from which pruning computes the weight.
        own = {short: full for short, full in own.items() if full in network.parameters and short in ("weight", "bias")}
        if own and layer_rule(module) is not None:
            found[name] = own
    return found


class _Probe(TorchFunctionMode):
    """Watches forward passes: which layers are called, and which scored parameters are used outside of them."""

    def __init__(self, network: Network, owners: dict[str, dict[str, str]]) -> None:
        super().__init__()
        self.network, self.owners = network, owners
        self.calls = dict.fromkeys(owners, 0)
        self.unusual: set[str] = set()
        self.single: set[str] = set()
        self.outside: dict[str, str] = {}
        self._inside: list[str] = []
        self._known: dict[int, str] = {}

    def run(self, inputs: Any, labels: Any, count: int) -> None:
        self.calls = dict.fromkeys(self.owners, 0)
        theta = self.network.every()
        self._known = {id(theta[name]): name for name in self.network.parameters}
        modules = dict(self.network.structure.named_modules())
        handles = []
        for name in self.owners:
            # What hooks of the model's own do is outside of the layer: they run before the one and after the other.
            after = partial(self._after, name, count)
            handles.append(modules[name].register_forward_pre_hook(partial(self._before, name)))
            handles.append(modules[name].register_forward_hook(after, with_kwargs=True, always_call=True, prepend=True))
        try:
            with torch.no_grad(), without_fast_path(), self:
                self.network.losses(theta, inputs, labels)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, _module: nn.Module, _arguments: Any) -> None:
        self._inside.append(name)

    def _after(self, name: str, count: int, _module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        self._inside.pop()
        self.calls[name] += 1
        sizes = sizes_of(arguments, keywords, output)
        if sizes == [1, 1] and count > 1:
            self.single.add(name)
        elif sizes != [count, count]:
            self.unusual.add(name)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs)):
            name = self._known.get(id(value))
            if name is None or any(name in self.owners[inside].values() for inside in self._inside):
                continue
            # To read its dtype or its shape is not to use it.
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
                self.outside[name] = getattr(function, "__name__", str(function))
        return result
