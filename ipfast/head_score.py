"""score() at the last layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from . import dispatch
from .combine import weighted_sum
from .curvature import Passes, TrainRows
from .data import Source
from .engines import HeadEngine, Labels, TokenLabels
from .errors import InputError
from .groups import Group, GroupScorer, HeadQueryMaker, Validation, groups
from .hygiene import check_features
from .impacts import Impact
from .methods import Control, Method
from .opening import check_query_fits, know_query, trainable
from .ops import BLOCK_ROWS
from .pairwise import Pairwise
from .points import Final, Point
from .query_file import Query
from .scores import Scores
from .streaming import Result, stream
from .terms import Quadratic
from .token_scores import TokenRecord


class HeadRun:
    """Scores of the training data at one group of points after another, gathered in `result`.

    Args:
        source: the training data. name: beside the progress bar.
        kernels: whether a backend's kernels compute, whose score of a row depends on that row alone.

    Attributes:
        backend, reason, route, route_reason: how the last group was computed.
        record: which tokens counted, of token data.
    """

    def __init__(self, source: Source, result: Result, name: str, *, kernels: bool, progress: bool) -> None:
        self.source, self.result, self.name = source, result, name
        self.kernels, self.progress = kernels, progress
        self.backend = self.reason = self.route = self.route_reason = ""
        self.record: TokenRecord | None = None

    def add(self, group: Group, scorer: GroupScorer, rows: TrainRows | None = None) -> None:
        """Score the training data at the points of a group, from `rows` where a fit has left them."""
        alone = self.result.alone(scorer.terms)

        def block(h: Tensor, y: Labels) -> Tensor:
            columns = scorer(h, y)
            return columns if alone else weighted_sum(columns, scorer.weights)

        part = self._stream(group.engine, block, scorer.columns, by_row=self.kernels and scorer.stack is not None, kept=rows)
        if self.record is not None and not self.record.each and scorer.terms and isinstance(scorer.terms[0], Quadratic):
            self.backend, self.reason = "reference", "self-influence of sequences: products of residuals and features in torch"
        self.route, self.route_reason = group.choice.name, group.choice.reason
        self.result.add(part, scorer.terms, scorer.weights)

    def add_pairs(self, group: Group, pairs: Pairwise) -> None:
        """The products of the training data with each validation sample at the points of a group."""
        part = self._stream(group.engine, pairs, len(pairs.features), rows=BLOCK_ROWS)
        self.backend, self.reason = "reference", "aggregate=False: two matrix products"
        self.route, self.route_reason = "dense", "every point has residuals of its own"
        self.result.add(part, [], pairs.weights)

    def _stream(
        self,
        engine: HeadEngine,
        score_block: Callable[[Tensor, Labels], Tensor],
        columns: int,
        *,
        rows: int | None = None,
        by_row: bool = False,
        kept: TrainRows | None = None,
    ) -> Tensor:
        """Scores of all the data, at most `rows` at once."""
        record: TokenRecord | None = None
        blocks = engine.blocks("train", self.source, columns=columns, by_row=by_row) if kept is None else kept.blocks()

        def parts() -> Iterator[tuple[int, Tensor]]:
            nonlocal record
            for start, h, y in _pieces(blocks, rows):
                choice = dispatch.select_backend(engine.backend, device=h.device)
                self.backend, self.reason = choice.name, choice.reason
                part = score_block(h, y)
                tokens = y if isinstance(y, TokenLabels) else None
                engine.require_finite("train", start, h, part, tokens)
                if tokens is not None:
                    record = record or TokenRecord(engine.tokens)
                    record.add(tokens)
                yield len(part) if tokens is None else len(tokens.counts), part

        values = stream(parts(), self.source, self.name, self.progress, by_sample=engine.tokens != "each")
        self.record = record
        return values


def _pieces(blocks: Iterator[tuple[int, Tensor, Labels]], rows: int | None) -> Iterator[tuple[int, Tensor, Labels]]:
    for start, h, y in blocks:
        if rows is None or isinstance(y, TokenLabels):
            yield start, h, y
            continue
        for first in range(0, len(h), rows):
            piece = slice(first, first + rows)
            yield start + first, h[piece], y[piece]


def head_scores(
    engine: HeadEngine,
    method: Method | Control,
    impact: Impact,
    validation: Validation | None,
    source: Source,
    *,
    stored: Query | None,
    result: Result,
    queries: tuple[str, ...] | None,
    kernels: bool,
    passes: Passes,
    progress: bool,
    ids: np.ndarray | None,
    pairs: bool,
    check: bool,
) -> Scores:
    """The scores of all training samples: [N], [N, Q] of several `queries`, [N, M] of `pairs`, [N, T] of tokens.

    Args:
        method, impact, validation: what the terms are made from, unless they are those of a `stored` query.
        source: the training data.
        result: gathers the scores at the points.
        kernels: as in HeadRun. passes: how those of a fit are shown.
        check: look, before any work, for what ruins scores silently.
    """
    _check_data(engine, impact, validation, source, stored, check=check)
    started = time.perf_counter()
    run = HeadRun(source, result, method.name, kernels=kernels, progress=progress)
    maker = None
    if stored is None and isinstance(method, Method):
        maker = HeadQueryMaker(method, impact, validation, source, passes)
        maker.prepare(lambda: groups(engine, _points(engine, method, stored)))
    for group in groups(engine, _points(engine, method, stored)):
        if pairs and validation is not None:
            run.add_pairs(group, Pairwise(group, validation))
            continue
        first = len(result.terms)
        terms = list((stored.terms if stored else ())[first : first + len(group.points)])
        scorer = GroupScorer(group, terms if maker is None else maker.terms(group))
        run.add(group, scorer, None if maker is None else maker.kept(group))
    record, counted = run.record, None
    values, members = result.finish(None if record is None or record.each else record.counts > 0)
    if queries is None and not pairs:
        values, members = values[:, 0], None if members is None else members[:, :, 0]
    samples = len(values) if record is None else len(record.counts)
    if record is not None and record.each:
        values, counted = record.spread(values), record.mask()
        members = None if members is None else record.spread(members)
    if ids is not None and len(ids) != samples:
        raise InputError(f"{engine.where}: expected one id a sample; got {len(ids)} ids for {samples} samples.")
    made = {} if maker is None else maker.stats
    seconds = time.perf_counter() - started - made.get("query_seconds", 0.0)
    stats = {**(made if stored is None else stored.stats), "N": samples, **_stats(engine, run), "score_seconds": seconds}
    return Scores(values, method.name, engine.name, run.backend, stats, ids, members, queries, counted)


def _check_data(
    engine: HeadEngine, impact: Impact, validation: Validation | None, source: Source, stored: Query | None, *, check: bool
) -> None:
    """Refuse data that does not fit the head, before any of it is scored."""
    if stored is not None:
        know_query(engine, stored)
    engine.check("train", source)
    for _, argument, val in () if validation is None else validation.passes():
        engine.check(argument, val)
    if stored is None:
        impact.check_outputs(engine.where, engine.last.outputs, engine.loss)
    else:
        check_query_fits(engine.where, stored, engine)
    if check:
        looked_at = {} if validation is None else {"val": validation.sources, "pairs": validation.pairs}
        check_features(engine.where, engine.last, {**looked_at, "train": (source,)})


def _points(engine: HeadEngine, method: Method | Control, stored: Query | None) -> Iterable[Point]:
    """Those of the stored terms, or of the method."""
    if stored is not None and stored.terms:
        return [term.point for term in stored.terms]
    return method.points.points(trainable(engine)) if isinstance(method, Method) else Final().points()


def _stats(engine: HeadEngine, run: HeadRun) -> dict[str, Any]:
    """What Scores.stats tells of the run, beside the query's."""
    stats: dict[str, Any] = {
        "backend_reason": run.reason,
        "engine_reason": "params='last': the head engine is exact and reads the features once",
        "loss": engine.loss.form,
        "head": engine.last.name,
    }
    if engine.precision is not None:
        stats["precision"] = engine.precision
    if len(run.result.weights) > 1:
        stats |= {"members": len(run.result.weights), "ensemble": run.route, "ensemble_reason": run.route_reason}
    if run.record is not None:
        stats |= {"tokens": engine.tokens, "counted_tokens": int(run.record.counts.sum())}
        stats["empty_sequences"] = int((run.record.counts == 0).sum())
    return stats
