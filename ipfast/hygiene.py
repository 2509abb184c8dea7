"""What silently ruins influence, looked for on a few samples before anything is scored.

A gradient belongs to a sample only if its loss is a function of that sample and the parameters alone. So a network is run on a
few samples twice, which must give the same losses, and on each of them alone, which must give the losses it has in company; its
losses must depend on the scored parameters; parameters must be finite; and data must be the same when it is read again. What
fails is traced to the first module whose output differs while its input does not.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_finite_network
from .data import Source
from .engines import LastLayer
from .engines.network import Network, without_fast_path
from .engines.outputs import moved, rows_of, samples
from .errors import InputError, IpfastWarning
from .losses import Loss

FEW = 4
"""Samples that are looked at."""
REPEATS = 12
"""Runs of a network that draws random numbers, until they show: a layer that is dropped in one run of ten may hide in two."""
ROUNDING = 4.0
"""Roots of eps by which losses may differ: far more than sums in another order, far less than dropout or batch statistics."""
TF32_EPS = 2.0**-10
LOOKED_AT = 4096
"""Elements of a module's output that are compared, so that those of a large network need not be kept."""


def check_network(where: str, network: Network, sources: Mapping[str, Sequence[Source]]) -> None:
    """Refuse a network whose losses are not those of samples, and warn of data that changes from one pass to the next.

    Args:
        where: the calling function, for messages.
        network: what is scored.
        sources: data by argument name; streams, which may be read only once, are left alone.

    Raises:
        InputError: NaN parameters; losses that are random, depend on the rest of the batch, or not on the scored parameters; a
            loss that does not give one value a sample.
    """
    check_finite_network(where, network.model)
    narrow = next((name for name, value in network.parameters.items() if value.dtype == torch.float16), None)
    if narrow is not None:
        warnings.warn(
            f"{where}: {narrow} is float16, in which small gradients vanish and large ones overflow. Convert the model with "
            "model.float(), or model.bfloat16(), whose range is that of float32.",
            IpfastWarning,
            stacklevel=2,
        )
    with _random_states_kept(network.device):
        found = _few_samples(where, sources)
        if found is None:
            return
        argument, inputs, labels = found
        placed = network.place(inputs)
        count = samples(placed) or 0
        if not count:
            return
        few = min(FEW, count)
        _check_outputs(where, network, rows_of(placed, slice(0, few), count), few)
        prepared = network.prepare(f"{where}, {argument} batch from row 0", placed, labels, count)
        while True:
            rows = slice(0, few)
            try:
                _check_losses(where, network, rows_of(placed, rows, count), rows_of(prepared, rows, count), few)
                return
            except torch.OutOfMemoryError:
                if few == 1:
                    raise
                few //= 2


def check_features(where: str, last: LastLayer, sources: Mapping[str, Sequence[Source]]) -> None:
    """The same of the features that a backbone gives to the last layer."""
    device = last.weight.device
    with _random_states_kept(device):
        found = _few_samples(where, sources)
        backbone = last.backbone
        if found is None or backbone is None:
            return
        inputs = moved(found[1], device)
        count = samples(inputs) or 0
        few = min(FEW, count)
        if not few:
            return
        inputs = rows_of(inputs, slice(0, few), count)
        _check_samples(where, backbone, lambda rows: last.features(where, rows_of(inputs, rows, few)), few, "features", device)


def _check_outputs(where: str, network: Network, inputs: Any, count: int) -> None:
    """Refuse a model that gives a sample alone other outputs than in company, from whose shape labels are checked."""
    if not isinstance(network.loss, Loss):
        return
    buffers = network.buffers()
    with torch.no_grad(), without_fast_path():
        together = network.logits(buffers, inputs)
        _alone(where, "logits", lambda: network.logits(buffers, rows_of(inputs, slice(0, 1), count)), together[:1].shape)


