"""The terms of a method at one group of points after another, from passes over V."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from .. import data
from ..curvature import (
    EKFACFactors,
    Factors,
    Fitted,
    Passes,
    PointCurvature,
    Problem,
    QuadraticFactors,
    Source,
)
from ..errors import InputError
from ..fingerprint import fingerprint_of_all
from ..impacts import Impact
from ..methods import Method
from ..points import Point, Segments
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
        train: the training data, to which a curvature is fitted; None: no curvature, or one that is fitted.
        passes: how those of the fit are shown and kept.

    Attributes:
        stats: the query's norm, M, seconds.
    """

    def __init__(
        self,
        method: Method,
        impact: Impact,
        validation: Validation | None,
        train: data.Source | None = None,
        passes: Passes | None = None,
    ) -> None:
        self.method, self.impact, self.validation, self.train = method, impact, validation, train
        self.passes = passes or Passes()
        self.stats: dict[str, Any] = {}
        self._base_loss: Tensor | None = None
        self._ahead: list[Term] = []  # of the points to come, where all of them are needed for the first

    def prepare(self, groups: Callable[[], Iterator[G]]) -> None:
        """Make, before any group is met, what needs all points at once; `groups` goes through them anew with each call."""
        curvature, points = self.method.curvature.original, self.method.points
        if not isinstance(curvature, Source) or not isinstance(points, Segments):
            return
        started = time.perf_counter()
        assert self.validation is not None  # Source has no self-influence
        *_, group = groups()  # the trained model is the last of all
        last = self._dots(group, self.validation)[-1]
        v = self._flat(last)
        factors = list(self.segments(groups, v.device))
        queries, about = curvature.unrolled(factors, points.times(), v)
        self.stats["curvature"] = [{"name": "Source", "of": {"segments": about}}]
        self._ahead = [
            replace(self._unflattened(last, queries[point.segment]), point=point, weight=point.weight)
            for group in groups()
            for point in group.points
        ]
        self.stats["curvature_seconds"] = time.perf_counter() - started

    def segments(self, groups: Callable[[], Iterator[G]], device: torch.device) -> Iterator[EKFACFactors]:
        """The factors of each segment of a training run."""
        curvature, points = self.method.curvature, self.method.points
        assert isinstance(points, Segments)
        for number in range(len(points.times())):
            if isinstance(curvature, Fitted):
                found = curvature.at("query", self.key_of_segment(groups, number), device)
                assert isinstance(found, EKFACFactors)
                yield found
            else:
                assert isinstance(curvature, Source)
                yield curvature.fit_segment(partial(self._problems, groups, number))

    def key_of_segment(self, groups: Callable[[], Iterator[G]], segment: int) -> str:
        """The fingerprint of all models of a segment."""
        return fingerprint_of_all(self.key(group, index) for group, index in _of_segment(groups, segment))

    def _problems(self, groups: Callable[[], Iterator[G]], segment: int) -> Iterator[Problem]:
        return (self.problem(group, index) for group, index in _of_segment(groups, segment))

    def problem(self, group: G, index: int) -> Problem:
        """The training loss at a point of a group."""
        made = self._problem(group, index)
        made.passes = self.passes
        if self.passes.journal is not None:
            # A model may be of two segments, whose factors are sums over all their models.
            made.passes = self.passes.at(f"{group.points[index].segment}.{self.key(group, index)}")
        return made

    def terms(self, group: G) -> list[Term]:
        """The term of each point of a group."""
        if self._ahead:
            made, self._ahead = self._ahead[: len(group.points)], self._ahead[len(group.points) :]
            return made
        floor = self.method.points.deviation_floor
        if self.validation is None:
            if floor is not None:
                return [LossDeviation(point.weight, point, None, floor) for point in group.points]
            return [self._quadratic(group, index) for index in range(len(group.points))]
        started = time.perf_counter()
        made = []
        if floor is not None:
            for point, value in zip(group.points, self._losses(group, self.validation), strict=True):
                self._base_loss = value.clamp(min=floor) if self._base_loss is None else self._base_loss
                made.append(LossDeviation(point.weight, point, value - self._base_loss, floor))
        else:
            dots = self._dots(group, self.validation)
            made += [self._solved(group, index, dot) for index, dot in enumerate(dots)] if self.method.bent else dots
        self.stats["impact"] = self.impact.name
        if self.impact.options():
            self.stats["impact_options"] = self.impact.options()
        self.stats["query_seconds"] = self.stats.get("query_seconds", 0.0) + time.perf_counter() - started
        return made

    def _quadratic(self, group: G, index: int) -> Quadratic:
        """The self-influence at a point of a group."""
        point = group.points[index]
        if not self.method.bent:
            return Quadratic(point.weight, point)
        factors, problem = self._fitted(group, index)
        assert isinstance(factors, QuadraticFactors)  # a method refuses the other curvatures
        return Quadratic(point.weight, point, factors, problem)

    def _fitted(self, group: G, index: int, v: Tensor | None = None) -> tuple[Factors, Problem | None]:
        """The curvature at a point of a group, to solve v; without v for self-influence, which needs the problem too."""
        curvature = self.method.curvature
        started = time.perf_counter()
        fitted = isinstance(curvature, Fitted)
        problem = None if fitted and v is not None else self.problem(group, index)
        if isinstance(curvature, Fitted):
            device = problem.device if v is None and problem is not None else v.device  # type: ignore[union-attr]
            factors: Factors = curvature.at("query", self.key(group, index), device)
        else:
            assert isinstance(curvature, PointCurvature)
            assert problem is not None
            factors = curvature.fit(problem)
        self._tell_curvature(factors, time.perf_counter() - started)
        return factors, problem

    def _solved(self, group: G, index: int, dot: Term) -> Term:
        """The same term with H⁻¹ times its query."""
        v = self._flat(dot)
        factors, _ = self._fitted(group, index, v)
        started = time.perf_counter()
        solved = factors.solve(v)
        self.stats["curvature_seconds"] += time.perf_counter() - started
        if not bool(torch.isfinite(solved).all()):
            raise InputError(
                f"query: expected a finite solution of {type(self.method.curvature.original).__name__}; got NaN or infinity. "
                "Pass a larger damping."
            )
        return self._unflattened(dot, solved)

    def _tell_curvature(self, factors: Factors, seconds: float) -> None:
        """Record what was fitted; the statistics are the factors' own, which tell more once they have solved."""
        self.stats["curvature_seconds"] = self.stats.get("curvature_seconds", 0.0) + seconds
        known = self.stats.setdefault("curvature", [])
        known.append({"name": type(self.method.curvature.original).__name__, "of": factors.stats})

    @abstractmethod
    def key(self, group: G, index: int) -> str:
        """The fingerprint of the model at a point of a group."""

    @abstractmethod
    def _problem(self, group: G, index: int) -> Problem:
        """The training loss at a point of a group."""

    @abstractmethod
    def _flat(self, term: Term) -> Tensor:
        """The query of a term as flat vectors [Q, P], float64."""

    @abstractmethod
    def _unflattened(self, term: Term, v: Tensor) -> Term:
        """The term with another query."""

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


def _of_segment(groups: Callable[[], Iterator[G]], segment: int) -> Iterator[tuple[G, int]]:
    """(group, place in it) of the points of a segment."""
    for group in groups():
        for index, point in enumerate(group.points):
            if point.segment == segment:
                yield group, index
