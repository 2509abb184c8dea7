"""Queries over a whole network: the gradient of the impact by parameter name, from backward passes over V."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..curvature import NetworkProblem
from ..engines.network import Parameters, gradients_of
from ..engines.outputs import rows_of, samples
from ..errors import InputError
from ..fingerprint import fingerprint
from ..losses import Loss, loss_name
from ..terms import NetworkDot, Term
from .network import NetworkGroup
from .query_maker import QueryMaker
from .validation import Validation, cut


@dataclass(frozen=True)
class _Batch:
    """Samples of V that are of one query.

    Attributes:
        argument: "val", or "pairs" where they are counterparts.
        rows: [B] their numbers in their source.
    """

    query: int
    argument: str
    rows: Tensor
    inputs: Any
    labels: Any

    def require_finite(self, group: NetworkGroup, values: Tensor) -> None:
        group.job.require_finite(self.argument, int(self.rows[0]), values)


class NetworkQueryMaker(QueryMaker[NetworkGroup]):
    """Queries q of each scored parameter, [Q, *shape]."""

    def _batches(self, group: NetworkGroup, validation: Validation) -> Iterator[_Batch]:
        """The samples of one query in each batch of V, in order."""
        for index, argument, source in validation.passes():
            for start, inputs, labels in group.job.blocks(argument, source):
                self._require_samples(group.job.where, of_tokens=group.job.network.of_tokens)
                count = samples(inputs) or 0
                query = validation.query_of(group.job.where, index, start, count)
                numbers = torch.arange(start, start + count)
                for q, rows in cut(query):
                    places = numbers[rows]
                    if not isinstance(query, int):
                        rows = rows.to(group.job.network.device)
                    yield _Batch(q, argument, places, rows_of(inputs, rows, count), rows_of(labels, rows, count))

    def _losses(self, group: NetworkGroup, validation: Validation) -> Tensor:
        network = group.job.network
        shape = len(group.points), validation.queries
        total, counts = torch.zeros(shape, dtype=torch.float64), _Counts(group, validation)
        for batch in self._batches(group, validation):
            for index, parameters in enumerate(group.parameters):
                with torch.no_grad():
                    values = network.losses(parameters, batch.inputs, batch.labels)
                batch.require_finite(group, values)
                total[index, batch.query] += float(values.double().sum())
            counts.add(batch)
        self._tell_counts(validation, counts.samples, counts.empty, of_tokens=counts.of_tokens)
        return total / counts.samples

    def _dots(self, group: NetworkGroup, validation: Validation) -> list[NetworkDot]:
        pairs = zip(group.points, group.parameters, strict=True)
        return [NetworkDot(p.weight, p, self._gradients(NetworkGroup(group.job, [p], [at]), validation)) for p, at in pairs]

    def key(self, group: NetworkGroup, index: int) -> str:
        network = group.job.network
        about = {"loss": loss_name(network.loss), "tokens": network.tokens, "scored": list(network.parameters)}
        return fingerprint({**network.every(), **network.buffers(), **group.parameters[index]}, about)

    def _problem(self, group: NetworkGroup, index: int) -> NetworkProblem:
        assert self.train is not None  # score and query have asked for it
        job, at = group.job, group.parameters[index]
        blocks, first = partial(job.blocks, "train", self.train), partial(job.first, "train", self.train)
        return NetworkProblem(job.network, blocks, at, first)

    def _flat(self, term: Term) -> Tensor:
        assert isinstance(term, NetworkDot)
        return torch.cat([value.reshape(len(value), -1).double() for value in term.gradients.values()], dim=1)

    def _unflattened(self, term: Term, v: Tensor) -> NetworkDot:
        assert isinstance(term, NetworkDot)
        pieces = torch.split(v, [value[0].numel() for value in term.gradients.values()], dim=1)
        named = zip(term.gradients.items(), pieces, strict=True)
        return replace(term, gradients={name: piece.reshape(value.shape).to(value) for (name, value), piece in named})

    def _gradients(self, group: NetworkGroup, validation: Validation) -> dict[str, Tensor]:
        """∇f(θ; V) at a group's only point by parameter name, each [Q, *shape], summed in float32 or float64."""
        network, several, counts = group.job.network, validation.queries, _Counts(group, validation)
        at = group.parameters[0]
        leaves = {name: at.get(name, value).detach().requires_grad_() for name, value in network.parameters.items()}
        # All others without gradients, so that nothing before the first scored layer is kept for the backward pass.
        theta = {**network.every(), **at, **leaves}
        total = {
            name: torch.zeros(several, *leaf.shape, dtype=torch.promote_types(leaf.dtype, torch.float32), device=leaf.device)
            for name, leaf in leaves.items()
        }
        cotangents = None if self.impact.additive else self._cotangents(group, validation)
        for batch in self._batches(group, validation):
            with torch.enable_grad():
                value = self._value(group, theta, batch, cotangents)
                found = gradients_of(value, list(leaves.values()))
            counts.add(batch)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    total[name][batch.query] += gradient
        if cotangents is not None:
            cotangents.require_all()
        self._tell_counts(validation, counts.samples, counts.empty, of_tokens=counts.of_tokens)
        square = torch.zeros(several, dtype=torch.float64)
        for name, gradient in total.items():
            if self.impact.additive:
                gradient /= counts.samples.to(gradient).view(-1, *[1] * (gradient.dim() - 1))
            if not bool(torch.isfinite(gradient).all()):
                raise InputError(
                    f"query: expected a finite gradient of the impact; that of {name!r} has NaN or infinity. Check the impact "
                    "function and the validation data."
                )
            mask = group.points[0].mask
            if mask is not None and mask.chain and mask.covers(name, leaves[name]):
                gradient *= mask.scale**2
                gradient.flatten(1)[:, mask.dropped(name, tuple(gradient.shape[1:])).to(gradient.device)] = 0
            square += gradient.double().square().reshape(several, -1).sum(dim=1).cpu()
        self._tell_norms(square.sqrt().tolist())
        return total

    def _value(self, group: NetworkGroup, theta: Parameters, batch: _Batch, cotangents: _Cotangents | None) -> Tensor:
        """A scalar whose gradient is the batch's part of M·∇f, or of ∇f where f is not additive."""
        network = group.job.network
        if self.impact.name == "utility":
            values = network.losses(theta, batch.inputs, batch.labels)
            batch.require_finite(group, values.detach())
            return values.sum()
        with network.moved_features(batch.inputs, self.impact.attacked) if self.impact.attacks else nullcontext():
            z, y, shares = network.counted_logits(theta, batch.inputs, batch.labels)
        batch.require_finite(group, z.detach())
        if cotangents is not None:
            return (z * cotangents.of(batch, len(z)).to(z)).sum()
        assert isinstance(network.loss, Loss)
        self.impact.check_outputs(group.job.where, z.shape[1], network.loss)
        cotangent = self.impact.cotangent(z.detach().double(), y, network.loss)
        return (z * (cotangent if shares is None else cotangent * shares[:, None]).to(z)).sum()

    def _cotangents(self, group: NetworkGroup, validation: Validation) -> _Cotangents:
        """∂f/∂z of all of V; f needs all logits before."""
        network = group.job.network
        assert isinstance(network.loss, Loss)
        kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(validation.queries)]
        for batch in self._batches(group, validation):
            with torch.no_grad():
                z, y, _ = network.counted_logits(group.parameters[0], batch.inputs, batch.labels)
            self.impact.check_outputs(group.job.where, z.shape[1], network.loss)
            batch.require_finite(group, z)
            kept[batch.query].append((z.double(), y, batch.rows.to(z.device)))
        found: list[tuple[Tensor, Tensor] | None] = []
        for q, blocks in enumerate(kept):
            if not blocks:  # told when the samples are counted
                found.append(None)
                continue
            logits, targets, rows = map(torch.cat, zip(*blocks, strict=True))
            samples = None if network.of_tokens else validation.samples(q, rows)
            found.append((rows.cpu(), self.impact.cotangent(logits, targets, network.loss, samples)))
        return _Cotangents(group.job.where, self.impact.name, found)


