"""The unit of an experiment: one method, at one setting, with one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What is run once and never again.

    Attributes:
        part: of the experiment, a table or a figure of its own.
        setting: data, noise level, rate: what the part varies.
        method: a method's name, as tables show it.
        seed: of retraining, splits or masks; shared by all methods, so that their differences are paired.
    """

    part: str
    setting: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.part}, {self.setting}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """What a cell gave: numbers, or lists of numbers."""

    cell: Cell
    values: Mapping[str, Any]
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)  # device and versions


Records = Mapping[Cell, Record]


def by_seed(records: Records, part: str, setting: str, method: str, name: str) -> dict[int, float]:
    """Seed -> the value called `name`, of the cells that are finished and have it."""
    return {
        cell.seed: float(record.values[name])
        for cell, record in sorted(records.items())
        if cell[:3] == (part, setting, method) and record.values.get(name) is not None
    }
