"""One point of a whole network after another, and its scores from a pass over the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..curvature import Problem, QuadraticFactors
from ..data import ArraySource, Batch, Source
from ..engines.explicit import ExplicitEngine
from ..engines.forward import ForwardEngine
from ..engines.ghost import GhostEngine
from ..engines.network import Network, Parameters
from ..engines.outputs import rows_of, samples
from ..engines.selection import EngineChoice, select_engine
from ..engines.unchanged import Unchanged
from ..errors import InputError, NonFiniteError, UnavailableError
from ..points import Masked, Point
from ..terms import NetworkDot, Quadratic, Term

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
        by: "layer" or "token": the scores are taken apart; None: they are not.
    """

    def __init__(self, where: str, network: Network, *, engine: str, batch_size: int | None, by: str | None = None) -> None:
        self.where, self.network, self.engine, self.batch_size, self.by = where, network, engine, batch_size, by

    def blocks(self, argument: str, source: Source) -> Iterator[tuple[int, Any, Any]]:
        """(first row, inputs, labels) of each batch, in order, where the network is."""
        start = 0
        for batch in source.batches(self.batch_size or LARGEST_BATCH):
            placed, prepared, count = self._taken(argument, batch, start)
            size = self._size(placed, prepared, count)
            for first in range(0, count, size):
                rows = slice(first, min(first + size, count))
                yield start + first, rows_of(placed, rows, count), rows_of(prepared, rows, count)
            start += count

    def first(self, argument: str, source: Source) -> tuple[Any, Any]:
        """(inputs, labels) of the first batch, which `blocks` gives again, also of a stream that can be read once."""
        return self._taken(argument, source.first(self.batch_size or LARGEST_BATCH), 0)[:2]

    def _taken(self, argument: str, batch: Batch, start: int) -> tuple[Any, Any, int]:
        """(inputs, labels, how many samples) of a batch as the network takes them."""
        where = f"{self.where}, {argument} batch from row {start}"
        placed, count = self.network.enter(batch)
        if count is None:
            raise InputError(f"{where}: expected inputs with a first dimension of samples; got none.")
        return placed, self.network.prepare(where, placed, batch.labels, count), count

    def _size(self, inputs: Any, labels: Any, count: int) -> int:
        """How many of the samples to take at once; on a GPU a batch is halved when it does not fit."""
        if self.batch_size is not None or self.network.device.type != "cpu":
            return count
        each = self.network.activation_bytes(inputs, labels)
        self.batch_size = min(LARGEST_BATCH, max(1, int(_free_memory() * CPU_SHARE / each)))
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
        if not len(values):  # a batch in which no token counts
            return
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
    """Points of a network that one pass over the data serves: most are alone.

    Attributes:
        parameters: θ_t of each point, and buffers, in place of the model's own.
        edit: brings the model's own parameters to θ_t where a copy of them would not fit into memory; None: nothing is edited.
    """

    job: NetworkJob
    points: list[Point]
    parameters: list[Parameters]
    edit: Masked | None = None

    def entered(self) -> AbstractContextManager[Any]:
        """While the network is used at this point."""
        return nullcontext() if self.edit is None else self.edit


def network_groups(job: NetworkJob, points: Iterable[Point]) -> Iterator[NetworkGroup]:
    """Points loaded or masked once: those that differ in scored parameters alone together, if there is something before."""
    unchanged, free = bool(Unchanged(job.network).modules), _free_memory(job.network.device)
    waiting = NetworkGroup(job, [], [])
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
        late = point.mask is not None and point.mask.scope == "scored" and point.state is None and edit is None
        held = sum(value.numel() * value.element_size() for value in job.network.parameters.values()) * len(waiting.points)
        if waiting.points and (not late or held > COPY_SHARE * free):
            yield waiting
            waiting = NetworkGroup(job, [], [])
        if late and unchanged:
            waiting.points.append(point)
            waiting.parameters.append(parameters)
        else:
            yield NetworkGroup(job, [point], [parameters], edit)
    if waiting.points:
        yield waiting


