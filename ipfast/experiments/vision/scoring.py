"""Scores of the training images by each method, at the last layer of the base model or over the whole network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import ipfast

from ...methods import Control, Method, get_method
from ..chosen import seeded
from .base_model import BaseModel, segment_epochs
from .problem import Problem
from .training import Recipe, effective_rates, make_optimizer

GEX_RATE = 0.01
"""Of the extra training, as the last one of the paper's schedule: that of one cycle ends at nothing."""
GEX_SHARE = 0.1
"""Of the rate of training with AdamW, which the extra training then is too."""
TRAVELLING = ("tracin", "gex", "tda")
"""Methods whose points have features of their own, so that the images go through the network at each of them."""


def score(base: BaseModel, problem: Problem, method: str, seed: int, *, progress: bool = True) -> ipfast.Scores:
    """Scores of all training images against the hold-out.

    Args:
        method: a name of the method table; "NAME:all" is over all parameters, others are of the last layer.
        seed: of masks and of chance.
    """
    name = method.removesuffix(":all")
    chosen = _travelling(base, problem, name) if name in TRAVELLING else seeded(name, seed)
    if not isinstance(chosen, str):
        made: Method | Control = chosen
    else:
        made = get_method("experiment", chosen)
    options: dict[str, Any] = {"method": made, "progress": progress}
    if name in TRAVELLING or method != name:
        if method != name:
            options["params"] = "all"
        val = problem.val if made.needs_val else None
        return ipfast.score(base.network, (problem.images, problem.given), val, **options)
    held = (base.val_features, problem.val[1]) if made.needs_val else None
    return ipfast.score(base.head, (base.features, problem.given), held, **options)


def ensemble(base: BaseModel, problem: Problem, members: int, rate: float, seed: int) -> ipfast.Scores:
    """IP Ensemble of another size or rate, at the last layer."""
    method = ipfast.Method(points=ipfast.Dropout(members, rate, seed=seed), name="ip_ensemble")
    return ipfast.score(
        base.head, (base.features, problem.given), (base.val_features, problem.val[1]), method=method, progress=False
    )


def _travelling(base: BaseModel, problem: Problem, name: str) -> Method:
    if name == "tracin":
        return ipfast.Method(points=ipfast.Checkpoints(base.checkpoints()), name=name)
    if name == "gex":
        points = ipfast.ExtraSGD((problem.images, problem.given), optimizer=partial(_extra, recipe=base.recipe))
        return ipfast.Method(points=points, name=name)
    # A run shorter than three epochs has fewer segments.
    segments = [segment for segment in segment_epochs(len(base.about["test"])) if segment[2] > segment[0]]
    states = [[base.state(middle), base.state(end)] for _, middle, end in segments]
    # One cycle moves the momentum too, so that no single one turns mean rates into effective ones.
    effective = effective_rates(base.recipe, base.about["steps"])
    rates = [sum(effective[start:end]) / (end - start) for start, _, end in segments]
    steps = [(end - start) * base.about["steps"] for start, _, end in segments]
    run = ipfast.Segments(states, learning_rates=rates, steps=steps)
    return ipfast.Method(points=run, curvature=ipfast.Source(), name=name)


def _extra(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer != "sgd":
        return make_optimizer(parameters, recipe, GEX_SHARE * recipe.rate)
    return torch.optim.SGD(parameters, GEX_RATE, momentum=0.9, weight_decay=5e-4)
