"""Cells: base models, noise detection, removal and training again, rates of removal, ensembles, other networks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import ipfast

from ..base import Experiment, Surroundings
from ..cells import Cell, Records
from ..checkpoints import BASE_SEED, CHECKPOINTS
from ..chosen import WITH_CHANCE, seed_of_scores
from ..kept_scores import kept_scores
from ..pins import digest
from . import problem as problems
from . import scoring
from .architectures import ARCHITECTURES
from .base_model import SEGMENTS, BaseModel, base_model
from .detection import detect
from .figures import draw
from .problem import CIFAR_N, LEVELS, Problem, files_of, level_of, missing_by_level, read_problem
from .report import IP_ENSEMBLE, report
from .training import PAPER, SMALL, Recipe, accuracy, train_network

REMOVED = 0.05
RATES = (0.025, 0.075, 0.1)
"""Of Table 4, beside REMOVED, whose cells are those of the part "removal"."""
RATES_LEVEL = "aggregate"
RATES_METHODS = ("ip_ensemble", "loss", "random")
SIZES = (1, 5, 10, 15, 20)
DROPPED = (0.01, 0.1, 0.5)
"""Of Table 5: sizes at rate 0.01, rates at size 5."""
RETRAINED = ("none", "ip", "ip_ensemble", "self_tracin", "datainf", "ekfac", "loss", "random")
"""Methods whose removal is followed by training again at the scale "small"; at "paper" all are."""
ENDLESS = {("cifar100", "self_lissa")}
"""A series for each of 45,000 samples, since a head of 100 classes has too many parameters to solve for its limit."""
RECIPES = {"small": SMALL, "paper": PAPER}


def ensemble_settings() -> list[tuple[int, float]]:
    """(size, rate) of Table 5."""
    return [*((size, DROPPED[0]) for size in SIZES), *((5, rate) for rate in DROPPED[1:])]


class Vision(Experiment):
    """Tables 1, 4, 5 and 6 of arXiv 2405.17490, and what scores find."""

    name = "vision"
    methods = (
        *("none", "ip", "ip_ensemble", "tracin", "gex", "lissa", "datainf", "ekfac", "tda", "self_tracin", "self_lissa"),
        *("ip:all", "self_tracin:all", "loss", "random"),
    )
    seeds: ClassVar[dict[str, tuple[int, ...]]] = {"small": (0, 1, 2), "paper": (0, 1, 2, 3, 4)}

    def __init__(self, surroundings: Surroundings, training: Recipe | None = None) -> None:
        super().__init__(surroundings)
        self.training = RECIPES[surroundings.scale] if training is None else training
        self.architectures = ARCHITECTURES[surroundings.scale]
        self._problem = cache(self._read)
        self._base = cache(self._make_base)

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "scale": self.surroundings.scale,
            "training": self.training.numbers,
            "removed": REMOVED,
            "held out": problems.HELD_OUT,
            "split seed": problems.SPLIT_SEED,
            "base seed": BASE_SEED,
            "checkpoints": CHECKPOINTS,
            "segments": SEGMENTS,
            "gex rate": scoring.GEX_RATE,
            "architectures": {
                "gex share of the rate": scoring.GEX_SHARE,
                **{setting: recipe.numbers for setting, recipe in self.architectures.items()},
            },
        }

    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        """Of CIFAR-10N always; of CIFAR-100N and Animal-10N when their files are there."""
        missing = missing_by_level(self.surroundings.data)
        return self._cells([level for level in LEVELS if level not in missing], methods, seeds)

    def every_cell(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        return self._cells(LEVELS, methods, seeds)

    def left_out(self) -> list[str]:
        return [
            f"Without {level}: {str(file)!r} is not there." for level, file in missing_by_level(self.surroundings.data).items()
        ]

    def compared(self, cell: Cell) -> Hashable:
        """Networks that are trained again on one data set; the scores of a base model are all of that one."""
        if cell.part in ("base", "detection"):
            return None
        return cell[:2] if cell.part == "architectures" else level_of(cell.setting)

    def _cells(self, levels: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        known = [level for level in levels if level in CIFAR_N]
        yield from (Cell("base", level, "none", BASE_SEED) for level in levels)
        scored = [method for method in methods if method != "none"]
        for level in known:
            for method in scored:
                if (level, method) in ENDLESS:
                    continue
                for seed in seeds if method in WITH_CHANCE else (0,):
                    yield Cell("detection", level, method, seed)
        if "ip_ensemble" in methods:
            for seed in seeds:
                for level in known:
                    yield from (
                        Cell("ensembles", _ensemble_name(level, *each), "ip_ensemble", seed)
                        for each in ensemble_settings()
                        if each != IP_ENSEMBLE
                    )
        again = [method for method in methods if method in RETRAINED or self.surroundings.scale == "paper"]
        for seed in seeds:
            for level in levels:
                yield from (Cell("removal", level, method, seed) for method in again if (level, method) not in ENDLESS)
        for seed in seeds:
            for rate in RATES:
                of_rates = [method for method in again if method in RATES_METHODS]
                yield from (Cell("rates", f"{RATES_LEVEL} {rate:.1%}", method, seed) for method in of_rates)
        # SOURCE unrolls steps of SGD, and these are of AdamW.
        at_the_head = [method for method in again if not method.endswith(":all") and method != "tda"]
        for seed in seeds:
            for setting in self.architectures:
                if level_of(setting) in levels:
                    level = level_of(setting)
                    yield from (
                        Cell("architectures", setting, method, seed) for method in at_the_head if (level, method) not in ENDLESS
                    )

    def check(self, cells: Sequence[Cell]) -> None:
        self.surroundings.data_folder("cifar-10-batches-bin/ and CIFAR-10_human.pt")
        levels = dict.fromkeys(level_of(cell.setting) for cell in cells)
        for level in {files_of(level): level for level in reversed(levels)}.values():  # the first one of each data set
            self._problem(level)

    def data_digest(self, setting: str) -> str:
        """Of the images and all labels."""
        of = self._problem(level_of(setting))
        return digest(of.images, of.given, of.true, *of.val, *of.test)

    def run(self, cell: Cell) -> dict[str, Any]:
        level, *rest = cell.setting.split()
        if cell.part == "architectures":
            return self._remove(cell.setting, cell.method, REMOVED, cell.seed)
        problem, base = self._problem(level), self._base(level)
        if cell.part == "base":
            return {"last": base.about["test"][-1], "best": max(base.about["test"])}
        if cell.part == "ensembles":
            size, rate = (part.split("=")[1] for part in rest)
            scores = scoring.ensemble(base, problem, int(size), float(rate), cell.seed)
            return self._with_training(detect(scores, problem.wrong, problem.given), cell, problem, scores)
        if cell.part == "detection":
            return detect(self.scores(level, cell.method, cell.seed), problem.wrong, problem.given)
        share = float(rest[0].rstrip("%")) / 100 if rest else REMOVED
        return self._remove(level, cell.method, share, cell.seed)

    def scores(self, name: str, method: str, seed: int) -> ipfast.Scores:
        """Scores of a method, computed once and kept in a file: "removal" takes those of "detection"."""
        chance = seed_of_scores(method, seed)
        file = self.surroundings.folder / "scores" / _as_file(name) / f"{method.replace(':', '-')}-{chance}.safetensors"
        problem, progress = self._problem(level_of(name)), self.surroundings.progress
        return kept_scores(
            file,
            len(problem.given),
            lambda: scoring.score(self._base(name), problem, method, chance, progress=progress),
        )

    def tables(self, records: Records) -> Iterator[str]:
        rates = (*RATES, REMOVED)
        of_rates = RATES_LEVEL, rates, RATES_METHODS
        return report(records, self.methods, self.training, *of_rates, ensemble_settings(), self.architectures)

    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        return draw(records, self.methods, folder)

    def _read(self, level: str) -> Problem:
        return read_problem(self.surroundings.data_folder("the images"), level)

    def _recipe(self, name: str) -> Recipe:
        """How the network called so is trained: a level, or a network and a level."""
        return self.architectures.get(name, self.training)

    def _make_base(self, name: str) -> BaseModel:
        here = self.surroundings
        folder, problem = here.folder / "base" / _as_file(name), self._problem(level_of(name))
        return base_model(folder, problem, self._recipe(name), here.device, progress=here.progress)

    def _remove(self, name: str, method: str, share: float, seed: int) -> dict[str, Any]:
        """Train again without the lowest share of the scores."""
        problem = self._problem(level_of(name))
        if method == "none":
            keep = np.arange(len(problem.given))
        else:
            keep = ipfast.curate.trim(self.scores(name, method, seed), share).numpy()
        return self._train_again(problem, keep, self._recipe(name), seed)

    def _with_training(self, found: dict[str, Any], cell: Cell, problem: Problem, scores: ipfast.Scores) -> dict[str, Any]:
        """At the scale "paper" ensembles are followed by training again."""
        if self.surroundings.scale != "paper":
            return found
        return found | self._train_again(problem, ipfast.curate.trim(scores, REMOVED).numpy(), self.training, cell.seed)

    def _train_again(self, problem: Problem, keep: np.ndarray, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train from scratch on what is kept; the same seed starts from the same parameters for every method."""
        test: list[float] = []
        here = self.surroundings
        train_network(
            problem.images[keep],
            problem.given[keep],
            recipe,
            classes=problem.classes,
            seed=seed,
            device=here.device,
            after_epoch=lambda _, network: test.append(accuracy(network, *problem.test)),
            progress=here.progress,
        )
        found = {"last": test[-1], "best": max(test), "kept": len(keep)}
        if problem.true is None:
            return found
        return found | {"wrong kept": int(problem.wrong[keep].sum()), "wrong": int(problem.wrong.sum())}


def _as_file(name: str) -> str:
    return name.replace(" ", "-")


def _ensemble_name(level: str, size: int, rate: float) -> str:
    return f"{level} T={size} p={rate:g}"
