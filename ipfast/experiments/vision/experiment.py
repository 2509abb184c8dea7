"""Cells: base models, noise detection, removal and training again, rates of removal, sizes and rates of the ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import ipfast

from ...data.cifar import CIFAR10, missing_files
from ..base import Experiment, Surroundings
from ..cells import Cell, Records
from ..chosen import WITH_CHANCE, seed_of_scores
from . import base_model as base_models
from . import problem as problems
from . import scoring
from .base_model import BaseModel, base_model
from .detection import detect
from .figures import draw
from .problem import LEVELS, Problem, layout_of, read_problem
from .report import report
from .training import PAPER, SMALL, Recipe, accuracy, train_network

REMOVED = 0.05
RATES = (0.025, 0.075, 0.1)
"""Of Table 4, beside REMOVED, whose cells are those of the part "removal"."""
RATES_LEVEL = "aggregate"
RATES_METHODS = ("ip_ensemble", "random")
SIZES = (1, 5, 10, 15, 20)
DROPPED = (0.01, 0.1, 0.5)
"""Of Table 5: sizes at rate 0.01, rates at size 5."""
RETRAINED = ("none", "ip", "ip_ensemble", "self_tracin", "datainf", "ekfac", "loss", "random")
"""Methods whose removal is followed by training again at the scale "small"; at "paper" all are."""
RECIPES = {"small": SMALL, "paper": PAPER}


def ensemble_settings() -> list[tuple[int, float]]:
    """(size, rate) of Table 5."""
    return [*((size, DROPPED[0]) for size in SIZES), *((5, rate) for rate in DROPPED[1:])]


class Vision(Experiment):
    """Tables 1, 4 and 5 of arXiv 2405.17490, and what scores find."""

    name = "vision"
    methods = (
        *("none", "ip", "ip_ensemble", "tracin", "gex", "lissa", "datainf", "ekfac", "tda", "self_tracin", "self_lissa"),
        *("ip:all", "self_tracin:all", "loss", "random"),
    )
    seeds: ClassVar[dict[str, tuple[int, ...]]] = {"small": (0, 1, 2), "paper": (0, 1, 2, 3, 4)}

    def __init__(self, surroundings: Surroundings, training: Recipe | None = None) -> None:
        super().__init__(surroundings)
        self.training = RECIPES[surroundings.scale] if training is None else training
        self._problem = cache(self._read)
        self._base = cache(self._make_base)

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "scale": self.surroundings.scale,
            "training": asdict(self.training),
            "held out": problems.HELD_OUT,
            "split seed": problems.SPLIT_SEED,
            "base seed": base_models.SEED,
            "checkpoints": base_models.CHECKPOINTS,
            "segments": base_models.SEGMENTS,
            "gex rate": scoring.GEX_RATE,
        }

    def levels(self) -> list[str]:
        """CIFAR-10N always; CIFAR-100N when its files are there."""
        data = self.surroundings.data
        return [
            level
            for level in LEVELS
            if layout_of(level).name == CIFAR10.name or not (data and missing_files(data, layout_of(level)))
        ]

    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        levels = self.levels() if self.surroundings.data is not None else list(LEVELS)
        yield from (Cell("base", level, "none", base_models.SEED) for level in levels)
        scored = [method for method in methods if method != "none"]
        for level in levels:
            for method in scored:
                for seed in seeds if method in WITH_CHANCE else (0,):
                    yield Cell("detection", level, method, seed)
        if "ip_ensemble" in methods:
            for seed in seeds:
                for level in levels:
                    yield from (
                        Cell("ensembles", _ensemble_name(level, *each), "ip_ensemble", seed) for each in ensemble_settings()
                    )
        again = [method for method in methods if method in RETRAINED or self.surroundings.scale == "paper"]
        for seed in seeds:
            for level in levels:
                yield from (Cell("removal", level, method, seed) for method in again)
        for seed in seeds:
            for rate in RATES:
                known = [method for method in again if method in RATES_METHODS]
                yield from (Cell("rates", f"{RATES_LEVEL} {rate:.1%}", method, seed) for method in known)

    def check(self, cells: Sequence[Cell]) -> None:
        folder = self.surroundings.data_folder("cifar-10-batches-bin/ and CIFAR-10_human.pt")
        if cells:
            read_problem(folder, cells[0].setting.split()[0])

    def run(self, cell: Cell) -> dict[str, Any]:
        level, *rest = cell.setting.split()
        problem, base = self._problem(level), self._base(level)
        if cell.part == "base":
            return {"last": base.about["test"][-1], "best": max(base.about["test"])}
        if cell.part == "ensembles":
            size, rate = (part.split("=")[1] for part in rest)
            scores = scoring.ensemble(base, problem, int(size), float(rate), cell.seed)
            return self._with_training(detect(scores, problem.wrong, problem.given), cell, problem, scores)
        if cell.part == "detection":
            return detect(self.scores(level, cell.method, cell.seed), problem.wrong, problem.given)
        if cell.method == "none":
            return self._train_again(problem, np.arange(len(problem.given)), cell.seed)
        share = float(rest[0].rstrip("%")) / 100 if rest else REMOVED
        keep = ipfast.curate.trim(self.scores(level, cell.method, cell.seed), share).numpy()
        return self._train_again(problem, keep, cell.seed)

    def scores(self, level: str, method: str, seed: int) -> ipfast.Scores:
        """Scores of a method, computed once and kept in a file: "removal" takes those of "detection"."""
        chance = seed_of_scores(method, seed)
        file = self.surroundings.folder / "scores" / level / f"{method.replace(':', '-')}-{chance}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            base, problem = self._base(level), self._problem(level)
            scoring.score(base, problem, method, chance, progress=self.surroundings.progress).save(file)
        return ipfast.Scores.load(file)

    def tables(self, records: Records) -> Iterator[str]:
        return report(records, self.methods, self.training, RATES_LEVEL, (*RATES, REMOVED), ensemble_settings())

    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        return draw(records, self.methods, folder)

    def _read(self, level: str) -> Problem:
        return read_problem(self.surroundings.data_folder("the images"), level)

    def _make_base(self, level: str) -> BaseModel:
        here = self.surroundings
        return base_model(
            here.folder / "base" / level, self._problem(level), self.training, here.device, progress=here.progress
        )

    def _with_training(self, found: dict[str, Any], cell: Cell, problem: Problem, scores: ipfast.Scores) -> dict[str, Any]:
        """At the scale "paper" ensembles are followed by training again."""
        if self.surroundings.scale != "paper":
            return found
        return found | self._train_again(problem, ipfast.curate.trim(scores, REMOVED).numpy(), cell.seed)

    def _train_again(self, problem: Problem, keep: np.ndarray, seed: int) -> dict[str, Any]:
        """Train from scratch on what is kept; the same seed starts from the same parameters for every method."""
        test: list[float] = []
        here = self.surroundings
        train_network(
            problem.images[keep],
            problem.given[keep],
            self.training,
            classes=problem.classes,
            seed=seed,
            device=here.device,
            after_epoch=lambda _, network, __: test.append(accuracy(network, *problem.test)),
            progress=here.progress,
        )
        wrong = problem.wrong
        return {
            "last": test[-1],
            "best": max(test),
            "kept": len(keep),
            "wrong kept": int(wrong[keep].sum()),
            "wrong": int(wrong.sum()),
        }


def _ensemble_name(level: str, size: int, rate: float) -> str:
    return f"{level} T={size} p={rate:g}"