class _Cotangents:
    """∂f/∂z of a first reading of V, handed out to a second one, whose batches may be cut in other places.

    Args:
        found: of each query (numbers of its samples, cotangents of their logits), in order; None: it has no samples.
    """

    def __init__(self, where: str, impact: str, found: list[tuple[Tensor, Tensor] | None]) -> None:
        self.where, self.impact = where, impact
        self._left = found

    def of(self, batch: _Batch, rows: int) -> Tensor:
        """[rows, C] of the next samples of a query."""
        left, count = self._left[batch.query], len(batch.rows)
        if left is None or not torch.equal(left[0][:count], batch.rows) or len(left[1]) < rows:
            self._refuse()
        self._left[batch.query] = left[0][count:], left[1][rows:]
        return left[1][:rows]

    def require_all(self) -> None:
        """Refuse a second reading that has ended before the first."""
        if any(left is not None and len(left[0]) for left in self._left):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"{self.where}: expected val, and pairs, that give the same samples when they are read again, which the impact "
            f"{self.impact!r} needs over a network; they gave other ones. Pass arrays, or a Dataset that can be indexed."
        )


class _Counts:
    """How many samples came up: those of each query [Q] that have a loss, and sequences in which no token counts."""

    def __init__(self, group: NetworkGroup, validation: Validation) -> None:
        self.network = group.job.network
        self.samples, self.empty = torch.zeros(validation.queries, dtype=torch.int64), 0
        self.of_tokens = False

    def add(self, batch: _Batch) -> None:
        count = len(batch.rows)
        counted = self.network.counted_samples(batch.labels, count)
        self.samples[batch.query] += counted
        self.empty += count - counted
        self.of_tokens = self.network.of_tokens
