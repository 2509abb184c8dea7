"""Figures 2, 3 and 8, and Table 3 as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from ..cells import Records, by_seed
from ..figures import FAINT, INK, RIGHT, WRONG, panels, save
from .toy_run import ToyRun


def draw_scores(runs: Mapping[str, ToyRun], file: Path) -> Path:
    """A row a toy: the data, the inner product against influence, and both against real leaving out."""
    figure, axes = panels(4, len(runs))
    for row, (name, run) in enumerate(runs.items()):
        data, against, *others = axes[4 * row : 4 * row + 4]
        _draw_data(data, run)
        data.set_title(f"{name}, {int(run.toy.wrong.sum())} flipped labels")
        product, influence = run.scores("ip", "utility", 0), run.influence("utility")
        _scatter(against, run, influence, product, "influence, Eq. (1)", "inner product, Eq. (2)")
        for axis, scores, label in zip(others, (influence, product), ("influence", "inner product"), strict=True):
            _scatter(axis, run, run.left_out["utility"], scores, "change of validation loss without it", label)
    return save(figure, file)


def draw_objectives(runs: Mapping[str, ToyRun], file: Path) -> Path:
    """Fairness and robustness: the inner product against influence, for each toy."""
    figure, axes = panels(2, len(runs))
    places = iter(axes)
    for name, run in runs.items():
        for objective in ("fairness", "robustness"):
            axis = next(places)
            scores = run.scores("ip", objective, 0)
            _scatter(axis, run, run.influence(objective), scores, "influence", f"{name}: inner product, {objective}")
    return save(figure, file)


def draw_directions(run: ToyRun, file: Path) -> Path:
    """Gradients of the blobs in the plane of v_I and v_H, with the regions of Table 3."""
    v, h = (direction.numpy() for direction in run.directions("utility"))
    across = h - v * (h @ v) / (v @ v)
    plane = np.stack([v / np.linalg.norm(v), across / np.linalg.norm(across)])
    points = run.solved.gradients.numpy() @ plane.T
    phi = np.arctan2(*(plane @ h)[::-1])
    figure, (axis,) = panels(1, width=5.0, height=5.0)
    reach = 1.05 * np.abs(points).max()
    for angle, name in ((0, "v_I"), (phi, "v_H")):
        step = reach * np.array([np.cos(angle), np.sin(angle)])
        axis.plot(*np.stack([-step, step]).T, color=FAINT, linewidth=1, zorder=0)
        axis.annotate("", step, (0, 0), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.5})
        axis.annotate(f"${name}$", step, xytext=(4, 2), textcoords="offset points")
    for name, angle in (("III", phi / 2), ("II", (phi + np.pi) / 2), ("I", np.pi + phi / 2), ("IV", 1.5 * np.pi + phi / 2)):
        axis.text(0.9 * reach * np.cos(angle), 0.9 * reach * np.sin(angle), name, color=FAINT, ha="center", va="center")
    _points(axis, run, points[:, 0], points[:, 1])
    axis.set(
        xlabel="gradient along $v_I$", ylabel="gradient across", title=f"blobs, φ = {np.degrees(phi):.0f}°", aspect="equal"
    )
    axis.set(xlim=(-1.15 * reach, 1.15 * reach), ylim=(-1.15 * reach, 1.15 * reach))
    return save(figure, file)


def draw_order(records: Records, regions: Sequence[str], angles: Sequence[int], file: Path) -> Path:
    """Share of pairs that keep their order, region by region."""
    figure, axes = panels(len(angles), width=2.8, height=2.9)
    for axis, angle in zip(axes, angles, strict=True):
        shares = np.full((len(regions), len(regions)), np.nan)
        for row, one in enumerate(regions):
            for column, other in enumerate(regions[row:], start=row):
                found = by_seed(records, "order", f"{angle}°", "ip", f"{one}, {other}").values()
                if found:
                    shares[row, column] = shares[column, row] = np.mean(list(found))
        axis.imshow(shares, vmin=0, vmax=1, cmap="RdYlBu", alpha=0.8)
        for row, column in np.ndindex(shares.shape):
            axis.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center")
        axis.set_xticks(range(len(regions)), regions)
        axis.set_yticks(range(len(regions)), regions)
        axis.set_title(f"pairs in order, φ = {angle}°")
    return save(figure, file)


def _draw_data(axis: Axes, run: ToyRun) -> None:
    x, y, wrong = run.toy.x.numpy(), run.toy.y.numpy(), run.toy.wrong
    for label, marker in ((0, "o"), (1, "s")):
        for flipped, colour in ((False, RIGHT), (True, WRONG)):
            rows = (y == label) & (wrong == flipped)
            text = f"label {label}, {'flipped' if flipped else 'right'}"
            axis.scatter(x[rows, 0], x[rows, 1], s=14, marker=marker, c=colour, alpha=0.7, linewidths=0, label=text)
    axis.legend(fontsize=6.5, loc="best", handletextpad=0.2, frameon=False)
    axis.set(xlabel="$x_1$", ylabel="$x_2$")


def _scatter(axis: Axes, run: ToyRun, x: np.ndarray, y: np.ndarray, x_label: str, y_label: str) -> None:
    axis.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    axis.axvline(0, color=FAINT, linewidth=0.6, zorder=0)
    known = np.isfinite(x)  # not left out otherwise
    _points(axis, run, x, y)
    axis.ticklabel_format(style="sci", scilimits=(-3, 4))
    axis.set(xlabel=x_label, ylabel=y_label, title=_agreement(x[known], y[known], len(x)))


def _agreement(x: np.ndarray, y: np.ndarray, every: int) -> str:
    text = f"Spearman {spearmanr(x, y)[0]:.2f}".replace("-", "−")
    return text if len(x) == every else f"{text}, {len(x)} samples"


def _points(axis: Axes, run: ToyRun, x: np.ndarray, y: np.ndarray) -> None:
    for flipped, colour, label in ((False, RIGHT, "right label"), (True, WRONG, "flipped label")):
        rows = run.toy.wrong == flipped
        axis.scatter(x[rows], y[rows], s=14, c=colour, alpha=0.7, linewidths=0, label=label)
    axis.legend(fontsize=7, loc="best", handletextpad=0.2, frameon=False)
