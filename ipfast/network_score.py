"""score() and query() where the parameters of a whole network are scored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .combine import weighted_sum
from .curvature import Passes
from .data import Batch, Source
from .engines.network import Network, SampleLosses
from .engines.outputs import samples
from .errors import InputError
from .groups import (
    NetworkGroup,
    NetworkJob,
    NetworkQueryMaker,
    NetworkScorer,
    Validation,
    network_groups,
    require_array_labels,
)
from .hygiene import check_network
from .impacts import Impact
from .losses import Loss
from .methods import Control, Method
from .points import Final, Point, Trainable
from .query_file import Query
from .scores import Scores
from .streaming import Result, stream
from .terms import Term

PAIR_BYTES = 4 * 2**30
"""Largest memory of the gradients of all validation samples, which aggregate=False holds."""


class NetworkRun:
    """A method on a network, ready to make its query and to score data.

    Args:
        job: the network and how its data is batched.
        method: what is scored. impact: what should improve. validation: V; None for target "self" and the controls.
        train: the training data, to which a curvature is fitted.
        check: look, before any work, for what ruins scores silently.
        passes: how those of a fit are shown and kept.

    Attributes:
        has_loss: of each batch that was scored last, whether its samples have a loss: no sequence in which no token counts.
    """

    def __init__(
        self,
        job: NetworkJob,
        method: Method | Control,
        impact: Impact,
        validation: Validation | None,
        train: Source | None = None,
        *,
        check: bool = True,
        passes: Passes | None = None,
    ) -> None:
        self.job, self.method, self.impact, self.validation, self.check = job, method, impact, validation, check
        if isinstance(method, Method) and method.target == "self" and job.engine == "forward":
            raise InputError(
                f"{job.where}: expected engine='ghost' or 'explicit' for self-influence, which no single derivative gives; got "
                "'forward'."
            )
        self.maker = NetworkQueryMaker(method, impact, validation, train, passes) if isinstance(method, Method) else None
        if not isinstance(job.network.loss, Loss) and impact.name != "utility":
            raise InputError(
                f"{job.where}: expected impact='utility' with a loss (model, batch) -> [B], since others look at logits; "
                f"got {impact.name!r}. Use a loss of ipfast.losses."
            )
        for _, argument, source in () if validation is None else validation.passes():
            require_array_labels(job.where, argument, source)
        self.train = train
        self.has_loss: list[Tensor] = []
        if train is not None:
            require_array_labels(job.where, "train", train)

    def groups(self, stored: Sequence[Term] | None) -> Iterator[NetworkGroup]:
        """Each point, of the method or of stored terms."""
        points: Iterable[Point]
        if stored is not None:
            points = [term.point for term in stored] or Final().points()
        elif isinstance(self.method, Method):
            points = self.method.points.points(Trainable(lambda: self.job.network.model, self._losses))
        else:
            points = Final().points()
        return network_groups(self.job, points)

    def look_ahead(self, **train: Source) -> None:
        """Refuse what ruins scores silently, before any work."""
        if self.check:
            val = () if self.validation is None else self.validation.sources
            pairs = () if self.validation is None else self.validation.pairs
            sources = {"val": val, "pairs": pairs, **{argument: (source,) for argument, source in train.items()}}
            check_network(self.job.where, self.job.network, sources)

    def _prepare(self) -> None:
        """What needs all points before the first."""
        if self.maker is not None:
            self.maker.prepare(lambda: self.groups(None))

    def query_terms(self) -> list[Term]:
        """The term of each point."""
        self.look_ahead(**({} if self.train is None else {"train": self.train}))
        made: list[Term] = []
        self._prepare()
        for group in self.groups(None) if self.maker is not None else ():
            with group.entered():
                made += [] if self.maker is None else self.maker.terms(group)
        return made

    def score(self, source: Source, result: Result, stored: Sequence[Term] | None, progress: bool) -> list[NetworkScorer]:
        """Score the training data at one group of points after another into `result`."""
        require_array_labels(self.job.where, "train", source)
        self.look_ahead(train=source)
        scorers = []
        first = 0
        if stored is None:
            self._prepare()
        for group in self.groups(stored):
            with group.entered():
                if stored is not None:
                    terms = list(stored[first : first + len(group.points)])
                else:
                    terms = [] if self.maker is None else self.maker.terms(group)
                scorer = NetworkScorer(group, terms)
                self.has_loss = []
                parts = self._parts(scorer, source, alone=result.alone(terms))
                result.add(
                    stream(parts, source, self.method.name, progress, ragged=self.job.by == "token"), terms, scorer.weights
                )
            scorers.append(scorer)
            first += len(group.points)
        return scorers

    def _parts(self, scorer: NetworkScorer, source: Source, *, alone: bool) -> Iterator[tuple[int, Tensor]]:
        for start, inputs, labels in self.job.blocks("train", source):
            columns = scorer(inputs, labels)
            self.job.require_finite("train", start, columns)
            self.has_loss.append(self.job.network.has_loss(labels, len(columns)).cpu())
            yield len(columns), columns if alone else weighted_sum(columns, scorer.weights)

    def _losses(self, module: nn.Module, batch: Batch, loss: Loss | None) -> Tensor:
        """ℓ_i of a copy of the model that is trained on."""
        network = self.job.network
        placed = network.place(batch.inputs)
        where, count, scored = f"{self.job.where}, train of ExtraSGD", samples(placed) or 0, loss or network.loss
        prepared = network.prepare(where, placed, batch.labels, count, loss=scored)
        values: Tensor = SampleLosses(module, scored, network.tokens, batch.form)(placed, prepared)
        return values


def require_pairs_fit(where: str, network: Network, validation: Validation) -> Validation:
    """V with every sample as a query of its own, where their gradients fit in memory."""
    source = validation.sources[0]
    if source.rows is None:
        raise InputError(f"{where}: expected val of known length with aggregate=False; got a stream. Pass arrays or a Dataset.")
    held = source.rows * sum(value.numel() * value.element_size() for value in network.parameters.values())
    if held > PAIR_BYTES:
        raise InputError(
            f"{where}: expected aggregate=False where the gradients of all validation samples fit into {PAIR_BYTES >> 30} GiB; "
            f"those of {source.rows} samples take {held / 2**30:.1f} GiB. Pass fewer samples at once, or use params='last'."
        )
    return Validation((source,), tuple(map(str, range(source.rows))), torch.arange(source.rows))


def network_scores(
    run: NetworkRun,
    source: Source,
    *,
    stored: Query | None,
    result: Result,
    queries: tuple[str, ...] | None,
    progress: bool,
    ids: np.ndarray | None,
    pairs: bool,
) -> Scores:
    """The scores of all training samples: [N], [N, Q] of several `queries`, or [N, M] of `pairs`.

    Args:
        stored: a query whose terms are taken; None: they are made.
        result: gathers the scores at the points, or the parts that they are the sum of.
    """
    started = time.perf_counter()
    scorers = run.score(source, result, None if stored is None else stored.terms, progress)
    has_loss = torch.cat(run.has_loss)
    values, members = result.finish(has_loss)
    if queries is None and not pairs:
        values, members = values[..., 0], None if members is None else members[..., 0]
    parts: dict[str, Any] = {}
    if run.job.by is not None:
        if run.job.by == "layer":
            parts = {"by_layer": values, "layers": tuple(scorers[0].layers)}
        else:
            parts = {"by_token": values[:, 1:].contiguous()}
        values, members = values.sum(dim=1), None if members is None else members.sum(dim=2)
    made = run.maker.stats if run.maker is not None and stored is None else {}
    network, choice = run.job.network, scorers[0].choice
    stats = {
        **(made if stored is None else stored.stats),
        "N": len(values),
        "engine_reason": choice.reason,
        "backend_reason": "torch's own operations",
        "loss": network.loss.form if isinstance(network.loss, Loss) else "callable",
        "parameters": sum(value.numel() for value in network.parameters.values()),
        "score_seconds": time.perf_counter() - started - made.get("query_seconds", 0.0),
    }
    if run.job.by == "token":
        stats["at_no_position"] = scorers[0].elsewhere
    if network.of_tokens:
        stats["empty_sequences"] = int((~has_loss).sum())
    if len(result.weights) > 1:
        stats["members"] = len(result.weights)
    if ids is not None and len(ids) != len(values):
        raise InputError(f"score: expected one id a sample; got {len(ids)} ids for {len(values)} samples.")
    return Scores(values, run.method.name, choice.name, "reference", stats, ids, members, queries, **parts)
