"""Cells: attacks on the model of all samples, and what defenders make of them by every method and curation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.linear_model import LogisticRegression

import ipfast

from ..base import Experiment, Surroundings
from ..cells import Cell, Records
from ..chosen import seed_of_scores
from ..kept_scores import kept_scores
from ..pins import digest
from . import attack as attacks
from . import bank, celeba, defence, embeddings, jigsaw, problem
from .attack import accuracy, draw_rows, mixed, move
from .defence import CURATIONS
from .figures import draw
from .model import TOLERANCE, logits
from .problem import DATA, SETTINGS, Problem, data_of, make_problem, read_raw
from .report import report

EMBEDDED = ("jigsaw", "qnli")


@dataclass(frozen=True)
class Outcome:
    """A model's logits on the test set: as it is, moved against the attacked model, and moved against this one.

    Attributes:
        about: what was changed in its training set.
    """

    clean: np.ndarray  # [n]
    moved: np.ndarray
    moved_again: np.ndarray
    about: dict[str, Any]


class Tabular(Experiment):
    """Figure 6 and Table 2 of arXiv 2405.17490.

    TracIn, GEX and TDA are no methods here: the loss is convex and trained to its only minimum, where the first two are the
    inner product and the third is EKFAC.
    """

    name = "tabular"
    methods = (
        *("none", "ip", "ip_ensemble", "exact", "lissa", "datainf", "ekfac", "self_tracin", "self_lissa", "self_ekfac"),
        *("loss", "random"),
    )
    seeds: ClassVar[dict[str, tuple[int, ...]]] = dict.fromkeys(("small", "paper"), tuple(range(attacks.ATTACKS)))
    """Of attacks. The paper's setting takes minutes, so that both scales are the same."""
    trains_networks = False
    unpinned = ("embeddings",)

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._digest = cache(self._read_digest)
        self._raw = cache(lambda name: read_raw(name, self._data(), self._embed))
        self._problem = lru_cache(1)(lambda setting: make_problem(setting, self._raw))
        self._model = lru_cache(1)(lambda setting: defence.train(self._problem(setting)))
        self._outcome = lru_cache(2)(self._make_outcome)

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "scale": self.surroundings.scale,
            "data": {name: asdict(data) for name, data in DATA.items()},
            "split seed": problem.SPLIT_SEED,
            "celeba": {"rows": celeba.SAMPLE, "seed": celeba.SAMPLE_SEED, "target": celeba.TARGET},
            "jigsaw": {"rows": jigsaw.SAMPLE, "seed": jigsaw.SAMPLE_SEED, "sensitive": jigsaw.SENSITIVE.pattern},
            "bank": {"rows": bank.ROWS},
            "tokens": embeddings.TOKENS,
            "tolerance": TOLERANCE,
            "gamma": attacks.GAMMA,
            "attacked": [attacks.LEAST, attacks.MOST],
            "attack seed": attacks.SEED,
            "curated": defence.SHARE,
            "clip": defence.CLIP,
        }

    def cells(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        for setting in SETTINGS:
            yield from (Cell("attack", setting, "none", seed) for seed in seeds)
            for part in CURATIONS:
                # The seed comes last: of most methods it is the attack's alone, and their model is trained once.
                yield from (Cell(part, setting, method, seed) for method in methods for seed in seeds)

    def check(self, cells: Sequence[Cell]) -> None:
        self._data()
        names = list(dict.fromkeys(data_of(cell.setting).name for cell in cells))
        if set(names) & set(EMBEDDED):
            embeddings.require_packages()
        for name in names:
            self._digest(name)  # which reads all of it

    def data_digest(self, setting: str) -> str | None:
        return self._digest(data_of(setting).name)

    def run(self, cell: Cell) -> dict[str, Any]:
        of, (_, y) = self._problem(cell.setting), self._problem(cell.setting).test
        rows = draw_rows(len(y), cell.seed)
        if cell.part == "attack":
            return self._describe(of, self._outcome(cell.setting, "none", "none", 0), rows)
        chance = seed_of_scores(cell.method, cell.seed)
        part = "none" if cell.method == "none" else cell.part
        found = self._outcome(cell.setting, part, cell.method, chance)
        same, again = (accuracy(mixed(found.clean, moved, rows), y) for moved in (found.moved, found.moved_again))
        clean = accuracy(found.clean, y)
        return {
            "defence": same.plain,
            "balanced": same.balanced,
            "re-crafted": again.plain,
            "clean": clean.plain,
            "clean balanced": clean.balanced,
            **found.about,
        }

    def scores(self, setting: str, method: str, seed: int) -> ipfast.Scores:
        """Scores of a method, computed once and kept in a file: all curations take the same."""
        chance, of = seed_of_scores(method, seed), self._problem(setting)
        file = self.surroundings.folder / "scores" / setting / f"{method}-{chance}.safetensors"
        return kept_scores(file, len(of.train[1]), lambda: defence.score(of, self._model(setting), method, chance))

    def tables(self, records: Records) -> Iterator[str]:
        return report(records, self.methods)

    def draw(self, records: Records, folder: Path) -> Iterator[Path]:
        return draw(records, self.methods, folder)

    def _data(self) -> Path:
        return self.surroundings.data_folder("bank/, celeba/, jigsaw/ and glue/")

    def _read_digest(self, name: str) -> str:
        """Of a data set as it was read: texts themselves and not their embeddings, which no two machines compute alike."""
        read: list[str] = []

        def take(_: str, texts: list[str]) -> np.ndarray:
            read.extend(texts)
            return np.zeros((len(texts), 1))

        raw = read_raw(name, self._data(), take)
        return digest(read, raw.features, raw.labels)

    def _embed(self, name: str, texts: list[str]) -> np.ndarray:
        here = self.surroundings
        return embeddings.kept_embeddings(
            texts, here.folder / "embeddings" / f"{name}.npy", here.device, progress=here.progress
        )

    def _make_outcome(self, setting: str, part: str, method: str, chance: int) -> Outcome:
        of, model = self._problem(setting), self._model(setting)
        about: dict[str, Any] = {}
        defended: LogisticRegression = model
        if part != "none":
            made = CURATIONS[part](of, self.scores(setting, method, chance))
            defended, labels = made.model, of.train[1][made.changed]
            about = {"changed": len(labels), "effective": made.effective}
            if len(labels):
                about["largest class"] = float(np.bincount(labels).max() / len(labels))
        x, _ = of.test
        return Outcome(logits(defended, x), logits(defended, move(model, x)), logits(defended, move(defended, x)), about)

    def _describe(self, of: Problem, found: Outcome, rows: np.ndarray) -> dict[str, Any]:
        """The attack on the model of all samples, and its data."""
        x, y = of.test
        pre, post = accuracy(found.clean, y), accuracy(mixed(found.clean, found.moved, rows), y)
        share = len(rows) / len(y)
        commonest = int(np.bincount(of.train[1]).argmax())
        return {
            "pre": pre.plain,
            "post": post.plain,
            # A prediction that is attacked becomes wrong if it was right, and right if it was wrong.
            "expected post": pre.plain - share * (2 * pre.plain - 1),
            "pre balanced": pre.balanced,
            "post balanced": post.balanced,
            "attacked": share,
            "majority": float((y == commonest).mean()),
            "rows": [len(labels) for _, labels in (of.train, of.val, of.test)],
            "features": x.shape[1],
            "penalty": of.data.penalty,
            "positive": float(np.mean(np.concatenate([of.train[1], of.val[1], y]))),
        }
