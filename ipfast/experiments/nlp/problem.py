"""A task with its validation set in two halves, V and test, and both halves about other people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.glue import TASKS, read_task, task_file
from ...data.writers import written_whole
from .rewriting import Rewrite, Rewriter, Sentences
from .word_lists import read_word_lists

SETTINGS = {
    # setting: (task, parts in which the validation set alone is cut: train, V, test)
    "RTE": ("RTE", None),
    "CoLA": ("CoLA", None),
    "SST-2": ("SST-2", None),
    "QNLI": ("QNLI", None),
    "QNLI-dev": ("QNLI", (0.8, 0.1, 0.1)),  # not the paper's: where the large training file is not there
}
SPLIT_SEED = 0
REWRITE_SEED = 0


@dataclass(frozen=True)
class Pairs:
    """Texts with their labels, and the same about other people; a text without a word of the lists is its own counterpart."""

    texts: list[Sentences]
    labels: np.ndarray  # [M]
    rewrites: list[Rewrite]

    @property
    def changed(self) -> np.ndarray:
        """Rows whose rewrite is another text."""
        return np.asarray([row for row, each in enumerate(self.rewrites) if each.changed], dtype=np.int64)

    def rewritten(self, rows: Sequence[int] | np.ndarray) -> list[Sentences]:
        return [self.rewrites[row].rewritten for row in rows]


@dataclass(frozen=True)
class Problem:
    """What is trained on and scored. No row is in two of its parts; the files hold some texts more than once, of CoLA 9 of the
    test half among those that are trained on, and of QNLI's validation set many questions."""

    setting: str
    texts: list[Sentences]
    labels: np.ndarray  # [N]
    val: Pairs
    test: Pairs

    @property
    def task(self) -> str:
        return SETTINGS[self.setting][0]


def settings_of(folder: Path | None) -> list[str]:
    """The tasks whose training files are there; QNLI by its validation set alone where its training file is not."""
    whole = folder is not None and task_file(folder, TASKS["QNLI"], "train").exists()
    return [setting for setting in SETTINGS if setting not in ("QNLI", "QNLI-dev") or (setting == "QNLI") == whole]


def read_problem(folder: Path, setting: str, most: int | None) -> Problem:
    """The texts of a task, rewritten too; of `most` training texts where there are more, the same share of each class.

    Raises:
        MissingFileError, InputError: a file of the task or a list of words is not there, is cut off or another one.
    """
    name, shares = SETTINGS[setting]
    rewriter = Rewriter(read_word_lists("experiment", folder, REWRITE_SEED), REWRITE_SEED)
    held, held_labels = read_task("experiment", folder, TASKS[name], "dev")
    if shares is None:
        texts, labels = read_task("experiment", folder, TASKS[name], "train")
        rows = np.arange(len(labels))
        val, test = split(held_labels, (0.5, 0.5))
    else:
        texts, labels = held, held_labels
        rows, val, test = split(held_labels, shares)
    if most is not None and len(rows) > most:
        rows = rows[split(labels[rows], (most / len(rows), 1 - most / len(rows)))[0]]
    return Problem(
        setting,
        [texts[row] for row in rows],
        labels[rows],
        *(_pairs([held[row] for row in part], held_labels[part], rewriter) for part in (val, test)),
    )


def split(labels: np.ndarray, shares: Sequence[float]) -> list[np.ndarray]:
    """Rows of each part, in order: of every class the same shares, by chance.

    >>> [part.tolist() for part in split(np.array([0, 0, 1, 1]), (0.5, 0.5))]
    [[0, 2], [1, 3]]
    """
    random = np.random.default_rng(SPLIT_SEED)
    parts = np.empty(len(labels), dtype=np.int64)
    bounds = np.cumsum(shares)[:-1]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        for number, part in enumerate(np.split(rows, np.round(bounds * len(rows)).astype(np.int64))):
            parts[part] = number
    return [np.flatnonzero(parts == number) for number in range(len(shares))]


def log_rewrites(file: Path, problem: Problem) -> None:
    """Every rewrite as a JSON line: the part and its row, the texts, and the words that were swapped."""
    with written_whole(file) as beside, open(beside, "w", encoding="utf-8") as stream:
        for part, pairs in (("V", problem.val), ("test", problem.test)):
            for row in pairs.changed.tolist():
                rewrite = pairs.rewrites[row]
                line = {
                    "part": part,
                    "row": row,
                    "original": rewrite.original,
                    "rewritten": rewrite.rewritten,
                    "swaps": rewrite.swaps,
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _pairs(texts: list[Sentences], labels: np.ndarray, rewriter: Rewriter) -> Pairs:
    return Pairs(texts, labels, [rewriter.rewrite(each) for each in texts])
