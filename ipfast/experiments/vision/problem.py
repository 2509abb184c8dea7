"""Images with given and true labels, a clean hold-out and a test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data import cifar
from ...errors import InputError

LEVELS = {
    # setting: (layout, noise set)
    "aggregate": ("CIFAR10", "aggre"),
    "random": ("CIFAR10", "random1"),
    "worst": ("CIFAR10", "worse"),
    "cifar100": ("CIFAR100", "noisy"),
}
HELD_OUT = 0.1
"""Share of the training images of every class that is the hold-out."""
SPLIT_SEED = 0


def layout_of(level: str) -> cifar.Layout:
    found: cifar.Layout = getattr(cifar, LEVELS[level][0])
    return found


@dataclass(frozen=True)
class Problem:
    """What is trained on and scored; no image is in two of its parts."""

    classes: int
    images: np.ndarray  # [N, 32, 32, 3] uint8
    given: np.ndarray  # [N] labels to train on
    true: np.ndarray  # [N]
    val: tuple[np.ndarray, np.ndarray]  # the hold-out under its true labels
    test: tuple[np.ndarray, np.ndarray]

    @property
    def wrong(self) -> np.ndarray:
        return np.asarray(self.given != self.true)


def read_problem(folder: Path, level: str) -> Problem:
    """The images under the noisy labels of one level, but for a tenth of every class."""
    layout = layout_of(level)
    images, true, test_images, test_labels, given = cifar.read_cifar("experiment", folder, layout, LEVELS[level][1])
    train, val = split(true, layout.classes)
    if not 0 < (given[train] != true[train]).mean() < 1:
        raise InputError(f"experiment: expected right and wrong labels among those of {layout.human}; got one kind only.")
    held = (images[val], true[val])
    return Problem(layout.classes, images[train], given[train], true[train], held, (test_images, test_labels))


def split(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, hold-out) rows in order: the same share of every class, the same rows at every level."""
    random = np.random.default_rng(SPLIT_SEED)
    held = np.zeros(len(labels), dtype=bool)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        held[random.choice(rows, round(HELD_OUT * len(rows)), replace=False)] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
