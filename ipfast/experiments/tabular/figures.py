"""Pictures of what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..cells import Records, by_seed
from ..figures import FAINT, INK, QUIET, RIGHT, WRONG, draw_differences, explain, name_rows, panels, save
from ..intervals import paired
from .defence import OF_THE_PAPER
from .problem import ORIGIN, SETTINGS, data_of

COLUMNS = 4
STAR = "* not a data set of the paper's section 7"


def draw(records: Records, methods: Sequence[str], folder: Path) -> Iterator[Path]:
    """Box plots of trimming, and differences from no defence by every curation."""
    trimmed = [setting for setting in SETTINGS if any(cell[:2] == ("trim", setting) for cell in records)]
    if trimmed:
        yield _boxes(records, trimmed, methods, folder / "figure-6.png")
    for ending, name in (("", "differences.png"), (ORIGIN, f"differences{ORIGIN}.png")):
        settings = [setting for setting in SETTINGS if (data_of(setting).name + ending) == setting]
        found = {cell.setting for cell in records if cell.part in OF_THE_PAPER}
        known = [setting for setting in settings if setting in found]
        if known:
            yield _differences(records, known, methods, folder / name)


def _title(setting: str) -> str:
    return setting if data_of(setting).paper else f"{setting} *"


def _boxes(records: Records, settings: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Figure 6: accuracy before and after the attack, and after each defence, over the attacks."""
    columns = min(COLUMNS, len(settings))
    rows = -(-len(settings) // columns)
    figure, axes = panels(columns, rows, width=3.3, height=3.6)
    for axis in axes[len(settings) :]:
        axis.set_visible(False)
    for axis, setting in zip(axes, settings, strict=False):
        attack = {name: by_seed(records, "attack", setting, "none", name) for name in ("pre", "post", "majority")}
        found = {"before": attack["pre"], "after": attack["post"]}
        found |= {method: by_seed(records, "trim", setting, method, "defence") for method in methods if method != "none"}
        found = {name: values for name, values in found.items() if values}
        for place, (name, values) in enumerate(found.items()):
            quiet = name in QUIET or name in ("before", "after")
            _box(axis, place, [100 * value for value in values.values()], FAINT if quiet else RIGHT)
        left, right = axis.get_xlim()
        for name, colour in (("post", INK), ("majority", WRONG)):
            value = 100 * sum(attack[name].values()) / max(1, len(attack[name]))
            if left < value < right:  # a commonest label that is far off would press the boxes together
                axis.axvline(value, color=colour, linewidth=1, linestyle=":" if name == "post" else "--", zorder=0)
        name_rows(axis, list(found))
        axis.set(title=_title(setting), xlabel="accuracy on the attacked test set, %")
    _note(figure, settings, "dotted: the mean without defence; dashed: always the commonest label, where it is in view")
    return save(figure, file)


def _box(axis: Axes, place: int, values: Sequence[float], colour: str) -> None:
    axis.boxplot(
        [values],
        positions=[place],
        orientation="horizontal",
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.6, "edgecolor": colour},
        medianprops={"color": INK},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        flierprops={"markersize": 3, "markeredgecolor": colour},
        manage_ticks=False,
    )


def _differences(records: Records, settings: Sequence[str], methods: Sequence[str], file: Path) -> Path:
    """Points of accuracy above no defence, a row a curation and a column a data set."""
    parts = [part for part in OF_THE_PAPER if any(cell.part == part for cell in records)]
    figure, axes = panels(len(settings), len(parts), width=3.3, height=2.9)
    places = iter(axes)
    for part in parts:
        for setting in settings:
            axis = next(places)
            control = by_seed(records, part, setting, "none", "defence")
            found = {}
            for method in methods:
                values = by_seed(records, part, setting, method, "defence")
                of = paired(values, control, 100)
                if of is not None and method != "none":
                    found[method] = of
            draw_differences(axis, found, "points above no defence")
            axis.set_title(f"{_title(setting)}: {part}")
    _note(figure, settings, "accuracy on the attacked test set, paired by attack, with the 95 % interval")
    return save(figure, file)


def _note(figure: Figure, settings: Sequence[str], text: str) -> None:
    """A line below the panels; what a star means, where there is one."""
    foreign = any(not data_of(setting).paper for setting in settings)
    explain(figure, f"{text}; {STAR}" if foreign else text)
