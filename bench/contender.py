"""What is timed: a name and a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Args:
        name: in tables and in results.
        call: does the work once.
        scores: whether it returns the scores, which the gate then checks.
        share: of the case's rows that `call` works on; its time is divided by it, and tables say so.
        memory: whether its extra peak memory is measured.
    """

    name: str
    call: Callable[[], Tensor]
    scores: bool = False
    share: float = 1.0
    memory: bool = False
