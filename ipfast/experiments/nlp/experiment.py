"""Cells: base models, what methods would remove, and removal with fine-tuning again."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.stats import spearmanr

import ipfast

from ..base import Experiment, Surroundings
from ..cells import Cell, Records
from ..checkpoints import BASE_SEED, CHECKPOINTS
from ..chosen import WITH_CHANCE, seed_of_scores
from ..kept_scores import kept_scores
from ..pins import digest
from . import problem as problems
from . import scoring
from .base_model import BaseModel, base_model
from .classifier import check_pretrained, find_pretrained
from .fairness import evaluate
from .figures import draw
from .problem import SETTINGS, Problem, log_rewrites, read_problem, settings_of
from .report import report
from .texts import Texts, make_texts
from .training import PAPER, SMALL, Recipe, fine_tune

REMOVED = 0.05
RETRAINED = ("none", "ip", "ip_ensemble", "self_tracin", "datainf", "ekfac", "loss", "random")
"""Methods whose removal is followed by fine-tuning again at the scale "small"; at "paper" all are."""
RECIPES = {"small": SMALL, "paper": PAPER}


class Nlp(Experiment):
    """Section 6 and Figure 5 of arXiv 2405.17490: accuracy and fairness of a classifier of texts."""

    name = "nlp"
    methods = (
        *("none", "ip", "ip_ensemble", "tracin", "lissa", "datainf", "ekfac", "self_tracin", "self_lissa", "loss", "random"),
    )
    seeds: ClassVar[dict[str, tuple[int, ...]]] = {"small": (0, 1, 2), "paper": (0, 1, 2)}
    takes_model = True
    unpinned = ("rewrites",)

    def __init__(self, surroundings: Surroundings, training: Recipe | None = None) -> None:
        super().__init__(surroundings)
        training = RECIPES[surroundings.scale] if training is None else training
        self.training = training if surroundings.model is None else replace(training, model=surroundings.model)
        self.pretrained = find_pretrained(self.training.model)
        self._problem = cache(self._read_problem)
        self._texts = cache(self._make_texts)
        self._base = cache(self._make_base)

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "scale": self.surroundings.scale,
            "training": asdict(self.training) | {"model": self.pretrained.about},
            "removed": REMOVED,
            "combined by": scoring.HOW,
            "split seed": problems.SPLIT_SEED,
            "rewrite seed": problems.REWRITE_SEED,
            "base seed": BASE_SEED,
            "checkpoints": CHECKPOINTS,
        }

    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        return self._cells(settings_of(self.surroundings.data), methods, seeds)

    def every_cell(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        return self._cells(SETTINGS, methods, seeds)

    def left_out(self) -> list[str]:
        there = settings_of(self.surroundings.data)
        return (
            ["Without QNLI: its train.tsv is not there; its validation set alone is QNLI-dev."] if "QNLI" not in there else []
        )

    def compared(self, cell: Cell) -> Hashable:
        """Classifiers that are fine-tuned again on one task; the scores of a base model are all of that one."""
        return cell.setting if cell.part == "removal" else None

    def _cells(self, settings: Iterable[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        again = [method for method in methods if method in RETRAINED or self.surroundings.scale == "paper"]
        for setting in settings:
            yield Cell("base", setting, "none", BASE_SEED)
            for method in methods:
                if method != "none":
                    for seed in seeds if method in WITH_CHANCE else (0,):
                        yield Cell("scores", setting, method, seed)
            for seed in seeds:
                yield from (Cell("removal", setting, method, seed) for method in again)

    def check(self, cells: Sequence[Cell]) -> None:
        for setting in dict.fromkeys(cell.setting for cell in cells):
            self._problem(setting)
        check_pretrained(self.pretrained)

    def data_digest(self, setting: str) -> str | None:
        of = self._problem(setting)
        halves = [
            part
            for half in (of.val, of.test)
            for part in (half.texts, half.labels, [rewrite.rewritten for rewrite in half.rewrites])
        ]
        return digest(of.texts, of.labels, *halves)

    def run(self, cell: Cell) -> dict[str, Any]:
        if cell.part == "base":
            return self._base(cell.setting).about | _sizes(self._problem(cell.setting))
        if cell.part == "scores":
            return self._lowest(cell)
        texts = self._texts(cell.setting)
        keep = np.arange(len(texts.train))
        if cell.method != "none":
            keep = ipfast.curate.trim(self.scores(cell.setting, cell.method, cell.seed), REMOVED).numpy()
        return self._train_again(texts, keep, cell.seed)

    def scores(self, setting: str, method: str, seed: int) -> ipfast.Scores:
        """Scores of a method, one a text, of which the lowest are removed."""
        return scoring.combine(self.objectives(setting, method, seed))

    def objectives(self, setting: str, method: str, seed: int) -> dict[str, ipfast.Scores]:
        """Scores by objective, computed once and kept in files: "removal" takes those of "scores"."""
        chance, problem = seed_of_scores(method, seed), self._problem(setting)

        def one(objective: str) -> ipfast.Scores:
            file = self.surroundings.folder / "scores" / setting / f"{method}-{objective}-{chance}.safetensors"
            return kept_scores(
                file, len(problem.labels), lambda: scoring.score(self._base(setting), problem, method, objective, chance)
            )

        return {objective: one(objective) for objective in scoring.objectives_of(method)}

    def tables(self, records: Records) -> Iterator[str]:
        return report(records, self.methods, self.training, self.pretrained.about["name"])

    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        return draw(records, self.methods, folder)

    def _read_problem(self, setting: str) -> Problem:
        return read_problem(self.surroundings.data_folder("glue/ and perturbation/"), setting, self.training.most)

    def _make_texts(self, setting: str) -> Texts:
        problem = self._problem(setting)
        made = make_texts(problem, self.pretrained, self.training.longest)
        folder = self.surroundings.folder / "rewrites"
        folder.mkdir(parents=True, exist_ok=True)
        log_rewrites(folder / f"{setting}.jsonl", problem)
        return made

    def _make_base(self, setting: str) -> BaseModel:
        here = self.surroundings
        return base_model(
            here.folder / "base" / setting, self._texts(setting), self.training, here.device, progress=here.progress
        )

    def _lowest(self, cell: Cell) -> dict[str, Any]:
        """Whom the lowest 5 % of a method are: of which label, how many of ip's, and whether its objectives agree."""
        labels = self._problem(cell.setting).labels
        parts = self.objectives(cell.setting, cell.method, cell.seed)
        lowest = scoring.combine(parts).lowest(REMOVED)
        others = self.scores(cell.setting, "ip", 0).lowest(REMOVED)
        found = {
            "largest class": float(np.bincount(labels[lowest.numpy()]).max() / len(lowest)),
            "of ip": len(set(lowest.tolist()) & set(others.tolist())) / len(lowest),
        }
        if len(parts) > 1:
            found["agreement"] = float(spearmanr(*(scores.values.numpy() for scores in parts.values())).statistic)
        return found

    def _train_again(self, texts: Texts, keep: np.ndarray, seed: int) -> dict[str, Any]:
        """Fine-tune the pretrained weights on what is kept; the same seed starts alike for every method."""
        classifier = fine_tune(
            texts.pretrained,
            [texts.train[row] for row in keep],
            texts.problem.labels[keep],
            self.training,
            task=texts.problem.task,
            seed=seed,
            device=self.surroundings.device,
            progress=self.surroundings.progress,
        )
        return evaluate(classifier, texts) | {"kept": len(keep)}


def _sizes(problem: Problem) -> dict[str, int]:
    return {
        "train": len(problem.labels),
        "V": len(problem.val.labels),
        "V changed": len(problem.val.changed),
        "test": len(problem.test.labels),
        "test changed": len(problem.test.changed),
    }
