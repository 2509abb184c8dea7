"""Where two runs of a network part: the first module whose output differs while its input does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

REPEATS = 12
"""Runs of a network that draws random numbers, until they show: a layer that is dropped in one run of ten may hide in two."""
ROUNDING = 4.0
"""Roots of eps by which results may differ: far more than sums in another order, far less than dropout or batch statistics."""
TF32_EPS = 2.0**-10
"""Of products on a GPU, which may round float32 operands to 10 bits for some batch sizes and not for others."""
LOOKED_AT = 4096
"""Elements of a module's output that are compared, so that those of a large network need not be kept."""


def coarsest(module: nn.Module, *, company: bool = False) -> float:
    """eps of the narrowest dtype in which a network computes; `company`: in batches of different sizes."""
    eps = 0.0
    for value in module.parameters():
        if value.dtype.is_floating_point:
            eps = max(eps, torch.finfo(value.dtype).eps)
            if company and value.is_cuda and value.dtype == torch.float32:
                eps = max(eps, TF32_EPS)
    return eps


def apart(one: Tensor, other: Tensor, *, eps: float, like: Tensor | None = None, largest: float = 0.0) -> bool:
    """Whether two results differ by more than rounding; NaN does not, which is found with its row while scoring.

    Args:
        eps: of the narrowest dtype in which they were computed.
        like: results whose largest magnitude is that of rounding; None: `one`.
        largest: magnitude of what they were computed from.
    """
    if not one.numel():
        return False
    eps = max(eps, torch.finfo(one.dtype).eps) if one.dtype.is_floating_point else 0.0
    size = (one if like is None else like).double().abs().max()
    allowed = ROUNDING * eps**0.5 * size + ROUNDING**2 * eps * largest
    return bool(((one.double() - other.double()).abs() > allowed).any())


@dataclass
class _Call:
    """A call of a module: some elements of what went in and of what came out, and the shapes they were taken from."""

    name: str
    inputs: list[Tensor | None] = field(default_factory=list)
    outputs: list[Tensor | None] = field(default_factory=list)
    shapes: tuple[list[torch.Size], list[torch.Size]] = field(default_factory=lambda: ([], []))


class _Watch:
    """The calls of all modules during one run, in the order in which they start and in which they end.

    Args:
        module: its root.
        like: a run on one sample; only that sample, number `row`, is looked at here.
    """

    def __init__(self, module: nn.Module, like: _Watch | None = None, row: int = 0) -> None:
        self.module, self.like, self.row = module, like, row
        self.started: list[_Call] = []
        self.ended: list[_Call] = []
        self.largest, self.eps = 0.0, 0.0
        self._open: list[tuple[int, _Call]] = []

    def run(self, compute: Callable[[slice], Tensor], rows: slice) -> Tensor:
        """compute(rows), watched."""
        handles: list[Any] = []
        for name, module in self.module.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(self._after))
        try:
            return compute(rows)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, _module: nn.Module, arguments: Any, keywords: Any) -> None:
        call = _Call(name)
        self._open.append((len(self.started), call))
        call.inputs = self._looked_at(call, 0, (arguments, keywords), len(self.started))
        self.started.append(call)

    def _after(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        number, call = self._open.pop()
        call.outputs = self._looked_at(call, 1, output, number)
        for part in call.outputs:
            if part is not None and part.dtype.is_floating_point:
                self.largest = max(self.largest, float(part.abs().max()))
                self.eps = max(self.eps, torch.finfo(part.dtype).eps)
        self.ended.append(call)

    def _looked_at(self, call: _Call, side: int, value: Any, number: int) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        like = None if self.like is None or number >= len(self.like.started) else self.like.started[number].shapes[side]
        for index, tensor in enumerate(tensors_in(value)):
            call.shapes[side].append(tensor.shape)
            part: Tensor | None = tensor.detach()
            if like is not None:
                part = _part_of(tensor.detach(), like[index], self.row) if index < len(like) else None
            if part is None or not part.numel() or not (part.dtype.is_floating_point or part.dtype == torch.int64):
                found.append(None)
                continue
            flat = part.flatten()
            found.append(flat[:: max(1, len(flat) // LOOKED_AT)].clone())
        return found


def _part_of(value: Tensor, alone: torch.Size, row: int) -> Tensor | None:
    """What belongs to one sample in a tensor of several; None where that cannot be told."""
    if value.shape == alone:
        return value
    if value.dim() != len(alone):
        return None
    dims = [dim for dim in range(value.dim()) if value.shape[dim] != alone[dim]]
    if len(dims) != 1 or alone[dims[0]] == 0 or value.shape[dims[0]] < (row + 1) * alone[dims[0]]:
        return None
    return value.narrow(dims[0], row * alone[dims[0]], alone[dims[0]])


def culprit_of(module: nn.Module, compute: Callable[[slice], Tensor], rows: slice, every: slice) -> str | None:
    """The first module whose output differs between a run on `rows` and one on `every` while its input does not, or the loss.

    None where the result differs by no more than the rounding of what it was computed from."""
    company = rows != every
    for _ in range(REPEATS):
        one = _Watch(module)
        before = one.run(compute, rows)
        other = _Watch(module, one if company else None, rows.start)
        after = other.run(compute, every)[rows]
        eps = max(one.eps, coarsest(module, company=company))  # a network may cast, or use autocast of its own
        if not apart(before, after, eps=eps):
            continue
        for a, b in zip(one.ended, other.ended, strict=False):
            if a.name != b.name:  # a module that calls others or not, as it happens
                return _called(a.name.rpartition(".")[0], module)
            if _differ(a.outputs, b.outputs, eps) and not _differ(a.inputs, b.inputs, eps):
                return _called(a.name, module)
        return "the loss itself" if apart(before, after, eps=eps, largest=max(one.largest, other.largest)) else None
    return None


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(module.get_submodule(name)).__name__})"


def _differ(one: list[Tensor | None], other: list[Tensor | None], eps: float) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    return any(a.shape != b.shape or apart(a, b, eps=eps) for a, b in pairs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings, tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)
