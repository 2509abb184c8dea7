"""SOURCE: the training run in segments, each with its checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError, InputTypeError
from .base import Point, Points, Trainable
from .checkpoints import Checkpoints

StateLike = Mapping[str, Tensor] | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Segments(Points):
    """The training run cut into segments l = 1 … L in order, in each of which curvature and gradients are taken as constant.

    Args:
        states: for each segment its checkpoints, state dicts or paths as `Checkpoints` takes them; two a segment are usual. The
            last of all is the trained model.
        learning_rates: η_l, the mean learning rate of each segment.
        steps: K_l, the optimiser's steps in each segment.
        momentum: β of heavy-ball momentum, by which η_l becomes η_l/(1 − β).

    Source: approximate unrolled differentiation, arXiv 2405.12186, for gradient descent; Adam would need its preconditioner.
    """

    states: Sequence[Sequence[StateLike]] = ()
    learning_rates: Sequence[float] = ()
    steps: Sequence[int] = ()
    momentum: float = 0.0

    def __post_init__(self) -> None:
        where = "Segments"
        if isinstance(self.states, (str, os.PathLike, Mapping)) or not isinstance(self.states, Sequence):
            raise InputTypeError(f"{where}: expected states to be a list of lists; got {type(self.states).__name__}.")
        for segment in self.states:
            if isinstance(segment, (str, os.PathLike, Mapping)) or not isinstance(segment, Sequence) or not segment:
                raise InputTypeError(
                    f"{where}: expected each segment of states to be a list of at least one checkpoint; got "
                    f"{type(segment).__name__}. Put the checkpoints of a segment into a list."
                )
            Checkpoints(segment)
        for name, values in (("learning_rates", self.learning_rates), ("steps", self.steps)):
            listed = isinstance(values, Sequence) and not isinstance(values, str)
            if not listed or len(values) != len(self.states) or not all(_positive(value, name) for value in values):
                raise InputError(
                    f"{where}: expected {name} to be one {'whole ' * (name == 'steps')}number above 0 for each of the "
                    f"{len(self.states)} segments; got {list(values) if listed else values!r}."
                )
        if isinstance(self.momentum, (bool, str)) or not 0 <= self.momentum < 1:
            raise InputError(f"{where}: expected momentum to be at least 0 and below 1; got {self.momentum!r}.")

    def check(self, where: str) -> None:
        if not self.states:
            raise InputError(
                f"{where}: expected the segments of the training run for method 'tda'; got none. Pass "
                "method=ipfast.Method(points=ipfast.Segments(states, learning_rates, steps), curvature=ipfast.Source())."
            )

    def points(self, trainable: Trainable | None = None) -> Iterator[Point]:
        for number, segment in enumerate(self.states):
            for point in Checkpoints(segment).points():
                yield Point(point.weight, state=point.state, segment=number)

    def times(self) -> list[float]:
        """η_l K_l/(1 − β) of each segment."""
        return [
            float(rate) * int(steps) / (1 - self.momentum) for rate, steps in zip(self.learning_rates, self.steps, strict=True)
        ]


def _positive(value: Any, name: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return bool(math.isfinite(value) and value > 0 and (name != "steps" or value == int(value)))