def _check_losses(where: str, network: Network, inputs: Any, labels: Any, count: int) -> None:
    buffers = network.buffers()

    def losses(rows: slice, theta: Mapping[str, Tensor] = buffers) -> Tensor:
        return network.losses(theta, rows_of(inputs, rows, count), rows_of(labels, rows, count))

    with without_fast_path():  # as the engines run it
        leaves = {name: value.detach().requires_grad_() for name, value in network.parameters.items()}
        with torch.enable_grad():
            values = losses(slice(0, count), {**buffers, **network.every(), **leaves})
        if not isinstance(values, Tensor) or values.shape != (count,):
            got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise InputError(
                f"{where}: expected a loss for each sample, shape [{count}] for {count} samples; got {got}. Use "
                "reduction='none', and average over what belongs to one sample, as its tokens, only."
            )
        if not _reached(values, list(leaves.values())):
            raise InputError(
                f"{where}: expected losses that depend on the scored parameters; no gradient reaches {_some(network)}. A loss "
                "must call the model that it is given, not one from outside, without no_grad, detach or item."
            )
        del values
        with torch.no_grad():
            _check_samples(where, network.structure, losses, count, "losses", network.device)


def _check_samples(
    where: str, module: nn.Module, compute: Callable[[slice], Tensor], count: int, what: str, device: torch.device
) -> None:
    """Refuse results [count, ...] that are random, or that a sample has only in company."""
    every = slice(0, count)
    states = _drawn(device)
    first = compute(every)
    for _ in range(1 if all(map(torch.equal, states, _drawn(device))) else REPEATS):
        if _apart(first, compute(every)):
            culprit = _culprit(module, compute, every, every)
            if culprit is not None:
                raise InputError(
                    f"{where}: expected the same {what} from two runs on the same samples; {culprit} gives something else each "
                    "time, so that scores would depend on chance. Call model.eval(); of F.dropout pass training=self.training, "
                    "since its default is True."
                )
    for row in range(count):
        one = slice(row, row + 1)
        alone = _alone(where, what, partial(compute, one), first[one].shape)
        if _apart(first[one], alone, like=first, company=True):
            culprit = _culprit(module, compute, one, every)
            if culprit is not None:
                raise InputError(
                    f"{where}: expected {what} of a sample that do not depend on the rest of its batch; {culprit} gives sample "
                    f"{row} something else when it is alone. Use statistics that training has fixed (BatchNorm with "
                    "track_running_stats=True, in eval mode), and no means over the batch."
                )


def _alone(where: str, what: str, compute: Callable[[], Tensor], shape: torch.Size) -> Tensor:
    """The result of one sample alone, which must have the shape that it has in company."""
    try:
        alone = compute()
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: expected a model and loss that take any number of samples; a single one raised {type(error).__name__} "
            f"({str(error).split(chr(10))[0]}). Are there statistics of the batch, or a squeeze() that drops its dimension?"
        ) from error
    if alone.shape != shape:
        raise InputError(
            f"{where}: expected {what} of shape {list(shape)} for a single sample; got {list(alone.shape)}. Is there a "
            "squeeze() that drops the batch dimension?"
        )
    return alone


