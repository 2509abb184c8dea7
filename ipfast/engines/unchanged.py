"""What a network computes alike at several points: the modules before the scored parameters, run once a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..tangents import parts
from .network import Network

PLAIN = (Tensor, type(None), bool, int, float, str)
"""What the arguments of a module may hold, so that they can be compared."""


@dataclass
class Call:
    """Arguments and output of a module, and how often each of their tensors had been changed in place by then."""

    leaves: list[Any]
    form: Any
    output: Any
    versions: list[int]

    def holds(self, leaves: list[Any], form: Any) -> bool:
        """Whether the module, called with these arguments, gives the output again."""
        if form != self.form or self.versions != _versions(self.leaves, self.output):
            return False
        return all(map(_same, self.leaves, leaves))


class Unchanged:
    """Outputs of modules that hold parameters, but no scored ones, are kept while a batch passes at one point after another.

    For points that differ in scored parameters alone. A module is not run again where it gets the same values, bit by bit, as
    before; nothing is assumed of the order in which a network calls its modules, or of what it does between them. Arguments
    that depend on scored parameters, or hold more than tensors and numbers, are not compared: the module runs.

    Attributes:
        modules: the outermost ones that hold no scored parameter.
    """

    def __init__(self, network: Network) -> None:
        # Methods are exchanged on a copy of the structure, never on the caller's model.
        own = network.structure is not network.model
        self.modules = list(_outermost(network.model, network.structure, _scored(network))) if own else []
        self._calls: dict[tuple[int, bool], list[Call]] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While one batch passes."""
        before = [module.__dict__.get("forward") for module in self.modules]
        try:
            for module in self.modules:
                module.forward = partial(self._called, id(module), module.forward)
            yield
        finally:
            for module, forward in zip(self.modules, before, strict=True):
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward
            self._calls.clear()

    def _called(self, key: int, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        leaves, form = tree_flatten((arguments, keywords))
        if not all(isinstance(leaf, PLAIN) for leaf in leaves) or any(map(_depends, leaves)):
            return forward(*arguments, **keywords)
        calls = self._calls.setdefault((key, torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")), [])
        for call in calls:
            if call.holds(leaves, form):
                return call.output
        output = forward(*arguments, **keywords)
        several = output if type(output) is tuple else (output,)
        if all(value is None or (isinstance(value, Tensor) and not _depends(value)) for value in several):
            calls.append(Call(leaves, form, output, _versions(leaves, output)))
        return output


def _scored(network: Network) -> set[int]:
    """Identities of the scored parameters in the model."""
    return {id(value) for name, value in network.model.named_parameters() if name in network.parameters}


def _outermost(model: nn.Module, structure: nn.Module, scored: set[int]) -> Iterator[nn.Module]:
    """Modules of the structure with parameters, of which none is scored, inside of no other such module."""
    found = {id(value) for value in model.parameters()}
    if found and found.isdisjoint(scored):
        yield structure
    elif found:
        seen: set[int] = set()
        for name, child in structure.named_children():
            if id(child) not in seen:
                seen.add(id(child))
                yield from _outermost(model.get_submodule(name), child, scored)


def _versions(leaves: list[Any], output: Any) -> list[int]:
    several = output if type(output) is tuple else (output,)
    return [value._version for value in (*leaves, *several) if isinstance(value, Tensor)]


def _depends(value: Any) -> bool:
    """Whether a tensor depends on scored parameters, as an engine differentiates them."""
    return isinstance(value, Tensor) and (value.requires_grad or parts(value)[1] is not None)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return one is other or (alike and torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)
