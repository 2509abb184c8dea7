"""A data set split in three and standardised, with the strength of its regulariser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bank import read_bank
from .celeba import read_celeba
from .jigsaw import read_jigsaw
from .qnli import read_qnli
from .raw import Raw

SPLIT_SEED = 0
ORIGIN = "-origin"
"""Settings of this ending fit a model without intercept, as the group's published code does; the paper's formulas have one."""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Attributes:
        penalty: λ of Σ_i ℓ_i + (λ/2)‖w‖². held: share of the rows that are validation and test data, in halves.
        paper: whether it is one of the paper's.
    """

    name: str
    penalty: float
    held: float = 0.4
    paper: bool = True


DATA = {
    each.name: each
    for each in (
        DataSet("bank", 1.1622),
        DataSet("celeba", 15.1622),
        DataSet("jigsaw", 5.1622),
        DataSet("qnli", 5.1622, held=0.2, paper=False),  # with the regulariser of the other embeddings
    )
}
SETTINGS = (*DATA, *(f"{data.name}{ORIGIN}" for data in DATA.values() if data.paper))

Part = tuple[np.ndarray, np.ndarray]
"""(features [N, d] float64, labels [N] int64)"""


@dataclass(frozen=True)
class Problem:
    """What is trained on, what the defender knows, and what is attacked; features are standardised by those of train."""

    data: DataSet
    intercept: bool
    train: Part
    val: Part
    test: Part


def data_of(setting: str) -> DataSet:
    """The data set of a setting."""
    return DATA[setting.removesuffix(ORIGIN)]


def make_problem(setting: str, read: Callable[[str], Raw]) -> Problem:
    """The problem of a setting, of which `read` gives the data set by name."""
    data = data_of(setting)
    raw = read(data.name)
    rows = split(len(raw.labels), data.held)
    train = raw.features[rows[0]]
    centre, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1  # a feature that is the same in all rows says nothing
    parts = [((raw.features[part] - centre) / scale, raw.labels[part]) for part in rows]
    return Problem(data, setting == data.name, *parts)


def split(count: int, held: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training, validation, test) rows at random; ⌈held·N⌉ are held out, half of them for the test.

    >>> [len(rows) for rows in split(30_488, 0.4)]
    [18292, 6098, 6098]
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    out = -int(-held * count // 1)
    train = count - out
    return order[:train], order[train : train + out // 2], order[train + out // 2 :]


def read_raw(name: str, folder: Path, embed: Callable[[str, list[str]], np.ndarray]) -> Raw:
    """The data set of that name; `embed` gives embeddings [N, e] of texts, kept under a name."""
    if name == "bank":
        return read_bank(folder)
    if name == "celeba":
        return read_celeba(folder)
    if name == "jigsaw":
        texts, sensitive, labels = read_jigsaw(folder)
        return Raw(np.column_stack([embed(name, texts), sensitive]).astype(np.float64), labels)
    questions, sentences, labels = read_qnli(folder)
    count = len(labels)
    both = embed(name, questions + sentences).astype(np.float64)
    one, other = both[:count], both[count:]
    return Raw(np.concatenate([np.abs(one - other), one * other], axis=1), labels)
