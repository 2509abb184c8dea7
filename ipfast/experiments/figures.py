"""What all figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..data.writers import written_whole
from .intervals import Difference

INK = "#1f2430"
FAINT = "#8a90a0"
RIGHT = "#4878b8"
WRONG = "#d9662b"
COLOURS = ("#4878b8", "#d9662b", "#4f9d69", "#8e6bbf", "#b8963e", "#c25b7a", "#5aa7b5", "#7d8494")
QUIET = ("none", "loss", "random")
"""Methods in grey: controls, and no method at all."""

STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def panels(columns: int, rows: int = 1, *, width: float = 3.4, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save(figure: Figure, file: Path) -> Path:
    """Write .png, which appears only when complete, and the same bytes for the same figure."""
    with written_whole(file) as beside, matplotlib.rc_context(STYLE):
        figure.savefig(beside, dpi=140, metadata={"Software": None})
    return file


def explain(figure: Figure, text: str) -> None:
    """A line below all panels: what their marks are."""
    figure.supxlabel(text, fontsize=8, color=FAINT)


def draw_differences(axes: Axes, differences: Mapping[str, Difference], label: str) -> None:
    """A dot and an interval a method, from top to bottom; the control is the line at zero."""
    axes.axvline(0, color=FAINT, linewidth=1)
    for place, (method, of) in enumerate(differences.items()):
        colour = FAINT if method in QUIET else RIGHT
        if of.low is not None and of.high is not None:
            axes.plot([of.low, of.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(of.mean, place, "o", color=colour, markersize=5)
    name_rows(axes, list(differences))
    axes.set_xlabel(label)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names at the left, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
