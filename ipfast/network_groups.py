"""Scores of a whole network at one point after another: a query from a pass over V, scores from a pass over the data."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .data import ArraySource, Source
from .engines.explicit import ExplicitEngine
from .engines.forward import ForwardEngine
from .engines.ghost import GhostEngine
from .engines.network import Network, Parameters
from .engines.outputs import rows_of, samples
from .engines.selection import EngineChoice, select_engine
from .errors import InputError, NonFiniteError, UnavailableError
from .groups import Validation
from .impacts import Impact
from .losses import Loss
from .methods import Method
from .points import Masked, Point
from .terms import LossDeviation, NetworkDot, Quadratic, Term

CPU_SHARE = 0.25
"""Share of the free memory that the activations of a batch may take on a CPU, where nothing tells when it is too much."""
COPY_SHARE = 0.5
"""Share of the free memory that masked copies of the parameters may take; larger ones are masked in place and restored."""
LARGEST_BATCH = 256


class NetworkJob:
    """The data of a run in batches, as its network takes them.

    Args:
        where: the calling function, for messages.
        network: what is scored.
        engine: "auto", "forward", "ghost" or "explicit".
        batch_size: samples that go through the network at once; None: as many as fit.
    """

    backend = "reference"

    def __init__(self, where: str, network: Network, *, engine: str, batch_size: int | None) -> None:
        self.where, self.network, self.engine, self.batch_size = where, network, engine, batch_size

    def blocks(self, argument: str, source: Source) -> Iterator[tuple[int, Any, Any]]:
        """(first row, inputs, labels) of each batch, in order, where the network is."""
        start = 0
        for inputs, labels in source.batches(self.batch_size or LARGEST_BATCH):
            where = f"{self.where}, {argument} batch from row {start}"
            placed = self.network.place(inputs)
            count = samples(placed)
            if count is None:
                raise InputError(f"{where}: expected inputs with a first dimension of samples; got none.")
            prepared = self.network.prepare(where, placed, labels, count)
            size = self._size(placed, count)
            for first in range(0, count, size):
                rows = slice(first, min(first + size, count))
                yield start + first, rows_of(placed, rows, count), rows_of(prepared, rows, count)
            start += count

    def _size(self, inputs: Any, count: int) -> int:
        """How many of the samples to take at once; on a GPU a batch is halved when it does not fit."""
        if self.batch_size is not None or self.network.device.type != "cpu":
            return count
        self.batch_size = min(LARGEST_BATCH, max(1, int(_free_memory() * CPU_SHARE / self.network.activation_bytes(inputs))))
        return self.batch_size

    def in_pieces(self, compute: Any, inputs: Any, labels: Any) -> Tensor:
        """compute(inputs, labels) [B, ...], in halves where the memory of the device does not suffice."""
        try:
            result: Tensor = compute(inputs, labels)
            return result
        except torch.OutOfMemoryError:
            count = samples(inputs) or 1
            if count == 1 or self.batch_size is not None:
                raise
        if self.network.device.type == "cuda":
            torch.cuda.empty_cache()
        halves = slice(0, count // 2), slice(count // 2, count)
        return torch.cat(
            [self.in_pieces(compute, rows_of(inputs, rows, count), rows_of(labels, rows, count)) for rows in halves]
        )

    def require_finite(self, argument: str, start: int, values: Tensor) -> None:
        """Raise on the first sample whose result is not finite."""
        finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        if bool(finite.all()):
            return
        row = start + int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"{self.where}: expected finite scores; sample {row} of {argument} gives NaN or infinity. Look at its inputs, or "
            "whether the model overflows on it; nothing was written."
        )


def _free_memory(device: torch.device | None = None) -> int:
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not known on this system
        return 4 * 2**30


@dataclass
class NetworkGroup:
    """One point of a network: its parameters θ_t, and buffers, in place of the model's own.

    Attributes:
        edit: brings the model's own parameters to θ_t where a copy of them would not fit into memory; None: nothing is edited.
    """

    job: NetworkJob
    points: list[Point]
    parameters: Parameters
    edit: Masked | None = None

    def entered(self) -> AbstractContextManager[Any]:
        """While the network is used at this point."""
        return nullcontext() if self.edit is None else self.edit


def network_groups(job: NetworkJob, points: Iterable[Point]) -> Iterator[NetworkGroup]:
    """Each point a group of its own, loaded or masked once."""
    for point in points:
        parameters = {} if point.state is None else job.network.state(point.state.load(job.where))
        edit = None
        if point.mask is not None:
            every = job.network.every() if point.mask.scope == "all" else job.network.parameters
            covered = {name: value for name, value in every.items() if point.mask.covers(name, value)}
            copied = sum(value.numel() * value.element_size() for value in covered.values())
            if copied > COPY_SHARE * _free_memory(job.network.device) and not parameters:
                edit = Masked(
                    covered, {n: point.mask.dropped(n, tuple(v.shape)) for n, v in covered.items()}, scale=point.mask.scale
                )
            else:
                parameters |= point.mask.masked({name: parameters.get(name, value) for name, value in every.items()})
        yield NetworkGroup(job, [point], parameters, edit)


class NetworkQueryMaker:
    """The term of one point after another, from passes over V.

    Args:
        method: what is scored.
        impact: what should improve.
        validation: V; None for target "self".
    """

    def __init__(self, method: Method, impact: Impact, validation: Validation | None) -> None:
        self.method, self.impact, self.validation = method, impact, validation
        self.stats: dict[str, Any] = {}
        self._base_loss: Tensor | None = None

    def terms(self, group: NetworkGroup) -> list[Term]:
        """The term of the group's point."""
        point = group.points[0]
        floor = self.method.points.deviation_floor
        if self.validation is None:
            if floor is not None:
                return [LossDeviation(point.weight, point, None, floor)]
            return [Quadratic(point.weight, point, self.method.curvature)]
        started = time.perf_counter()
        made: Term
        if floor is not None:
            value = self._losses(group)
            self._base_loss = value.clamp(min=floor) if self._base_loss is None else self._base_loss
            made = LossDeviation(point.weight, point, value - self._base_loss, floor)
        else:
            made = NetworkDot(point.weight, point, self._gradients(group))
        self.stats["impact"] = self.impact.name
        self.stats["query_seconds"] = self.stats.get("query_seconds", 0.0) + time.perf_counter() - started
        return [made]

    def _batches(self, group: NetworkGroup) -> Iterator[tuple[int, int, Any, Any]]:
        """(query, first row, inputs, labels) of the samples of one query in each batch of V."""
        assert self.validation is not None
        for index, source in enumerate(self.validation.sources):
            for start, inputs, labels in group.job.blocks("val", source):
                count = samples(inputs) or 0
                if self.validation.groups is None:
                    yield index, start, inputs, labels
                    continue
                if start + count > len(self.validation.groups):
                    raise InputError(
                        f"{group.job.where}: expected val_groups to hold one group for each sample of val; got "
                        f"{len(self.validation.groups)}."
                    )
                query = self.validation.groups[start : start + count]
                for q in torch.unique(query).tolist():
                    rows = (query == q).nonzero().squeeze(1).to(group.job.network.device)
                    yield q, start, rows_of(inputs, rows, count), rows_of(labels, rows, count)

    def _losses(self, group: NetworkGroup) -> Tensor:
        """Mean validation loss of each query: [Q] float64."""
        assert self.validation is not None
        network = group.job.network
        total = torch.zeros(self.validation.queries, dtype=torch.float64)
        counts = torch.zeros(self.validation.queries, dtype=torch.int64)
        for q, start, inputs, labels in self._batches(group):
            with torch.no_grad():
                values = network.losses(group.parameters, inputs, labels)
            group.job.require_finite("val", start, values)
            total[q] += float(values.double().sum())
            counts[q] += len(values)
        self._about(counts)
        return total / counts

    def _gradients(self, group: NetworkGroup) -> dict[str, Tensor]:
        """∇f(θ; V) by parameter name, each [Q, *shape]."""
        assert self.validation is not None
        network, several = group.job.network, self.validation.queries
        scored = {name: group.parameters.get(name, value) for name, value in network.parameters.items()}
        kinds = {
            name: torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
            for name, value in scored.items()
        }
        total = {
            name: torch.zeros(several, *value.shape, dtype=kinds[name], device=value.device) for name, value in scored.items()
        }
        counts = torch.zeros(several, dtype=torch.int64)
        cotangents = None if self.impact.additive else self._cotangents(group)
        seen = [0] * several
        for q, start, inputs, labels in self._batches(group):
            leaves = {name: value.detach().clone().requires_grad_() for name, value in scored.items()}
            with torch.enable_grad():
                value, rows = self._value(group, {**group.parameters, **leaves}, inputs, labels, start, cotangents, q, seen)
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            counts[q] += rows
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    total[name][q] += gradient
        self._about(counts)
        for name in total:
            if self.impact.additive:
                total[name] /= counts.to(total[name]).view(-1, *[1] * (total[name].dim() - 1))
            if not bool(torch.isfinite(total[name]).all()):
                raise InputError(
                    f"query: expected a finite gradient of the impact; that of {name!r} has NaN or infinity. Check the impact "
                    "function and the validation data."
                )
        mask = group.points[0].mask
        if mask is not None and mask.chain:
            for name in (name for name, value in scored.items() if mask.covers(name, value)):
                total[name] *= mask.scale**2
                total[name].flatten(1)[:, mask.dropped(name, tuple(total[name].shape[1:])).to(total[name].device)] = 0
        square = torch.stack([value.double().square().reshape(several, -1).sum(dim=1).cpu() for value in total.values()]).sum(
            dim=0
        )
        before = self.stats.get("query_norm")
        norms = [*(before if isinstance(before, list) else [] if before is None else [before]), *square.sqrt().tolist()]
        self.stats["query_norm"] = norms[0] if len(norms) == 1 else norms
        return total

    def _value(
        self,
        group: NetworkGroup,
        theta: Parameters,
        inputs: Any,
        labels: Any,
        start: int,
        cotangents: Any,
        q: int,
        seen: list[int],
    ) -> tuple[Tensor, int]:
        """(a scalar whose gradient is the batch's part of M·∇f, its number of samples)"""
        network = group.job.network
        if self.impact.name == "utility":
            values = network.losses(theta, inputs, labels)
            group.job.require_finite("val", start, values.detach())
            return values.sum(), len(values)
        z = network.logits(theta, inputs)
        group.job.require_finite("val", start, z.detach())
        if cotangents is None:
            assert isinstance(network.loss, Loss)
            cotangent = self.impact.cotangent(z.detach().double(), labels, network.loss)
        else:
            cotangent = cotangents[q][seen[q] : seen[q] + len(z)]
            seen[q] += len(z)
        return (z * cotangent.to(z)).sum(), len(z)

    def _cotangents(self, group: NetworkGroup) -> list[Tensor]:
        """∂f/∂z of all of V for each query, which needs all logits before."""
        assert self.validation is not None
        network = group.job.network
        assert isinstance(network.loss, Loss)
        kept: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(self.validation.queries)]
        for q, start, inputs, labels in self._batches(group):
            with torch.no_grad():
                z = network.logits(group.parameters, inputs).double()
            group.job.require_finite("val", start, z)
            kept[q][0].append(z)
            kept[q][1].append(labels)
        return [self.impact.cotangent(torch.cat(z), torch.cat(y), network.loss) if z else torch.empty(0) for z, y in kept]

    def _about(self, counts: Tensor) -> None:
        assert self.validation is not None
        if not bool((counts > 0).all()):
            raise InputError("query: expected at least one sample in val; it is empty.")
        if self.validation.groups is not None and int(counts.sum()) != len(self.validation.groups):
            raise InputError(
                f"query: expected val_groups to hold one group for each of the {int(counts.sum())} samples of val; got "
                f"{len(self.validation.groups)}."
            )
        self.stats["M"] = int(counts[0]) if self.validation.names is None else counts.tolist()