class NetworkScorer:
    """The scores of a batch at P points: [B, P, Q], or in parts by layer [B, P, L, Q] or by token [B, P, 1 + T, Q].

    Args:
        group: the points.
        terms: their terms; none for the control "loss", whose column is −ℓ_i.
    """

    def __init__(self, group: NetworkGroup, terms: list[Term]) -> None:
        self.group, self.terms = group, terms
        self.weights = [term.weight for term in terms] or [1.0]
        self.term = terms[0] if terms else None
        network, engine = group.job.network, group.job.engine
        dots = [term for term in terms if isinstance(term, NetworkDot)]
        self.queries = [{name: value.to(network.device) for name, value in term.gradients.items()} for term in dots]
        count = len(next(iter(self.queries[0].values()))) if self.queries else 1
        target = "self" if isinstance(self.term, Quadratic) else "val"
        self.choice = select_engine(engine, queries=count, target=target, by=group.job.by)
        if isinstance(self.term, Quadratic) and self.term.factors is not None:
            if engine == "explicit":
                raise InputError(
                    f"{group.job.where}: expected engine='auto' with self-influence through a curvature, which takes gradients "
                    "as the curvature needs them; got 'explicit'. Leave engine out."
                )
            if group.job.by is not None:
                raise InputError(
                    f"{group.job.where}: expected no by with self-influence through a curvature, which has no parts; got "
                    f"{group.job.by!r}. Leave by out."
                )
            self.choice = EngineChoice("ghost", "the curvature reads the inputs and cotangents of the layers")
        self._engine = _engine(group.job, self.choice.name, target)
        self._unchanged: Unchanged | None = None
        self._checked = len(group.points) < 2 or isinstance(self._engine, ExplicitEngine)

    def __call__(self, inputs: Any, labels: Any) -> Tensor:
        """Self-influence and loss are negated: positive is beneficial in every method."""
        if isinstance(self._engine, GhostEngine):
            self._engine.plan(inputs, labels)  # before outputs are kept: its runs of a few samples are in full precision
        if not self._checked:
            self._unchanged, self._checked = self._trusted(inputs, labels), True
        with nullcontext() if self._unchanged is None else self._unchanged.kept():
            columns = [self._at(index, inputs, labels) for index in range(len(self.group.points))]
        return torch.stack(columns, dim=1)

    def _trusted(self, inputs: Any, labels: Any) -> Unchanged | None:
        """What keeps outputs from point to point, if the scores of a few samples stay what they are without it.

        They do not where a module reads scored parameters that are not its own, or what another one left behind.
        """
        unchanged, count = Unchanged(self.group.job.network), samples(inputs) or 1
        few = slice(0, min(2, count))
        some = rows_of(inputs, few, count), rows_of(labels, few, count)
        points = range(len(self.group.points))
        expected = torch.stack([self._at(index, *some) for index in points])
        with unchanged.kept():
            found = torch.stack([self._at(index, *some) for index in points])
        allowed = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax()
        return unchanged if bool(((found - expected).abs() <= allowed).all()) else None

    def _at(self, index: int, inputs: Any, labels: Any) -> Tensor:
        """[B, …, Q] at one point."""
        network, at = self.group.job.network, self.group.parameters[index]
        term = self.terms[index] if self.terms else None
        if self.queries:
            queries = self.queries[index]

            def compute(x: Any, y: Any) -> Tensor:
                return self._parts(self._engine.dot(x, y, queries, at=at), x)

            try:
                values = self.group.job.in_pieces(compute, inputs, labels)
            except UnavailableError as error:
                if self.choice.name != "forward" or self.group.job.engine != "auto":
                    raise
                self.choice = EngineChoice("ghost", str(error))
                self._engine = GhostEngine(network)
                values = self.group.job.in_pieces(compute, inputs, labels)
        elif isinstance(term, Quadratic) and term.factors is not None and term.problem is not None:
            values = -self.group.job.in_pieces(partial(_quadratic, term.factors, term.problem), inputs, labels)[:, None]
        elif isinstance(term, Quadratic):
            engine = self._engine
            assert not isinstance(engine, ForwardEngine)

            def squares(x: Any, y: Any) -> Tensor:
                return self._parts(engine.norm_sq(x, y, at=at), x)

            values = -self.group.job.in_pieces(squares, inputs, labels)[..., None]
        else:
            with torch.no_grad():
                values = self.group.job.in_pieces(lambda x, y: network.losses(at, x, y), inputs, labels)[:, None]
            values = values if self.terms else -values
        return values.to(network.dtype)

    @property
    def layers(self) -> list[str]:
        """Names of the L layers."""
        assert isinstance(self._engine, GhostEngine)
        return self._engine.layers

    @property
    def elsewhere(self) -> list[str]:
        """Names of the layers whose part is at no position."""
        assert isinstance(self._engine, GhostEngine)
        return self._engine.elsewhere

    def _parts(self, scores: Tensor, inputs: Any) -> Tensor:
        """The parts that an engine's last scores [B, ...] are the sum of, [B, L or 1 + T, ...], where they are asked for."""
        if self.group.job.by is None:
            return scores
        assert isinstance(self._engine, GhostEngine)
        taken = self._engine.layered if self.group.job.by == "layer" else self._engine.tokenwise
        return taken(inputs, *scores.shape[1:])


def _quadratic(factors: QuadraticFactors, problem: Problem, inputs: Any, labels: Any) -> Tensor:
    """⟨g_i, H⁻¹ g_i⟩ of a batch."""
    return factors.quadratic(problem.block(inputs, labels))


def _engine(job: NetworkJob, name: str, target: str) -> ForwardEngine | GhostEngine | ExplicitEngine:
    network = job.network
    if name == "forward":
        assert target != "self"
        return ForwardEngine(network)
    if name == "ghost":
        return GhostEngine(network, by=job.by)
    if name == "explicit":
        return ExplicitEngine(network)
    raise InputError(f"{job.where}: expected engine='head' with params='last' only; got other params. Leave engine out.")


def require_array_labels(where: str, argument: str, source: Source) -> None:
    """Refuse, before any work, labels that are not numbers."""
    if isinstance(source, ArraySource) and not isinstance(source.labels, Tensor):
        raise InputError(
            f"{where}, {argument}: expected labels as numbers; got {source.labels.dtype}. Encode class names as "
            "integers 0..C-1."
        )
