"""Handwritten digits that scikit-learn ships, with some labels flipped."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from ..errors import InputError
from .problem import Problem, stopwatch

TRAIN, VAL = 1197, 300


def digits(noise: float, seed: int) -> Problem:
    """1,797 images of 8×8: 1,197 to train on with a share `noise` of flipped labels, 300 for validation, 300 for the test."""
    count = round(noise * TRAIN) if 0 < noise < 1 else 0
    if not 0 < count < TRAIN:
        raise InputError(
            f"demo: expected --noise to be a share in (0, 1) that flips some of {TRAIN:,} labels, not all; got {noise:g}."
        )
    random = np.random.default_rng(seed)
    with stopwatch() as loading:
        data = load_digits()
    order = random.permutation(len(data.target))
    train, val, test = order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :]
    features = (data.data / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    return Problem(
        title="Handwritten digits",
        description=(
            f"{TRAIN:,} training images of 8×8 pixels that scikit-learn ships; {count:,} of their labels "
            f"({count / TRAIN:.0%}) were flipped at random. {VAL} more images are the clean hold-out, {len(test)} the test set."
        ),
        model="A linear softmax classifier of the pixels, trained on the given labels, and again from zero after trimming.",
        features=features[train],
        given=_flip(labels[train], count, random),
        true=labels[train],
        images=(255 - data.images[train] * (255 / 16)).astype(np.uint8),
        class_names=[str(digit) for digit in range(10)],
        val=(features[val], labels[val]),
        val_given=_flip(labels[val], round(noise * VAL), random),
        test=(features[test], labels[test]),
        seconds={"load the images": loading()},
    )


def _flip(labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The labels with `count` of them moved to another class."""
    flipped = random.permutation(len(labels))[:count]
    result = labels.copy()
    result[flipped] = (result[flipped] + random.integers(1, 10, count)) % 10
    return result