def _reached(values: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether any of the leaves is in the graph of `values`, without a gradient of their size."""
    wanted, seen, waiting = {id(leaf) for leaf in leaves}, set(), [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


def _apart(one: Tensor, other: Tensor, *, like: Tensor | None = None, largest: float = 0.0, company: bool = False) -> bool:
    """Whether two results differ by more than rounding; NaN is found, with its row, while scoring.

    Args:
        like: results whose largest magnitude is that of rounding; None: `one`.
        largest: magnitude of what they were computed from.
        company: whether they are of batches of different sizes, for which a GPU may round to TF32 in another order.
    """
    if not one.numel():
        return False
    eps = 0.0
    if one.dtype.is_floating_point:
        eps = torch.finfo(one.dtype).eps
        eps = max(eps, TF32_EPS) if company and one.is_cuda and one.dtype == torch.float32 else eps
    size = (one if like is None else like).double().abs().max()
    allowed = ROUNDING * eps**0.5 * size + ROUNDING**2 * eps * largest
    return bool(((one.double() - other.double()).abs() > allowed).any())


def _drawn(device: torch.device) -> list[Tensor]:
    """The states of torch's random numbers, which tell whether any have been drawn."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@dataclass
class _Call:
    """A call of a module: some elements of what went in and of what came out, and the shapes they were taken from."""

    name: str
    kind: str
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
        self.largest = 0.0
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

    def _before(self, name: str, module: nn.Module, arguments: Any, keywords: Any) -> None:
        call = _Call(name, type(module).__name__)
        self._open.append((len(self.started), call))
        call.inputs = self._looked_at(call, 0, (arguments, keywords), len(self.started))
        self.started.append(call)

    def _after(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        number, call = self._open.pop()
        call.outputs = self._looked_at(call, 1, output, number)
        self.largest = max([self.largest, *(float(part.abs().max()) for part in call.outputs if part is not None)])
        self.ended.append(call)

    def _looked_at(self, call: _Call, side: int, value: Any, number: int) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        like = None if self.like is None or number >= len(self.like.started) else self.like.started[number].shapes[side]
        for index, tensor in enumerate(_tensors(value)):
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


def _culprit(module: nn.Module, compute: Callable[[slice], Tensor], rows: slice, every: slice) -> str | None:
    """The first module whose output differs between a run on `rows` and one on `every` while its input does not, or the loss.

    None where no module's does and the result differs by no more than the rounding of what it was computed from."""
    company = rows != every
    for _ in range(REPEATS):
        one = _Watch(module)
        before = one.run(compute, rows)
        other = _Watch(module, one if company else None, rows.start)
        after = other.run(compute, every)[rows]
        if not _apart(before, after, company=company):
            continue
        for a, b in zip(one.ended, other.ended, strict=False):
            if a.name != b.name:  # a module that calls others or not, as it happens
                return _called(a.name.rpartition(".")[0], module)
            if _differ(a.outputs, b.outputs, company) and not _differ(a.inputs, b.inputs, company):
                return _called(a.name, module)
        largest = max(one.largest, other.largest)
        return "the loss itself" if _apart(before, after, largest=largest, company=company) else None
    return None


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(module.get_submodule(name)).__name__})"


def _differ(one: list[Tensor | None], other: list[Tensor | None], company: bool) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    return any(a.shape != b.shape or _apart(a, b, company=company) for a, b in pairs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _few_samples(where: str, sources: Mapping[str, Sequence[Source]]) -> tuple[str, Any, Any] | None:
    """(argument, inputs, labels) of the first source that may be read again; warns of any that changes."""
    first: tuple[str, Any, Any] | None = None
    for argument, each in sources.items():
        for source in each:
            drawn = source.drawn_twice(FEW)
            if drawn is None:
                continue
            once, again = drawn
            changed = [what for what, a, b in zip(("inputs", "labels"), once, again, strict=True) if not _same(a, b)]
            if changed:
                warnings.warn(
                    f"{where}: the {' and the '.join(changed)} of {argument} differ each time they are read, as with random "
                    "augmentation. Scores are then of one random draw, and other ones the next time. Score without "
                    "augmentation, with the transforms of evaluation.",
                    IpfastWarning,
                    stacklevel=2,
                )
            first = first or (argument, *once)
    return first


def _same(one: Any, other: Any) -> bool:
    a, b = list(_tensors(one)), list(_tensors(other))
    return len(a) == len(b) and all(
        x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(a, b, strict=True)
    )


def _some(network: Network) -> str:
    names = list(network.parameters)
    return names[0] if len(names) == 1 else f"any of {len(names)}, such as {names[0]}"


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Random numbers of torch, numpy and Python afterwards come as if none had been drawn here."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
