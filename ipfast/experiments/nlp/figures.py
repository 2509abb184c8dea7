"""Pictures of what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..cells import Records, by_seed
from ..checkpoints import BASE_SEED
from ..figures import COLOURS, FAINT, INK, QUIET, draw_differences, explain, panels, save
from ..intervals import paired, spread
from .problem import SETTINGS

MARKS = "osD^vPXp"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
REGIONS = (
    # (place in the panel, how the text lies there, what it says)
    ((0.02, 0.98), ("left", "top"), "fairer, more accurate"),
    ((0.98, 0.98), ("right", "top"), "less fair, more accurate"),
    ((0.02, 0.02), ("left", "bottom"), "fairer, less accurate"),
    ((0.98, 0.02), ("right", "bottom"), "less fair, less accurate"),
)


def draw(records: Records, methods: Sequence[str], folder: Path) -> Iterator[Path]:
    """Figure 5, and differences with their intervals, of each task with any cells."""
    settings = [setting for setting in SETTINGS if by_seed(records, "removal", setting, "none", "accuracy")]
    if settings:
        yield _regions(records, settings, methods, folder / "figure5.png")
        yield _differences(records, settings, methods, folder / "removal.png")


def _regions(records: Records, settings: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Accuracy against fair score, in four regions around training on all texts."""
    figure, axes = panels(len(settings), width=3.4, height=3.6)
    others = [method for method in methods if method not in QUIET]
    drawn: dict[str, Line2D] = {}
    for axis, setting in zip(axes, settings, strict=True):
        for method in methods:
            of = [
                spread(100 * value for value in by_seed(records, "removal", setting, method, name).values())
                for name in ("fair score", "accuracy")
            ]
            if of[0] is None or of[1] is None:
                continue
            (x, y), (wide, high) = (each.mean for each in of if each), (each.deviation or 0 for each in of if each)
            if method == "none":
                axis.axvline(x, color=FAINT, linewidth=0.8, zorder=0)
                axis.axhline(y, color=FAINT, linewidth=0.8, zorder=0)
            kind = QUIET if method in QUIET else others
            place = kind.index(method)
            colour, mark = FAINT if kind is QUIET else COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)]
            axis.errorbar(x, y, yerr=high, xerr=wide, color=colour, linewidth=0.7, alpha=0.5)
            drawn[method] = axis.plot(x, y, mark, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.5)[0]
        base = [by_seed(records, "base", setting, "none", name).get(BASE_SEED) for name in ("fair score", "accuracy")]
        if base[0] is not None and base[1] is not None:
            drawn["scored model"] = axis.plot(
                100 * base[0], 100 * base[1], "*", color="none", markeredgecolor=INK, markersize=8
            )[0]
        _name_regions(axis)
        axis.set(title=setting, xlabel="fair score in %, lower is fairer", ylabel="accuracy in %")
    columns = min(len(drawn), 2 * len(settings), 5)
    names = {"title": "lines: ± the deviation over seeds", "title_fontsize": 8, "fontsize": 8}
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=columns, **names)
    return save(figure, file)


def _name_regions(axis: Axes) -> None:
    axis.margins(0.25)
    for (x, y), (across, along), text in REGIONS:
        axis.text(x, y, text, transform=axis.transAxes, ha=across, va=along, fontsize=6.5, color=FAINT, bbox=PAPER)


def _differences(records: Records, settings: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Above: points of accuracy, below: points of the fair score, from training on all texts, paired by seed."""
    figure, axes = panels(len(settings), 2, width=3.2, height=2.5)
    rows = (("accuracy", "points of accuracy above none"), ("fair score", "points of fair score above none\n(less is fairer)"))
    for row, (name, label) in enumerate(rows):
        for axis, setting in zip(axes[row * len(settings) :], settings, strict=False):
            control = by_seed(records, "removal", setting, "none", name)
            found = {}
            for method in methods:
                values = by_seed(records, "removal", setting, method, name)
                of = paired(values, control, 100)
                if of is not None and method != "none":
                    found[method] = of
            draw_differences(axis, found, label)
            axis.set_title(setting)
    explain(figure, "lines: 95 % intervals over seeds, paired")
    return save(figure, file)
