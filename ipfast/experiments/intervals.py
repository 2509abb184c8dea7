"""Means with their spread, and differences of runs that share their seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import binom, binomtest, t

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (with n − 1) of n values; the deviation of one value is not known."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of n pairs, and its interval of confidence 95 % by Student's t; one pair has none."""

    mean: float
    low: float | None
    high: float | None
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and deviation; None of no values.

    >>> spread([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    found = np.asarray(list(values), dtype=np.float64)
    if not len(found):
        return None
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def paired(values: Mapping[int, float], control: Mapping[int, float], factor: float = 1.0) -> Difference | None:
    """Mean of factor·(values − control) over the seeds that both have; None if they share none.

    >>> paired({0: 3.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: 2.0})
    Difference(mean=2.0, low=2.0, high=2.0, count=2)
    """
    shared = sorted(values.keys() & control.keys())
    of = spread(factor * (values[seed] - control[seed]) for seed in shared)
    if of is None:
        return None
    if of.deviation is None:
        return Difference(of.mean, None, None, of.count)
    reach = float(t.ppf((1 + LEVEL) / 2, of.count - 1)) * of.deviation / sqrt(of.count)
    return Difference(of.mean, of.mean - reach, of.mean + reach, of.count)


def share_interval(found: int, of: int) -> tuple[float, float]:
    """The bootstrap interval (percentiles, confidence 95 %) of a share found / of; that of Clopper and Pearson where it would
    be a point, of none and of all.

    Drawing `of` samples with replacement gives a binomial count, so that its quantiles are exact and no draw is needed.

    >>> share_interval(5, 10)
    (0.2, 0.8)
    >>> tuple(round(bound, 3) for bound in share_interval(10, 10))
    (0.692, 1.0)
    """
    if found in (0, of):
        exact = binomtest(found, of).proportion_ci(LEVEL, method="exact")
        return float(exact.low), float(exact.high)
    low, high = binom.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], of, found / of)
    return float(low) / of, float(high) / of
