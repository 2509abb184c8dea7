"""Scores of one batch, for workers that hold a model and a query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import dispatch
from .arguments import BATCH_SIZE, require_engine
from .checks import check_precision, usable_device
from .combine import by_deviation, deviations, weighted_sum
from .data import Batch, split_batch
from .engines import HeadEngine, TokenLabels
from .engines.autocast import without_autocast
from .errors import InputError, InputTypeError
from .groups import Group, GroupScorer, NetworkGroup, NetworkJob, NetworkScorer, groups, network_groups
from .opening import check_query_fits, check_query_fits_network, know_query, open_head, open_network
from .points import Final
from .query_file import Query
from .registry import check_choice
from .token_scores import spread


class Scorer:
    """Scores of one batch: Scorer(model, query)((inputs, labels)) -> [B]. Picklable, so a worker can hold one.

    Token data [B, T, d] is scored as the query was made: one score a sequence [B], or with tokens="each" [B, T].

    Args:
        model: as in `score`; with a query from `ipfast.query` or Query.load.
        query: the terms to score.
        backend, precision, device: as in `score`.
        check: refuse a model in train mode and a head with NaN.
        labels_key: where the labels of batches that are dictionaries are.
        group: number of the group of points to score, where they do not share features: each checkpoint of a network is one.
            The scores of the groups add up.
    """

    def __init__(
        self,
        model: Any,
        query: Query,
        *,
        backend: str = "auto",
        precision: str | None = None,
        device: str | torch.device | None = None,
        check: bool = True,
        group: int | None = None,
        labels_key: str = "labels",
    ) -> None:
        where = "Scorer"
        if not isinstance(query, Query):
            raise InputTypeError(f"{where}: expected query to be made by ipfast.query; got {type(query).__name__}.")
        check_choice(where, "backend", backend, dispatch.BACKENDS)
        check_precision(where, precision)
        if query.combine != "mean":
            raise InputError(
                f"{where}: expected a query whose members are averaged; combine={query.combine!r} needs the scores of all "
                "samples at once. Use ipfast.score."
            )
        self.query, self.labels_key = query, labels_key
        target = usable_device(where, device)
        self._scores: _OfHead | _OfNetwork
        if query.params == "last":
            # A stored query names its head ("" for a bare linear layer), so the model need not run to find it.
            engine = open_head(
                where,
                model,
                head=query.head,
                finder=None,
                loss=query.loss,
                backend=backend,
                include_bias=query.include_bias,
                batch_size=BATCH_SIZE,
                device=target,
                tokens=query.tokens or "mean",
                precision=precision,
                check=check,
            )
            self._scores = _OfHead(query, engine, group)
        else:
            require_engine(where, query.params, "auto", {f"backend={backend!r}": backend != "auto"})
            network = open_network(
                where,
                model,
                query.loss,
                params=query.params,
                tokens=query.tokens,
                precision=precision,
                device=target,
                check=check,
            )
            check_query_fits_network(where, query, network)
            self._scores = _OfNetwork(query, NetworkJob(where, network, engine="auto", batch_size=None), group)

    @torch.inference_mode(False)  # in which nothing has derivatives
    @without_autocast
    def __call__(self, batch: Any) -> Tensor:
        """Scores [B] of a batch (inputs, labels); [B, Q] of several queries."""
        return self._scores(split_batch("Scorer", "batch", batch, self.labels_key))


class _OfHead:
    """At the last layer."""

    def __init__(self, query: Query, engine: HeadEngine, group: int | None) -> None:
        where, self.query = engine.where, query
        know_query(engine, query)
        check_query_fits(where, query, engine)
        chosen, first = _only(where, groups(engine, [term.point for term in query.terms] or Final().points()), group)
        self._scorer = GroupScorer(chosen, list(query.terms[first : first + len(chosen.points)]))
        if len(chosen.points) < len(query.terms):
            _refuse_deviation(where, query)
        self.engine = chosen.engine

    def __call__(self, batch: Batch) -> Tensor:
        h, y = self.engine.alone("batch", batch)
        tokens = y if isinstance(y, TokenLabels) else None
        columns, weights = self._scorer(h, y), self._scorer.weights
        self.engine.require_finite("batch", 0, h, columns, tokens)
        if by_deviation(self.query.terms):
            columns, weights = deviations(columns, self.query.terms), weights[1:]
        values = weighted_sum(columns, weights)
        if self.query.queries is None:
            values = values[:, 0]
        if tokens is None or tokens.tokens != "each":
            return values
        return spread(values, tokens.sequence, tokens.position, len(tokens.counts), tokens.length)


class _OfNetwork:
    """Over the parameters of a whole network."""

    def __init__(self, query: Query, job: NetworkJob, group: int | None) -> None:
        where, self.query, self.job = job.where, query, job
        points = [term.point for term in query.terms] or Final().points()
        chosen, first = _only(where, network_groups(self.job, points), group)
        _refuse_deviation(where, query)
        self._group, self._scorer = chosen, NetworkScorer(chosen, list(query.terms[first : first + len(chosen.points)]))

    def __call__(self, batch: Batch) -> Tensor:
        network = self.job.network
        placed, count = network.enter(batch)
        prepared = network.prepare("Scorer, batch", placed, batch.labels, count or 0)
        with self._group.entered():
            columns = self._scorer(placed, prepared)
        self.job.require_finite("batch", 0, columns)
        values = weighted_sum(columns, self._scorer.weights)
        return values[:, 0] if self.query.queries is None else values


def _refuse_deviation(where: str, query: Query) -> None:
    """Refuse the loss-deviation estimator, which compares each point with the first, where a group holds only one."""
    if by_deviation(query.terms):
        raise InputError(
            f"{where}: expected points that share their features for the loss-deviation estimator, which compares each "
            "with the first; a network's do not. Use ipfast.score."
        )


AnyGroup = TypeVar("AnyGroup", Group, NetworkGroup)


def _only(where: str, found: Iterator[AnyGroup], group: int | None) -> tuple[AnyGroup, int]:
    """The group that is asked for, or the only one, and the number of its first point."""
    first = 0
    before: AnyGroup | None = None
    for index, item in enumerate(found):
        if index == group:
            return item, first
        if group is None and before is not None:
            raise InputError(
                f"{where}: expected group to be a number, since the points do not share features; got None. Pass 0, 1, … and "
                "add up the scores."
            )
        before, first = item, first + len(item.points)
    if before is None or group is not None:
        raise InputError(f"{where}: expected group to be below the number of groups; got {group}.")
    return before, 0
