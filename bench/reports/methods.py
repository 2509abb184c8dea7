"""The figures of `python -m bench methods`: a table, the seconds of each stage, and a bar chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cases import methods
from ..record import Row
from ..tables import number, text
from . import plain


def terminal(rows: Sequence[Row], stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Every contender, the bounds, and where the time of one run of each method went."""
    sizes = rows[0].sizes
    table = plain.terminal(
        rows,
        title=f"C={sizes['classes']}, d={sizes['width']}, N={sizes['rows']:,}, M={sizes['val']:,}",
        base=methods.IP,
        bounds=methods.bounds({row.contender: row for row in rows}),
    )
    header = ["", "query ms", "curvature ms", "scores ms", "operations"]
    lines = []
    for name, stats in stages.items():
        curvature = 1e3 * stats.get("curvature_seconds", 0.0)
        query = max(1e3 * stats.get("query_seconds", 0.0) - curvature, 0.0)
        lines.append([name, number(query), number(curvature), number(1e3 * stats["score_seconds"]), methods.COMPLEXITY[name]])
    return f"{table}\n\nOne run of each, by stage:\n{text(header, lines)}"


def chart(rows: Sequence[Row], path: Path) -> None:
    """Seconds on a logarithmic scale: ipfast's methods, and the loops over stored gradients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.contender not in (methods.BARE,)]
    shown.sort(key=lambda row: row.seconds.p50)
    loops = set(methods.LOOPS.values())
    colours = [
        "#b0b0b0" if row.contender == methods.FEATURES else "#d97706" if row.contender in loops else "#2563eb" for row in shown
    ]
    figure, axes = pyplot.subplots(figsize=(7, 0.36 * len(shown) + 1.2))
    axes.barh([row.contender for row in shown], [row.seconds.p50 for row in shown], color=colours)
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds, N = {shown[0].sizes['rows']:,}, d = {shown[0].sizes['width']}, C = {shown[0].sizes['classes']}")
    for place, row in enumerate(shown):
        axes.text(row.seconds.p50 * 1.1, place, f"{row.seconds.p50:.3g} s", va="center", fontsize=8)
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
