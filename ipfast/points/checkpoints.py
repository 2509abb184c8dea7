"""TracIn: states of the model saved during training."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import existing_file
from ..errors import InputError, InputTypeError
from .base import Point, Points, State, Trainable


@dataclass(frozen=True, eq=False)
class Checkpoints(Points):
    """States θ_1 … θ_T of the training run, each with its own buffers (BatchNorm statistics).

    Args:
        states: of each checkpoint a state dict of the scored model (of the nn.Linear, for a head on features), or the path of
            one: .safetensors, or torch.save. Each is loaded once a run, one at a time.
        weights: w_t, such as the learning rates of the checkpoints; None: 1/T each.

    Source: TracIn, arXiv 2002.08484; with equal weights Eq. (5) of arXiv 2405.17490.
    """

    states: Sequence[Mapping[str, Tensor] | str | os.PathLike[str]] = ()
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        where = "Checkpoints"
        if isinstance(self.states, (str, os.PathLike, Mapping)) or not isinstance(self.states, Sequence):
            raise InputTypeError(
                f"{where}: expected states to be a list of state dicts or paths; got {type(self.states).__name__}. "
                "Put a single one into a list."
            )
        for state in self.states:
            if isinstance(state, (str, os.PathLike)):
                existing_file(where, "states", state)
            elif not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
                raise InputTypeError(
                    f"{where}: expected states to hold state dicts (name -> tensor) or paths; got {_kind(state)}. "
                    "Pass model.state_dict()."
                )
        if self.weights is not None:
            listed = isinstance(self.weights, Sequence) and not isinstance(self.weights, str)
            if not listed or not all(isinstance(weight, (int, float, np.number)) for weight in self.weights):
                raise InputTypeError(f"{where}: expected weights to be a list of numbers; got {self.weights!r}.")
            numbers = [float(weight) for weight in self.weights]
            if len(numbers) != len(self.states) or not all(math.isfinite(number) for number in numbers):
                raise InputError(
                    f"{where}: expected weights to be one finite number for each of the {len(self.states)} states; got "
                    f"{numbers}."
                )

    def check(self, where: str) -> None:
        if not self.states:
            raise InputError(
                f"{where}: expected the checkpoints of the training run for method 'tracin'; got none. Pass "
                "method=ipfast.Method(points=ipfast.Checkpoints([...])) with state dicts or paths."
            )

    def points(self, trainable: Trainable | None = None) -> Iterator[Point]:
        count = len(self.states)
        weights = [1 / count] * count if self.weights is None else [float(weight) for weight in self.weights]
        for state, weight in zip(self.states, weights, strict=True):
            held = State(path=Path(state)) if isinstance(state, (str, os.PathLike)) else State(values=state)
            yield Point(weight, state=held)


def _kind(state: Any) -> str:
    if not isinstance(state, Mapping):
        return type(state).__name__
    name, value = next((name, value) for name, value in state.items() if not isinstance(value, Tensor))
    return f"a {type(value).__name__} under {name!r}"
