"""Pictures of what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..cells import Records, by_seed
from ..figures import FAINT, INK, QUIET, RIGHT, draw_differences, explain, name_rows, panels, save
from ..intervals import paired, spread
from .problem import LEVELS


def draw(records: Records, methods: Sequence[str], folder: Path) -> Iterator[Path]:
    """A figure of each part that has any cells."""
    for part, figure, control in (("detection", _detection, None), ("removal", _removal, "random")):
        known = {cell.setting for cell in records if cell.part == part and control in (None, cell.method)}
        levels = [level for level in LEVELS if level in known]
        if levels:
            yield figure(records, levels, methods, folder / f"{part}.png")


def _detection(records: Records, levels: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Wrong labels among the lowest 5 %, a panel a level, with intervals (of methods with chance the deviation over seeds) and
    the rate among all."""
    known = [method for method in methods if any(cell.part == "detection" and cell.method == method for cell in records)]
    figure, axes = panels(len(levels), width=3.2, height=max(1.8, 0.9 + 0.26 * len(known)))
    for axis, level in zip(axes, levels, strict=True):
        rate = None
        for place, method in enumerate(known):
            of_method = [record.values for record in records.alike("detection", level, method)]
            if not of_method:
                axis.text(1, place, "not run", fontsize=6.5, color=FAINT, va="center")
                continue
            rate = of_method[0]["base rate"]
            found = spread(100 * values["precision 0.05"] for values in of_method)
            assert found is not None
            axis.barh(place, found.mean, color=FAINT if method in QUIET else RIGHT, alpha=0.7)
            if found.deviation is None:
                low, high = (100 * bound for bound in of_method[0]["interval 0.05"])
            else:
                low, high = found.mean - found.deviation, found.mean + found.deviation
            axis.plot([low, high], [place, place], color=INK, linewidth=1)
        if rate is not None:
            axis.axvline(100 * rate, color=INK, linewidth=1, linestyle=":")
        name_rows(axis, known)
        axis.set(title=level, xlabel="wrong among the lowest 5 %, in %", xlim=(0, 100))
    explain(
        figure, "dotted: among all labels; lines: 95 % bootstrap intervals, of methods with chance ± the deviation over seeds"
    )
    return save(figure, file)


def _removal(records: Records, levels: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Points of accuracy above the random control, paired by seed."""
    figure, axes = panels(len(levels), width=3.2, height=2.6)
    for axis, level in zip(axes, levels, strict=True):
        control = by_seed(records, "removal", level, "random", "last")
        found = {}
        for method in methods:
            values = by_seed(records, "removal", level, method, "last")
            of = paired(values, control, 100)
            if of is not None and method != "random":
                found[method] = of
        draw_differences(axis, found, "points of accuracy above random")
        axis.set_title(level)
    explain(figure, "lines: 95 % intervals over seeds, paired")
    return save(figure, file)
