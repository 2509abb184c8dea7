"""Cells and tables: methods against Eq. (1) and against real leaving out, and the order of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.stats import kendalltau, pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from ..base import Experiment, Surroundings
from ..cells import Cell, Records, by_seed
from ..intervals import spread
from ..tables import difference_table, spread_table, spread_text, table
from . import figures, models, objectives, toy_run, toys
from .objectives import OBJECTIVES
from .order import ANGLES, DIMENSIONS, DRAWS, PAPER, REGIONS, simulate
from .toy_run import ToyRun
from .toys import BLOBS, MOONS, TOYS

LEFT_OUT = {"small": 32, "paper": None}
"""Samples of the moons without which the network is trained again, one at a time; None: all."""
ONE_SIGN = ("self_tracin", "self_lissa", "loss", "random")
"""Methods all of whose scores have the same sign, whatever a sample does."""
DRAWN = (BLOBS, MOONS)
FIGURE_SEED = 0


class Synthetic(Experiment):
    """Figures 2, 3 and 8 and Table 3 of arXiv 2405.17490."""

    name = "synthetic"
    methods = (
        *("oracle", "leave_one_out", "exact", "ip", "ip_ensemble", "lissa", "datainf", "ekfac", "self_tracin", "self_lissa"),
        *("loss", "random"),
    )
    seeds: ClassVar[dict[str, tuple[int, ...]]] = {"small": (0, 1, 2), "paper": (0, 1, 2, 3, 4)}
    trains_networks = False

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._runs: dict[tuple[str, int], ToyRun] = {}

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "scale": self.surroundings.scale,
            "blobs": {"train": toys.TRAIN[BLOBS], "flipped": toys.FLIPPED[BLOBS], "centres": toys.CENTRES},
            "moons": {"train": toys.TRAIN[MOONS], "flipped": toys.FLIPPED[MOONS], "noise": toys.MOONS_NOISE},
            "test": toys.TEST,
            "penalty": models.PENALTY,
            "network": {"hidden": models.HIDDEN, "rate": models.RATE, "decay": models.DECAY, "steps": models.STEPS},
            "left out of the moons": LEFT_OUT[self.surroundings.scale],
            "leave seed": toy_run.LEAVE_SEED,
            "gamma": objectives.GAMMA,
            "order": {"angles": ANGLES, "dimensions": DIMENSIONS, "draws": DRAWS},
        }

    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        if "ip" in methods:
            for seed in seeds:
                yield from (Cell("order", f"{angle}°", "ip", seed) for angle in ANGLES)
        for seed in seeds:
            for toy in TOYS:
                for objective in OBJECTIVES:
                    # Self-influence is the same for every objective; so are the controls, which are there all the same.
                    known = (m for m in methods if objective == "utility" or not m.startswith("self_"))
                    yield from (Cell(objective, toy, method, seed) for method in known)

    def check(self, cells: Sequence[Cell]) -> None:
        """There are no files to look for."""

    def run(self, cell: Cell) -> dict[str, Any]:
        if cell.part == "order":
            return simulate(float(cell.setting.rstrip("°")), cell.seed)
        run = self.toy_run(cell.setting, cell.seed)
        scores = run.scores(cell.method, cell.part, cell.seed)
        influence, left_out, wrong = run.influence(cell.part), run.left_out[cell.part], run.toy.wrong
        known = np.isfinite(left_out)
        if cell.method == "leave_one_out":
            scores, influence, wrong = scores[known], influence[known], wrong[known]
        lowest = np.argsort(scores, kind="stable")[: int(wrong.sum())]
        values: dict[str, Any] = {}
        if wrong.any():  # of those that were left out there may be none
            values |= {"AUC": float(roc_auc_score(wrong, -scores)), "found": float(wrong[lowest].mean())}
            if cell.method not in ONE_SIGN:
                values["negative"] = float((scores[wrong] < 0).mean())
        if cell.method != "oracle":
            values |= {"spearman": float(spearmanr(scores, influence)[0]), "pearson": float(pearsonr(scores, influence)[0])}
        found = run.again[cell.part][known] if cell.method == "leave_one_out" else scores[known]
        values["spearman, left out"] = float(spearmanr(found, left_out[known])[0])
        values["pearson, left out"] = float(pearsonr(found, left_out[known])[0])
        if cell.method == "ip":
            v, h = run.directions(cell.part)
            angle = float(np.degrees(np.arccos(float(v @ h / (v.norm() * h.norm())))))
            # Kendall's τ is one minus twice the share of discordant pairs.
            values |= {"angle": angle, "discordant": (1 - float(kendalltau(scores, influence)[0])) / 2}
        return values

    def toy_run(self, toy: str, seed: int) -> ToyRun:
        """The trained toy, once a run."""
        if (toy, seed) not in self._runs:
            here = self.surroundings
            self._runs[toy, seed] = ToyRun(self._toy_file(toy, seed), toy, seed, LEFT_OUT[here.scale], here.progress)
        return self._runs[toy, seed]

    def _toy_file(self, toy: str, seed: int) -> Path:
        return self.surroundings.folder / "toys" / f"{toy}-{seed}.npz"

    def tables(self, records: Records) -> Iterator[str]:
        yield "# synthetic: influence, inner products, and leaving out"
        yield " ".join(self._preface(records))
        for objective in OBJECTIVES:
            if not any(cell.part == objective for cell in records):
                continue
            yield f"## {objective}"
            for name, text in (
                ("spearman", "Spearman correlation with Eq. (1)"),
                ("pearson", "Pearson correlation with Eq. (1)"),
                ("spearman, left out", "Spearman correlation with real leaving out"),
                ("pearson, left out", "Pearson correlation with real leaving out"),
                ("AUC", "AUC: the chance that a flipped label scores below a right one"),
                ("found", "Share of flipped labels among as many lowest scores as there are flipped labels"),
                ("negative", "Share of the flipped labels with a negative score, of methods with scores of both signs"),
            ):
                yield f"{text}:\n\n" + spread_table(records, objective, TOYS, self.methods, name, digits=3)
            yield "AUC, difference from `ip` with its 95 % interval over seeds:\n\n" + difference_table(
                records, objective, TOYS, self.methods, "AUC", "ip", digits=3
            )
        if not any(cell.part == "order" for cell in records):
            yield "## Angles"
            yield "Of isotropic gradients a share φ/180° of the pairs is discordant; of the toys' gradients, which are not:"
            yield self._toy_table(records)
            return
        yield "## Order (Table 3)"
        yield (
            "Share of pairs that keep their order, of unit gradients drawn evenly from two regions, where H⁻¹v lies at angle φ "
            "from v; in brackets the share that is discordant although one of the two is not jointly recognised."
        )
        yield table(["regions", "the paper", *(f"φ = {angle}°" for angle in ANGLES)], self._order_rows(records))
        yield (
            "Of isotropic gradients a share φ/180° of the pairs is discordant, in any dimension; of the toys' gradients, which "
            "are not isotropic:"
        )
        yield table(["", *(f"φ = {angle}°" for angle in ANGLES)], self._isotropic_rows(records))
        yield self._toy_table(records)

    def _preface(self, records: Records) -> Iterator[str]:
        """What the methods and data of the tables are."""
        left, methods = LEFT_OUT[self.surroundings.scale], {cell.method for cell in records}
        yield "Mean ± standard deviation over seeds, each of which makes its own data, flips and model."
        yield "Eq. (1) is influence with the whole Hessian" + (", `oracle`." if "oracle" in methods else ".")
        if "leave_one_out" in methods:
            yield (
                "`leave_one_out` is the change of the objective when the model is trained again without the sample (at the "
                f"moons for {'all' if left is None else left} samples, drawn at random). Compared with leaving out, it is "
                "another training without the sample, which differs by rounding alone: how far leaving out agrees with itself."
            )
        yield "Low scores are detrimental."
        if MOONS in {cell.setting for cell in records} and "lissa" in methods:
            yield (
                "The moons' network is not at an optimum, and `lissa` has not converged there after 1,000 steps; `self_lissa` "
                "is the limit."
            )

    def _order_rows(self, records: Records) -> Iterator[list[str]]:
        for (one, other), claim in PAPER.items():
            name = f"{one}, {other}"
            row = [name, claim]
            for angle in ANGLES:
                kept, missed = (
                    by_seed(records, "order", f"{angle}°", "ip", each).values() for each in (name, f"{name} missed")
                )
                row.append(f"{spread_text(spread(kept), digits=3)} ({spread_text(spread(missed), digits=3)})" if kept else "")
            yield row

    def _isotropic_rows(self, records: Records) -> Iterator[list[str]]:
        names = ["expected", *(f"{what} in {d}" for what in ("discordant", "signs differ") for d in DIMENSIONS)]
        for name in names:
            found = (by_seed(records, "order", f"{angle}°", "ip", name).values() for angle in ANGLES)
            yield [f"{name} dimensions" if " in " in name else name, *(spread_text(spread(each), digits=4) for each in found)]

    def _toy_table(self, records: Records) -> str:
        return table(["toys: objective, data", "φ", "φ/180°", "discordant"], self._toy_rows(records))

    def _toy_rows(self, records: Records) -> Iterator[list[str]]:
        for objective in OBJECTIVES:
            for toy in TOYS:
                angle, found = (by_seed(records, objective, toy, "ip", name) for name in ("angle", "discordant"))
                expected = {seed: each / 180 for seed, each in angle.items()}
                texts = [spread_text(spread(angle.values()), digits=1)]
                texts += [spread_text(spread(each.values()), digits=3) for each in (expected, found)]
                yield [f"{objective}, {toy}", *texts]

    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        have = {cell[:2] for cell in records if cell.seed == FIGURE_SEED and cell.method == "ip"}
        kept = all(self._toy_file(toy, FIGURE_SEED).exists() for toy in DRAWN)  # else they would have to be trained again
        if kept and {("utility", toy) for toy in DRAWN} <= have:
            runs = {toy: self.toy_run(toy, FIGURE_SEED) for toy in DRAWN}
            yield figures.draw_scores(runs, folder / "figure-2.png")
            yield figures.draw_directions(runs[BLOBS], folder / "figure-3.png")
        if kept and {(objective, toy) for toy in DRAWN for objective in OBJECTIVES} <= have:
            yield figures.draw_objectives({toy: self.toy_run(toy, FIGURE_SEED) for toy in DRAWN}, folder / "figure-8.png")
        if ("order", f"{ANGLES[0]}°") in have:
            yield figures.draw_order(records, REGIONS, ANGLES, folder / "table-3.png")
