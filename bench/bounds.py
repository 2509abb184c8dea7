"""Bounds that a case must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bound:
    """A measured value and what it may be; `what` names the value, for a ratio as "dividend / divisor"."""

    what: str
    value: float
    limit: float
    direction: Literal["at most", "at least"]

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.direction == "at most" else self.value >= self.limit
