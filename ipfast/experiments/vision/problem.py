"""Images with given and, where they are known, true labels; a hold-out and a test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data import animal, cifar
from ...errors import InputError

CIFAR_N = {
    # setting: (layout, noise set)
    "aggregate": ("CIFAR10", "aggre"),
    "random": ("CIFAR10", "random1"),
    "worst": ("CIFAR10", "worse"),
    "cifar100": ("CIFAR100", "noisy"),
}
"""Settings whose true labels are known."""
ANIMAL = "animal"
LEVELS = (*CIFAR_N, ANIMAL)
HELD_OUT = 0.1
"""Share of the training images of every class that is the hold-out."""
SPLIT_SEED = 0


def layout_of(level: str) -> cifar.Layout:
    found: cifar.Layout = getattr(cifar, CIFAR_N[level][0])
    return found


def files_of(level: str) -> str:
    """The name of the files that a level is read from."""
    return CIFAR_N[level][0] if level in CIFAR_N else level


def level_of(setting: str) -> str:
    """The level in the words of a cell's setting.

    >>> level_of("vit cifar100"), level_of("worst T=5 p=0.1")
    ('cifar100', 'worst')
    """
    return next(word for word in setting.split() if word in LEVELS)


def missing_by_level(data: Path | None) -> dict[str, Path]:
    """A file or folder that is not there, of CIFAR-100N and of Animal-10N, which are optional; of none where no folder was
    named."""
    if data is None:
        return {}
    found = {}
    for level in LEVELS:
        if level == ANIMAL:
            missing = [] if animal.animal_folder(data) else [data / animal.PLACES[0]]
        else:
            layout = layout_of(level)
            missing = [] if layout.name == cifar.CIFAR10.name else cifar.missing_files(data, layout)
        if missing:
            found[level] = missing[0]
    return found


@dataclass(frozen=True)
class Problem:
    """What is trained on and scored; no image is in two of its parts."""

    classes: int
    images: np.ndarray  # [N, S, S, 3] uint8
    given: np.ndarray  # [N] labels to train on
    true: np.ndarray | None  # [N], where they are known
    val: tuple[np.ndarray, np.ndarray]  # the hold-out under its true labels, or the given ones where those are not known
    test: tuple[np.ndarray, np.ndarray]

    @property
    def wrong(self) -> np.ndarray:
        """[N] whether the given label is not the true one, which must be known."""
        assert self.true is not None
        return np.asarray(self.given != self.true)


def read_problem(folder: Path, level: str) -> Problem:
    """The images under the noisy labels of one level, but for a tenth of every class."""
    if level == ANIMAL:
        images, given, *test = animal.read_animal("experiment", folder)
        train, val = split(given, animal.CLASSES)
        held = (images[val], given[val])
        return Problem(animal.CLASSES, images[train], given[train], None, held, (test[0], test[1]))
    layout = layout_of(level)
    images, true, test_images, test_labels, given = cifar.read_cifar("experiment", folder, layout, CIFAR_N[level][1])
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