class NetworkScorer:
    """The scores of a batch at one point: [B, 1, Q].

    Args:
        group: the point.
        terms: its term; none for the control "loss", whose column is −ℓ_i.
    """

    def __init__(self, group: NetworkGroup, terms: list[Term]) -> None:
        self.group, self.terms = group, terms
        self.weights = [term.weight for term in terms] or [1.0]
        self.term = terms[0] if terms else None
        network, engine = group.job.network, group.job.engine
        self.queries: Mapping[str, Tensor] | None = None
        if isinstance(self.term, NetworkDot):
            self.queries = {name: value.to(network.device) for name, value in self.term.gradients.items()}
        count = 1 if self.queries is None else len(next(iter(self.queries.values())))
        target = "self" if isinstance(self.term, Quadratic) else "val"
        self.choice = select_engine(engine, queries=count, target=target)
        self._engine = _engine(group.job.where, self.choice.name, network, target)

    def __call__(self, inputs: Any, labels: Any) -> Tensor:
        """Self-influence and loss are negated: positive is beneficial in every method."""
        network, at = self.group.job.network, self.group.parameters
        if self.queries is not None:
            queries = self.queries

            def compute(x: Any, y: Any) -> Tensor:
                return self._engine.dot(x, y, queries, at=at)

            try:
                values = self.group.job.in_pieces(compute, inputs, labels)
            except UnavailableError as error:
                if self.choice.name != "forward" or self.group.job.engine != "auto":
                    raise
                self.choice = EngineChoice("ghost", str(error))
                self._engine = GhostEngine(network)
                values = self.group.job.in_pieces(compute, inputs, labels)
        elif isinstance(self.term, Quadratic):
            engine = self._engine
            assert not isinstance(engine, ForwardEngine)
            values = -self.group.job.in_pieces(lambda x, y: engine.norm_sq(x, y, at=at), inputs, labels)[:, None]
        else:
            with torch.no_grad():
                values = self.group.job.in_pieces(lambda x, y: network.losses(at, x, y), inputs, labels)[:, None]
            values = values if self.terms else -values
        return values[:, None, :].to(network.dtype)


def _engine(where: str, name: str, network: Network, target: str) -> ForwardEngine | GhostEngine | ExplicitEngine:
    if name == "forward":
        assert target != "self"
        return ForwardEngine(network)
    if name == "ghost":
        return GhostEngine(network)
    if name == "explicit":
        return ExplicitEngine(network)
    raise InputError(f"{where}: expected engine='head' with params='last' only; got other params. Leave engine out.")


def require_array_labels(where: str, argument: str, source: Source) -> None:
    """Refuse, before any work, labels that are not numbers."""
    if isinstance(source, ArraySource) and not isinstance(source.labels, Tensor):
        raise InputError(
            f"{where}, {argument}: expected labels as numbers; got {source.labels.dtype}. Encode class names as "
            "integers 0..C-1."
        )
