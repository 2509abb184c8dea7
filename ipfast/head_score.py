"""The pass over the training data at the last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from . import dispatch
from .combine import weighted_sum
from .data import Source
from .engines import HeadEngine, Labels, TokenLabels
from .groups import Group, GroupScorer
from .ops import BLOCK_ROWS
from .pairwise import Pairwise
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

    def add(self, group: Group, scorer: GroupScorer) -> None:
        """Score the training data at the points of a group."""
        alone = self.result.alone(scorer.terms)

        def block(h: Tensor, y: Labels) -> Tensor:
            columns = scorer(h, y)
            return columns if alone else weighted_sum(columns, scorer.weights)

        part = self._stream(group.engine, block, scorer.columns, by_row=self.kernels and scorer.stack is not None)
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
    ) -> Tensor:
        """Scores of all the data, at most `rows` at once."""
        record: TokenRecord | None = None

        def parts() -> Iterator[tuple[int, Tensor]]:
            nonlocal record
            for start, h, y in _pieces(engine.blocks("train", self.source, columns=columns, by_row=by_row), rows):
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
