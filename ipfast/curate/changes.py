"""What each action changed, by class and by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from .inputs import class_numbers, kept_indices, mask_length, read_values, sample_weights, soft_labels
from .reports import Report, Row


def report(
    labels: Any = None,
    *,
    keep: Any = None,
    new_labels: Any = None,
    weights: Any = None,
    groups: Any = None,
    rows: int | None = None,
) -> Report:
    """What trim, relabel or reweight changes, by class and by group.

    Args:
        labels: [N] before, numbers or strings; None: nothing is told by class.
        keep, new_labels, weights: what `trim`, `relabel` or `reweight` gave; one of them. keep may also be a mask [N] of bool,
            true where a sample stays.
        groups: [N] of any other attribute, such as a sensitive one.
        rows: N, where keep holds indices and neither labels nor groups tell it.

    Raises:
        InputError, InputTypeError: not exactly one change was given, lengths differ, or one of them is no such numbers.

    >>> print(report(["a", "a", "b", "b"], keep=torch.tensor([1, 2, 3])))
    trim: 1 of 4 samples dropped (25.0 %)
    class     before              after            dropped
    a              2   50.0 %         1   33.3 %         1   50.0 %
    b              2   50.0 %         2   66.7 %         0    0.0 %
    """
    where = "report"
    changes = {"keep": keep, "new_labels": new_labels, "weights": weights}
    named = [name for name, value in changes.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"{where}: expected one of keep, new_labels and weights; got {' and '.join(named) or 'none'}.")
    labels, groups = read_values(where, "labels", labels), read_values(where, "groups", groups)
    if rows is not None and (isinstance(rows, bool) or not hasattr(rows, "__index__") or int(rows.__index__()) < 0):
        raise InputTypeError(f"{where}: expected rows to be how many samples there are, a whole number; got {rows!r}.")
    if rows is None:
        rows = _rows_of(where, {"labels": labels, "groups": groups, **changes})
    before = Before.read(where, rows, labels, groups)
    if keep is not None:
        return trimmed(where, before, keep)
    return reweighted(where, before, weights) if weights is not None else relabelled(where, before, new_labels)


@dataclass(frozen=True)
class Before:
    """The samples as they were.

    Attributes:
        rows: N.
        labels, groups: (number of each sample's class [N], the names of the classes); None where they were not given.
    """

    rows: int
    labels: tuple[Tensor, list[str]] | None
    groups: tuple[Tensor, list[str]] | None

    @classmethod
    def read(cls, where: str, rows: int, labels: Any, groups: Any) -> Before:
        """From numbers or strings [N] each, or paths of them."""
        return cls(
            rows,
            None if labels is None else class_numbers(where, "labels", labels, rows),
            None if groups is None else class_numbers(where, "groups", groups, rows),
        )


def trimmed(where: str, before: Before, keep: Any) -> Report:
    """After all but the kept samples, indices or a mask, are dropped."""
    mass = torch.zeros(before.rows, dtype=torch.float64).index_fill(0, kept_indices(where, keep, before.rows), 1)
    dropped = mass == 0
    classes, groups = _table(before.labels, mass, dropped), _table(before.groups, mass, dropped)
    return Report("trim", before.rows, int(dropped.sum()), classes, groups)


def reweighted(where: str, before: Before, weights: Any) -> Report:
    """After each sample has its weight [N]."""
    mass = sample_weights(where, weights)
    if len(mass) != before.rows:
        raise InputError(f"{where}: expected weights of the {before.rows} samples; got {len(mass)}.")
    below = mass < 1
    total, square = float(mass.sum()), float(mass.square().sum())
    about = {
        "smallest": float(mass.min()) if before.rows else 0.0,
        "largest": float(mass.max()) if before.rows else 0.0,
        "effective": total * total / square if square else 0.0,
    }
    classes, groups = _table(before.labels, mass, below), _table(before.groups, mass, below)
    return Report("reweight", before.rows, int(below.sum()), classes, groups, about)


def relabelled(where: str, before: Before, new_labels: Any) -> Report:
    """After each sample has its new label [N], or soft targets [N, K]."""
    if before.labels is None:
        raise InputError(f"{where}: expected labels, those before, beside new_labels; got None.")
    numbers, names = before.labels
    after, changed, every = _changed(where, new_labels, numbers, names, before.rows)
    place = {name: c for c, name in enumerate(names)}
    was = torch.bincount(numbers, minlength=len(names)).tolist()
    moved = torch.bincount(numbers[changed], minlength=len(names)).tolist()
    classes = tuple(
        Row(name, was[place[name]], mass, moved[place[name]]) if name in place else Row(name, 0, mass, 0)
        for name, mass in zip(every, after.tolist(), strict=True)
    )
    ones = torch.ones(before.rows, dtype=torch.float64)
    return Report("relabel", before.rows, int(changed.sum()), classes, _table(before.groups, ones, changed))


def _table(classes: tuple[Tensor, list[str]] | None, mass: Tensor, changed: Tensor) -> tuple[Row, ...]:
    """A row for each class, of which each sample weighs its `mass`."""
    if classes is None:
        return ()
    numbers, names = classes
    counts = torch.bincount(numbers, minlength=len(names)), torch.bincount(numbers[changed], minlength=len(names))
    masses = torch.bincount(numbers, weights=mass, minlength=len(names))
    columns = (each.tolist() for each in (counts[0], masses, counts[1]))
    return tuple(Row(*row) for row in zip(names, *columns, strict=True))


def _changed(where: str, new: Any, numbers: Tensor, names: list[str], rows: int) -> tuple[Tensor, Tensor, list[str]]:
    """(what each of K classes has after [K], which samples changed [N], the names of the classes), of hard labels, or of soft
    ones whose columns are 0..K−1.

    Args:
        numbers, names: the class of each sample before [N], and what the classes are called.
    """
    soft = soft_labels(where, new, rows)
    if soft is None:
        numbers_after, names_after = class_numbers(where, "new_labels", new, rows)
        every = sorted({*names, *names_after}, key=lambda name: (0, float(name), name) if _is_number(name) else (1, 0.0, name))
        place = {name: c for c, name in enumerate(every)}
        was, new_place = (
            torch.tensor([place[name] for name in of], dtype=torch.int64)[which]
            for of, which in ((names, numbers), (names_after, numbers_after))
        )
        return torch.bincount(new_place, minlength=len(every)).double(), was != new_place, every
    columns = list(map(str, range(soft.shape[1])))
    place = {name: c for c, name in enumerate(columns)}
    strange = next((name for name in names if name not in place), None)
    if strange is not None:
        raise InputError(
            f"{where}: expected labels in 0..{len(columns) - 1}, the columns of soft new_labels; got {strange!r}. Encode "
            "classes from 0 on."
        )
    was = torch.tensor([place[name] for name in names], dtype=torch.int64)[numbers]
    same = (soft.gather(1, was[:, None])[:, 0] == 1) & (soft.count_nonzero(dim=1) == 1)
    return soft.sum(dim=0), ~same, columns


def _rows_of(where: str, given: dict[str, Any]) -> int:
    """N, from whatever has an entry for each sample: of keep, a mask."""
    for name, values in given.items():
        if values is None:
            continue
        found = mask_length(where, values) if name == "keep" else _length(where, name, values)
        if found is not None:
            return found
    raise InputError(
        f"{where}: expected labels, groups or rows beside indices to keep, to know how many samples there were; got none."
    )


def _length(where: str, argument: str, values: Any) -> int:
    """How many samples they are of."""
    values = read_values(where, argument, values)
    if not hasattr(values, "__len__") or (hasattr(values, "shape") and not values.shape):
        raise InputTypeError(
            f"{where}: expected {argument} to be an array, one entry for each sample; got {type(values).__name__}."
        )
    return len(values)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
