"""The defender: scores of the training samples under attack, a curated training set, and the model that is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

import ipfast

from ...methods import get_method
from ..chosen import seeded
from .attack import GAMMA
from .model import fit
from .problem import Problem

SHARE = 0.05
"""Of the training samples, the lowest scores, that are removed or relabelled."""
CLIP = 10.0
"""Largest weight of "reweight-clipped"."""


def score(problem: Problem, model: LogisticRegression, method: str, seed: int) -> ipfast.Scores:
    """Scores of the training samples against the adversarial loss of the whole validation set, Eq. (4).

    Args:
        model: the one under attack, trained on all. seed: of masks and of chance.
    """
    chosen = get_method("experiment", seeded(method, seed))
    options: dict[str, Any] = {"impact": ipfast.impacts.Adversarial(GAMMA)} if chosen.needs_val else {}
    val = problem.val if chosen.needs_val else None
    return ipfast.score(model, problem.train, val, method=chosen, progress=False, **options)


@dataclass(frozen=True)
class Defended:
    """A model trained on curated data.

    Attributes:
        changed: rows that were removed or relabelled, or of reweighting those of a weight below one.
        effective: (Σw)²/Σw² of the weights, the number of samples that they are worth.
    """

    model: LogisticRegression
    changed: np.ndarray
    effective: float


def _trim(problem: Problem, scores: ipfast.Scores) -> Defended:
    (x, y), keep = problem.train, ipfast.curate.trim(scores, SHARE).numpy()
    left = np.setdiff1d(np.arange(len(y)), keep)
    return Defended(_fit(problem, x[keep], y[keep]), left, float(len(keep)))


def _relabel(problem: Problem, scores: ipfast.Scores) -> Defended:
    x, y = problem.train
    new = ipfast.curate.relabel(scores, SHARE, y).numpy()
    return Defended(_fit(problem, x, new), np.flatnonzero(new != y), float(len(y)))


def _reweight(
    problem: Problem, scores: ipfast.Scores, *, temperature: float | None = None, clip: float | None = None
) -> Defended:
    (x, y), weights = problem.train, ipfast.curate.reweight(scores, temperature=temperature, clip=clip).numpy()
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return Defended(_fit(problem, x, y, weights), np.flatnonzero(weights < 1), effective)


CURATIONS: dict[str, Callable[[Problem, ipfast.Scores], Defended]] = {
    "trim": _trim,
    "relabel": _relabel,
    "reweight": _reweight,
    "reweight-clipped": partial(_reweight, clip=CLIP),
    "reweight-softmax": partial(_reweight, temperature=1.0),
}
"""Section 7's three; and of reweighting two other readings: no weight above CLIP, and the softmax of the scores as they are."""
OF_THE_PAPER = ("trim", "relabel", "reweight")


def train(problem: Problem) -> LogisticRegression:
    """The model of all training samples, which is attacked."""
    return _fit(problem, *problem.train)


def _fit(problem: Problem, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> LogisticRegression:
    return fit(x, y, problem.data.penalty, intercept=problem.intercept, weights=weights)
