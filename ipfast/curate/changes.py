"""Report: what curation changed, by class and by group."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.writers import check_output, written_whole
from ..errors import InputError, InputTypeError
from .inputs import class_numbers, kept_indices, read_values, sample_weights, soft_labels

DONE = {"trim": "dropped", "relabel": "relabelled", "reweight": "effective"}
"""What the last column of a report counts."""


@dataclass(frozen=True)
class Row:
    """One class, or one group.

    Attributes:
        name: its value.
        before, after: how many samples it has; after weights the sum of those, after soft labels that of the targets.
        changed: how many of those before are dropped or relabelled.
    """

    name: str
    before: int
    after: float
    changed: int


@dataclass(frozen=True)
class Report:
    """What changed. `print` shows it as a table, `save` writes it as JSON.

    Attributes:
        action: "trim", "relabel" or "reweight".
        samples: N.
        changed: how many are dropped or relabelled; of weights how many are below 1.
        classes, groups: a row each; empty where labels, or groups, were not given.
        weights: of reweight the smallest and the largest weight, and the effective number of samples (Σw)²/Σw².
    """

    action: str
    samples: int
    changed: int
    classes: tuple[Row, ...] = ()
    groups: tuple[Row, ...] = ()
    weights: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .json file, which appears only when it is complete."""
        file = check_output("Report.save", "path", path, (".json",))
        with written_whole(file) as beside:
            beside.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        share = f" ({100 * self.changed / self.samples:.1f} %)" if self.samples else ""
        if self.weights is None:
            lines = [f"{self.action}: {self.changed} of {self.samples} samples {DONE[self.action]}{share}"]
        else:
            low, high, effective = (self.weights[name] for name in ("smallest", "largest", "effective"))
            lines = [
                f"reweight: {self.samples} samples, weights {low:.3g} to {high:.3g}, {self.changed} below 1{share}, as many as "
                f"{effective:.0f} of equal weight"
            ]
        for kind, rows in (("class", self.classes), ("group", self.groups)):
            lines += _table(kind, rows, self)
        return "\n".join(lines)


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
        rows: N, where neither labels nor groups nor anything else of N samples tells it.

    Raises:
        InputError, InputTypeError: not exactly one change was given, lengths differ, or one of them is no such numbers.

    >>> print(report(["a", "a", "b", "b"], keep=torch.tensor([1, 2, 3])))
    trim: 1 of 4 samples dropped (25.0 %)
    class     before               after             dropped
    a              2   50.0 %          1   33.3 %          1   50.0 %
    b              2   50.0 %          2   66.7 %          0    0.0 %
    """
    return changes("report", labels, keep=keep, new_labels=new_labels, weights=weights, groups=groups, rows=rows)


def changes(
    where: str,
    labels: Any = None,
    *,
    keep: Any = None,
    new_labels: Any = None,
    weights: Any = None,
    groups: Any = None,
    rows: int | None = None,
) -> Report:
    """`report`, for whoever asks for it."""
    given = {"keep": keep, "new_labels": new_labels, "weights": weights}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"{where}: expected one of keep, new_labels and weights; got {' and '.join(named) or 'none'}.")
    labels, groups = read_values(where, "labels", labels), read_values(where, "groups", groups)
    if rows is None:
        about = {"labels": labels, "groups": groups, **({} if keep is not None else {named[0]: given[named[0]]})}
        rows = next((_length(where, name, value) for name, value in about.items() if value is not None), None)
    if rows is None:
        raise InputError(
            f"{where}: expected labels, groups or rows beside keep, to know how many samples there were; got none."
        )
    before, names = class_numbers(where, "labels", labels, rows) if labels is not None else (None, [])
    group, group_names = class_numbers(where, "groups", groups, rows) if groups is not None else (None, [])
    ones = torch.ones(rows, dtype=torch.float64)
    if keep is not None:
        mass = torch.zeros(rows, dtype=torch.float64).index_fill(0, kept_indices(where, keep, rows), 1)
        changed = mass == 0
        classes = _rows(names, before, mass, changed)
        return Report("trim", rows, int(changed.sum()), classes, _rows(group_names, group, mass, changed))
    if weights is not None:
        mass = sample_weights(where, weights)
        if len(mass) != rows:
            raise InputError(f"{where}: expected weights of the {rows} samples; got {len(mass)}.")
        below = mass < 1
        total, square = float(mass.sum()), float(mass.square().sum())
        about = {
            "smallest": float(mass.min()) if rows else 0.0,
            "largest": float(mass.max()) if rows else 0.0,
            "effective": total * total / square if square else 0.0,
        }
        each = _rows(names, before, mass, below), _rows(group_names, group, mass, below)
        return Report("reweight", rows, int(below.sum()), *each, about)
    if labels is None or before is None:
        raise InputError(f"{where}: expected labels, those before, beside new_labels; got None.")
    after, targets_names = _targets(where, new_labels, names, rows)
    numbers = torch.tensor([targets_names.index(name) for name in names], dtype=torch.int64)[before]
    was = torch.nn.functional.one_hot(numbers, len(targets_names)).to(after)
    changed = (after != was).any(dim=1)
    every = tuple(
        Row(name, int(was[:, c].sum()), float(after[:, c].sum()), int((changed & (numbers == c)).sum()))
        for c, name in enumerate(targets_names)
    )
    return Report("relabel", rows, int(changed.sum()), every, _rows(group_names, group, ones, changed))


def _rows(names: list[str], numbers: Tensor | None, mass: Tensor, changed: Tensor) -> tuple[Row, ...]:
    if numbers is None:
        return ()
    members = [numbers == number for number in range(len(names))]
    return tuple(
        Row(name, int(each.sum()), float(mass[each].sum()), int((each & changed).sum()))
        for name, each in zip(names, members, strict=True)
    )


def _targets(where: str, new: Any, names: list[str], rows: int) -> tuple[Tensor, list[str]]:
    """(targets [N, K] of labels after, the names of the K classes), of hard labels or of soft ones whose columns are 0..K−1."""
    soft = soft_labels(where, new, rows)
    if soft is not None:
        columns = list(map(str, range(soft.shape[1])))
        strange = next((name for name in names if name not in columns), None)
        if strange is not None:
            raise InputError(
                f"{where}: expected labels in 0..{len(columns) - 1}, the columns of soft new_labels; got {strange!r}. Encode "
                "classes from 0 on."
            )
        return soft, columns
    numbers, after = class_numbers(where, "new_labels", new, rows)
    every = sorted({*names, *after}, key=lambda name: (0, float(name), name) if _is_number(name) else (1, 0.0, name))
    place = torch.tensor([every.index(name) for name in after], dtype=torch.int64)
    return torch.nn.functional.one_hot(place[numbers], len(every)).double(), every


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


def _table(kind: str, rows: tuple[Row, ...], about: Report) -> list[str]:
    if not rows:
        return []
    width = max(8, *(len(row.name) for row in rows))
    before, after = sum(row.before for row in rows) or 1, sum(row.after for row in rows) or 1
    last = "below 1" if about.weights is not None else DONE[about.action]
    lines = [f"{kind:<{width}}  {'before':>6}               {'after':>5}             {last}"]
    for row in rows:
        kept = f"{row.after:.0f}" if row.after == int(row.after) else f"{row.after:.1f}"
        lines.append(
            f"{row.name:<{width}}  {row.before:>6}   {_percent(row.before, before)}   {kept:>8}   {_percent(row.after, after)}"
            f"   {row.changed:>8}   {_percent(row.changed, row.before or 1)}"
        )
    return lines


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:>4.1f} %"
