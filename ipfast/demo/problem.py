"""What a demo runs on: features of images, of which some labels are known to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np


@dataclass
class Problem:
    """Training data with noisy labels, a hold-out and a test set; no sample is in two of them."""

    title: str
    description: str  # where images and wrong labels come from
    model: str  # what is trained, and what is trained again after trimming
    features: np.ndarray  # [N, d] float32
    given: np.ndarray  # [N] labels to train on
    true: np.ndarray  # [N] what the labels should be
    images: np.ndarray  # [N, height, width] or [N, height, width, 3], uint8
    class_names: list[str]
    val: tuple[np.ndarray, np.ndarray]  # the trusted hold-out that ip compares with
    val_given: np.ndarray  # the hold-out's labels with noise like the training set's, to show what that does to ip
    test: tuple[np.ndarray, np.ndarray]  # for the accuracies
    seconds: dict[str, float] = field(default_factory=dict)  # what it took to make, by stage

    @property
    def wrong(self) -> np.ndarray:
        """[N] whether the given label is wrong."""
        return np.asarray(self.given != self.true)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Gives a function that tells, after the block, how many seconds it took."""
    started = ended = perf_counter()
    yield lambda: ended - started
    ended = perf_counter()
