"""Which cells a command asks for, by methods, seeds and settings."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..registry import check_choice
from .base import Experiment
from .cells import Cell


def select_cells(experiment: Experiment, methods: list[str], seeds: list[int], settings: list[str] | None) -> list[Cell]:
    """The cells of the parts and settings that were asked for. A part is run of the data sets that are there; of one that a
    setting names `check` says what is not there."""
    cells = list(dict.fromkeys(experiment.cells(methods, seeds)))
    if settings is not None:
        every = dict.fromkeys(experiment.every_cell(methods, seeds))
        known: dict[str, None] = {}
        for cell in (*every, *experiment.every_cell(experiment.methods, seeds)):
            known |= dict.fromkeys(_names(cell))
        for name in settings:
            check_choice("experiment", "--settings", name, known)
        asked, there = set(settings), set(cells)
        cells = [cell for cell in every if not asked.isdisjoint(_names(cell)[cell not in there :])]
    if not cells:
        of = "" if settings is None else f" of {', '.join(settings)}"
        raise InputError(
            f"experiment: expected --methods and --settings with a cell to run; {experiment.name} has none{of} with "
            f"{', '.join(methods)}. Name other ones."
        )
    return cells


def unused_methods(asked: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """What is said of methods that were asked for by name and have nothing to do."""
    without = [method for method in asked if all(cell.method != method for cell in cells)]
    return [f"Without {', '.join(without)}: no cell of what was asked for has them at this scale."] if without else []


def _names(cell: Cell) -> tuple[str, str, str]:
    """Under which --settings a cell is."""
    return cell.part, cell.setting, f"{cell.part}/{cell.setting}"
