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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_finite_network
from .data import Batch, Source
from .engines import LastLayer
from .engines.network import Network
from .engines.outputs import moved, rows_of, samples
from .engines.running import whole_checkpoints, without_fast_path
from .engines.trace import REPEATS, apart, coarsest, culprit_of, tensors_in
from .errors import InputError, IpfastWarning
from .losses import Loss
from .originals import RefuseOriginals

FEW = 4
"""Samples that are looked at."""


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
    with _random_states_kept(network.device), whole_checkpoints(where):
        found = _few_samples(where, sources)
        if found is None:
            return
        argument, batch = found
        placed, count = network.enter(batch)
        if not count:
            return
        few = min(FEW, count)
        _check_outputs(where, network, rows_of(placed, slice(0, few), count), few)
        prepared = network.prepare(f"{where}, {argument} batch from row 0", placed, batch.labels, count)
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
        inputs = moved(found[1].inputs, device)
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
        _warn_of_probabilities(where, network.loss, together)
        _alone(where, "logits", lambda: network.logits(buffers, rows_of(inputs, slice(0, 1), count)), together[:1].shape)


def _warn_of_probabilities(where: str, loss: Loss, z: Tensor) -> None:
    """Warn of rows that are probabilities where logits are expected, as after a final softmax."""
    if loss.form != "cross_entropy" or z.dim() < 2 or z.shape[-1] < 2:
        return
    if bool(((z >= 0) & (z <= 1)).all()) and bool(((z.double().sum(dim=-1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            f"{where}: the model gives probabilities, rows in 0..1 that add up to one, where cross_entropy expects logits. "
            "Their loss is another one than that of the model. Leave out a final softmax.",
            IpfastWarning,
            stacklevel=2,
        )


def _check_losses(where: str, network: Network, inputs: Any, labels: Any, count: int) -> None:
    buffers = network.buffers()

    def losses(rows: slice, theta: Mapping[str, Tensor] = buffers) -> Tensor:
        return network.losses(theta, rows_of(inputs, rows, count), rows_of(labels, rows, count), autocast=False)

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
            with RefuseOriginals(where, network.model):
                losses(slice(0, count), {**buffers, **network.every()})
            _check_samples(where, network.structure, losses, count, "losses", network.device)


def _check_samples(
    where: str, module: nn.Module, compute: Callable[[slice], Tensor], count: int, what: str, device: torch.device
) -> None:
    """Refuse results [count, ...] that are random, or that a sample has only in company."""
    every = slice(0, count)
    states, eps = _drawn(device), coarsest(module)
    first = compute(every)
    for _ in range(1 if all(map(torch.equal, states, _drawn(device))) else REPEATS):
        if apart(first, compute(every), eps=eps):
            culprit = culprit_of(module, compute, every, every)
            if culprit is not None:
                raise InputError(
                    f"{where}: expected the same {what} from two runs on the same samples; {culprit} gives something else each "
                    "time, so that scores would depend on chance. Call model.eval(); of F.dropout pass training=self.training, "
                    "since its default is True."
                )
    for row in range(count):
        one = slice(row, row + 1)
        alone = _alone(where, what, partial(compute, one), first[one].shape)
        if apart(first[one], alone, eps=coarsest(module, company=True), like=first):
            culprit = culprit_of(module, compute, one, every)
            if culprit is not None:
                raise InputError(
                    f"{where}: expected {what} of a sample that do not depend on the rest of its batch; {culprit} gives sample "
                    f"{row} something else when it is alone. Use statistics that training has fixed (BatchNorm with "
                    "track_running_stats=True, in eval mode), and no means over the batch. What all samples share must not "
                    f"have as many rows as there are samples, here {count}."
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


def _drawn(device: torch.device) -> list[Tensor]:
    """The states of torch's random numbers, which tell whether any have been drawn."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _few_samples(where: str, sources: Mapping[str, Sequence[Source]]) -> tuple[str, Batch] | None:
    """(argument, its first few samples) of the first source that may be read again; warns of any that changes."""
    first: tuple[str, Batch] | None = None
    for argument, each in sources.items():
        for source in each:
            drawn = source.drawn_twice(FEW)
            if drawn is None:
                continue
            once, again = drawn
            pairs = {"inputs": (once.inputs, again.inputs), "labels": (once.labels, again.labels)}
            changed = [what for what, pair in pairs.items() if not _same(*pair)]
            if changed:
                warnings.warn(
                    f"{where}: the {' and the '.join(changed)} of {argument} differ each time they are read, as with random "
                    "augmentation. Scores are then of one random draw, and other ones the next time. Score without "
                    "augmentation, with the transforms of evaluation.",
                    IpfastWarning,
                    stacklevel=2,
                )
            first = first or (argument, once)
    return first


def _same(one: Any, other: Any) -> bool:
    a, b = list(tensors_in(one)), list(tensors_in(other))
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
