"""Toy data in the plane, of which some labels are flipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import make_blobs, make_moons
from torch import Tensor

BLOBS, STANDARDISED, MOONS = "blobs", "blobs-standardised", "moons"
TOYS = (BLOBS, STANDARDISED, MOONS)
TEST = 100
CENTRES = ((-1.5, -1.5), (1.5, 1.5))
MOONS_NOISE = 0.2
FLIPPED = {BLOBS: 10, STANDARDISED: 10, MOONS: 20}
TRAIN = {BLOBS: 150, STANDARDISED: 150, MOONS: 200}


@dataclass(frozen=True)
class Toy:
    """Training and validation data in float64; the test data are the validation data, as in the paper's toy code."""

    name: str
    x: Tensor  # [N, 2]
    y: Tensor  # [N] given labels, 0 or 1
    wrong: np.ndarray  # [N] which of them are flipped
    x_val: Tensor  # [M, 2]
    y_val: Tensor  # [M]
    groups: Tensor  # [M] sensitive attribute, 0 or 1

    @property
    def linear(self) -> bool:
        """Whether its model is logistic regression, at its optimum, and not a network."""
        return self.name != MOONS


def make_toy(name: str, seed: int) -> Toy:
    """Blobs of deviation 1 around (−1.5, −1.5) and (1.5, 1.5), as they are or with features standardised by the training data,
    or moons with noise 0.2; as many labels flipped in each class.

    The sensitive attribute is drawn with probability σ(2·x_2), x_2 standardised: the paper does not say what it is.
    """
    count = TRAIN[name] + TEST
    if name == MOONS:
        x, true = make_moons(n_samples=count, noise=MOONS_NOISE, random_state=seed)
    else:
        x, true = make_blobs(n_samples=count, centers=np.array(CENTRES), random_state=seed)
    random = np.random.default_rng(seed)
    train = slice(0, TRAIN[name])
    if name == STANDARDISED:
        x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    wrong = np.zeros(TRAIN[name], dtype=bool)
    for kind in (0, 1):
        wrong[random.choice(np.flatnonzero(true[train] == kind), FLIPPED[name] // 2, replace=False)] = True
    x_val = x[TRAIN[name] :]
    height = (x_val[:, 1] - x_val[:, 1].mean()) / x_val[:, 1].std()
    groups = random.random(TEST) < 1 / (1 + np.exp(-2 * height))
    return Toy(
        name=name,
        x=torch.from_numpy(x[train]),
        y=torch.from_numpy(np.where(wrong, 1 - true[train], true[train]).astype(np.float64)),
        wrong=wrong,
        x_val=torch.from_numpy(x_val),
        y_val=torch.from_numpy(true[TRAIN[name] :].astype(np.float64)),
        groups=torch.from_numpy(groups.astype(np.float64)),
    )
