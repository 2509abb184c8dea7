"""Report: what curation changed, as a table and as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from ..data.writers import check_output, written_whole

SHOWN = 20
"""Rows of a printed table; of more the ones that changed most are shown."""
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


def _table(kind: str, rows: tuple[Row, ...], about: Report) -> list[str]:
    if not rows:
        return []
    width = max(8, *(len(row.name) for row in rows))
    before, after = sum(row.before for row in rows) or 1, sum(row.after for row in rows) or 1
    last = "below 1" if about.weights is not None else DONE[about.action]
    lines = [f"{kind:<{width}}  {'before':>6}  {'':>7}  {'after':>8}  {'':>7}  {last:>8}"]
    shown = rows if len(rows) <= SHOWN else sorted(rows, key=lambda row: -row.changed)[:SHOWN]
    for row in shown:
        kept = f"{row.after:.0f}" if row.after == int(row.after) else f"{row.after:.1f}"
        lines.append(
            f"{row.name:<{width}}  {row.before:>6}  {_percent(row.before, before)}  {kept:>8}  {_percent(row.after, after)}"
            f"  {row.changed:>8}  {_percent(row.changed, row.before or 1)}"
        )
    if len(shown) < len(rows):
        plural = {"class": "classes"}.get(kind, f"{kind}s")
        lines.append(f"… and {len(rows) - SHOWN:,} {plural} of which fewer changed; the report as JSON has all")
    return lines


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:>5.1f} %"
