"""The terms of a method at one group of points after another, from passes over V."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..errors import InputError
from ..impacts import Impact
from ..methods import Method
from ..points import Point
from ..terms import LossDeviation, Quadratic, Term
from .validation import Validation


class AtPoints(Protocol):
    """A group: points that are met together."""

    points: list[Point]


G = TypeVar("G", bound=AtPoints)


class QueryMaker(ABC, Generic[G]):
    """What the query of a head and that of a network have in common.

    Args:
        method: what is scored.
        impact: what should improve.
        validation: V; None for target "self".

    Attributes:
        stats: the query's norm, M, seconds.
    """

    def __init__(self, method: Method, impact: Impact, validation: Validation | None) -> None:
        self.method, self.impact, self.validation = method, impact, validation
        self.stats: dict[str, Any] = {}
        self._base_loss: Tensor | None = None

    def terms(self, group: G) -> list[Term]:
        """The term of each point of a group."""
        floor = self.method.points.deviation_floor
        if self.validation is None:
            if floor is not None:
                return [LossDeviation(point.weight, point, None, floor) for point in group.points]
            return [Quadratic(point.weight, point, self.method.curvature) for point in group.points]
        started = time.perf_counter()
        made: list[Term] = []
        if floor is not None:
            for point, value in zip(group.points, self._losses(group, self.validation), strict=True):
                self._base_loss = value.clamp(min=floor) if self._base_loss is None else self._base_loss
                made.append(LossDeviation(point.weight, point, value - self._base_loss, floor))
        else:
            made += self._dots(group, self.validation)
        self.stats["impact"] = self.impact.name
        if self.impact.options():
            self.stats["impact_options"] = self.impact.options()
        self.stats["query_seconds"] = self.stats.get("query_seconds", 0.0) + time.perf_counter() - started
        return made

    @abstractmethod
    def _losses(self, group: G, validation: Validation) -> Tensor:
        """Mean validation loss of each point and query: [T, Q] float64."""

    @abstractmethod
    def _dots(self, group: G, validation: Validation) -> Sequence[Term]:
        """The term of each point, with the gradient of the impact there."""

    def _require_samples(self, where: str, *, of_tokens: bool) -> None:
        """Refuse tokens where the impact knows samples."""
        if of_tokens and self.impact.by_sample:
            raise InputError(
                f"{where}: expected one row of logits for each sample of val with the impact {self.impact.name!r}, which knows "
                "samples; got those of tokens. Pool the tokens of a sequence first, or pass a callable."
            )

    def _tell_counts(self, validation: Validation, counts: Tensor, empty: int, *, of_tokens: bool) -> None:
        """Check and record how many samples each query has [Q], and how many sequences without a counted token came up."""
        if not bool((counts > 0).all()):
            if of_tokens:
                raise InputError(
                    "query: expected a token that counts in val, for each query; all labels are the ignored one. Pass "
                    "validation sequences with labels."
                )
            raise InputError("query: expected at least one sample in val; it is empty.")
        if validation.pairs:
            counts = counts // 2  # a pair is one sample
        samples = int(counts.sum()) + empty
        if validation.groups is not None and samples != len(validation.groups):
            raise InputError(
                f"query: expected val_groups to hold one group for each of the {samples} samples of val; got "
                f"{len(validation.groups)}."
            )
        if not of_tokens:  # lengths that were not known before
            lengths = counts.tolist() if validation.groups is None else [samples]
            self.impact.check_samples("query", validation.sets, lengths)
        if of_tokens:
            self.stats["val_empty_sequences"] = empty
        self.stats["M"] = int(counts[0]) if validation.names is None else counts.tolist()

    def _tell_norms(self, norms: list[float]) -> None:
        """Record the norms of more queries."""
        before = self.stats.get("query_norm", [])
        norms = [*(before if isinstance(before, list) else [before]), *norms]
        self.stats["query_norm"] = norms[0] if len(norms) == 1 else norms
