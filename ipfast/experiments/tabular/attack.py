"""The adaptive evasion attack: some test rows are moved across the boundary of the model that it knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

import ipfast

from .model import logits

GAMMA = 1.3
"""How far: 1 reaches the boundary, more goes beyond it."""
ATTACKS = 10
LEAST, MOST = 0.05, 0.25
"""Shares of the test rows between which the number of attacked ones is drawn."""
SEED = 7


def draw_rows(count: int, attack: int) -> np.ndarray:
    """Rows of `count` that an attack moves: m ~ U[⌊0.05 n⌋, ⌊0.25 n⌋) of them, without replacement.

    They depend on the attack's number alone, so that all methods meet the same attacks.
    """
    random = np.random.default_rng((SEED, attack))
    m = int(random.integers(int(LEAST * count), int(MOST * count)))
    return np.sort(random.choice(count, m, replace=False))


def move(model: LogisticRegression, x: np.ndarray) -> np.ndarray:
    """x̌ = x − γ (θᵀx + b)/(θᵀθ) θ of each row [N, d], the smallest change with the logit (1 − γ)(θᵀx + b)."""
    weight, h = torch.from_numpy(model.coef_), torch.from_numpy(x)
    z = torch.from_numpy(logits(model, x))[:, None]
    return ipfast.impacts.Adversarial(GAMMA).attacked(h, z, weight).numpy()


def mixed(clean: np.ndarray, moved: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`clean`, in which the rows of an attack are those of `moved`."""
    result = clean.copy()
    result[rows] = moved[rows]
    return result


@dataclass(frozen=True)
class Accuracy:
    """How well logits [N] tell labels [N]: the share of right ones, and the mean of that share over the classes."""

    plain: float
    balanced: float


def accuracy(z: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of the predictions z > 0."""
    predicted = (z > 0).astype(np.int64)
    return Accuracy(float((predicted == labels).mean()), float(balanced_accuracy_score(labels, predicted)))
