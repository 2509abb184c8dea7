"""Scores of the training texts by each method, at the last layer of the base model, for utility and for fairness."""

from __future__ import annotations

from typing import Any

import torch

import ipfast

from ...methods import get_method
from ..chosen import seeded
from .base_model import BaseModel, Checkpoint
from .problem import Problem

HOW = "rank"
"""How utility and fairness become one score."""
WITHOUT_VAL = ("self_tracin", "self_lissa", "loss", "random")
"""Methods that look at no validation data, and so at no objective."""


def objectives_of(method: str) -> tuple[str, ...]:
    return ("own",) if method in WITHOUT_VAL else ("utility", "fairness")


def score(base: BaseModel, problem: Problem, method: str, objective: str, seed: int) -> ipfast.Scores:
    """Scores of all training texts.

        utility:   f = the mean cross-entropy of V
        fairness:  f = (1/M) Σ_v ‖p(x_v) − p(x'_v)‖², x'_v the text about other people

    Args:
        method: a name of the method table. seed: of masks and of chance.
        objective: one of `objectives_of(method)`.
    """
    if method == "tracin":
        # Each checkpoint has features of its own; Eq. (5) is the mean over them of what ip gives there.
        found = [_at(checkpoint, problem, "ip", objective, 0) for checkpoint in base.checkpoints()]
        values = torch.stack([scores.values for scores in found]).mean(dim=0)
        return ipfast.Scores(values, method, found[0].engine, found[0].backend)
    return _at(base.final(), problem, method, objective, seed)


def combine(parts: dict[str, ipfast.Scores]) -> ipfast.Scores:
    """One score a text: the mean of its ranks by utility and by fairness, or the method's own."""
    return ipfast.curate.combine(parts, HOW) if len(parts) > 1 else parts["own"]


def _at(checkpoint: Checkpoint, problem: Problem, method: str, objective: str, seed: int) -> ipfast.Scores:
    made = get_method("experiment", seeded(method, seed))
    options: dict[str, Any] = {"method": made, "progress": False}
    held = (checkpoint.val_features, problem.val.labels) if made.needs_val else None
    if objective == "fairness":
        options["impact"] = ipfast.Counterfactual(pairs=checkpoint.rewritten_features)
    return ipfast.score(checkpoint.head, (checkpoint.features, problem.labels), held, **options)
