"""The model as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One parameter vector θ_t of a trajectory, and its weight w_t in the sum over points."""

    weight: float = 1.0


@dataclass(frozen=True)
class Final:
    """The parameters that the model holds now: one point of weight 1."""

    def points(self) -> tuple[Point, ...]:
        return (Point(),)
