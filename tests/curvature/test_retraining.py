"""Eq. (1) against logistic regression that is really trained again: 150 samples of two dimensions, ten labels flipped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import ipfast
from ipfast import Method

PENALTY, GAMMA = 1.0, 1.3
SHARE = 0.01
"""Of one sample's weight that is taken away."""


class Blobs:
    """Training data with flipped labels, clean validation data, and a group of each validation sample."""

    def __init__(self) -> None:
        x, y = make_blobs(250, centers=[(-1.5, -0.75), (1.5, 0.75)], cluster_std=1.0, random_state=0)
        self.x, self.y = x[:150], y[:150].copy()
        self.x_val, self.y_val = x[150:], y[150:]
        self.y[:10] = 1 - self.y[:10]
        self.group = np.random.default_rng(0).uniform(size=100) < 1 / (1 + np.exp(-2 * self.x_val[:, 1]))

    def fit(self, weights: np.ndarray) -> np.ndarray:
        """(w_1, w_2, b) that minimise Σ w_i ℓ_i + (λ/2)‖w‖², by Newton's method."""
        full = np.hstack([self.x, np.ones((len(self.x), 1))])
        ridge = np.diag([PENALTY, PENALTY, 0.0])
        theta = np.zeros(3)
        for _ in range(50):
            p = 1 / (1 + np.exp(-full @ theta))
            gradient = full.T @ (weights * (p - self.y)) + ridge @ theta
            step = np.linalg.solve((full * (weights * p * (1 - p))[:, None]).T @ full + ridge, gradient)
            theta = theta - step
            if np.abs(step).max() < 1e-14:
                break
        return theta


def logits(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ theta[:2] + theta[2]


def log_loss(z: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, z) - y * z))


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture(scope="module")
def estimator(blobs) -> LogisticRegression:
    model = LogisticRegression(C=1 / PENALTY, tol=1e-12, max_iter=1000).fit(blobs.x, blobs.y)
    exact = blobs.fit(np.ones(150))
    model.coef_, model.intercept_ = exact[None, :2].copy(), exact[2:].copy()
    return model


def parity(group: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """The difference of the mean probabilities of two groups."""
    members = torch.from_numpy(group)

    def f(z: Tensor, _labels: Tensor) -> Tensor:
        p = torch.sigmoid(z[:, 0])
        return p[members].mean() - p[~members].mean()

    return f


def check(scores: Tensor, changes: np.ndarray, share: float) -> tuple[float, float]:
    """(correlation, slope) of the real changes over what the scores say."""
    said = scores.double().numpy() * share / 150
    return float(np.corrcoef(said, changes)[0, 1]), float(said @ changes / (said @ said))


def retrained(blobs: Blobs, share: float, f: Callable[[np.ndarray], float]) -> np.ndarray:
    base = f(blobs.fit(np.ones(150)))
    changes = []
    for i in range(150):
        weights = np.ones(150)
        weights[i] -= share
        changes.append(f(blobs.fit(weights)) - base)
    return np.array(changes)


def exact_scores(blobs: Blobs, estimator: LogisticRegression, val: tuple, impact: object = "utility") -> Tensor:
    return ipfast.score(
        estimator, (blobs.x, blobs.y), val, method=Method(curvature=ipfast.Exact()), impact=impact, progress=False
    ).values


def test_the_penalty_is_read_off_the_estimator(blobs, estimator):
    found = ipfast.query(estimator, (blobs.x_val, blobs.y_val), method="exact", train=(blobs.x, blobs.y))
    assert found.stats["curvature"][0]["of"]["l2"] == PENALTY


def test_utility(blobs, estimator):
    scores = exact_scores(blobs, estimator, (blobs.x_val, blobs.y_val))
    correlation, slope = check(
        scores, retrained(blobs, SHARE, lambda theta: log_loss(logits(theta, blobs.x_val), blobs.y_val)), SHARE
    )
    assert correlation > 0.9999
    assert 0.99 < slope < 1.01


def test_demographic_parity(blobs, estimator):
    scores = exact_scores(blobs, estimator, (blobs.x_val, blobs.y_val), parity(blobs.group))

    def f(theta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-logits(theta, blobs.x_val)))
        return float(p[blobs.group].mean() - p[~blobs.group].mean())

    correlation, slope = check(scores, retrained(blobs, SHARE, f), SHARE)
    assert correlation > 0.9999
    assert 0.99 < slope < 1.01


def test_robustness(blobs, estimator):
    """The adversarial samples x − γ (wᵀx + b)/‖w‖² w are fixed at the trained model's weights."""
    theta = blobs.fit(np.ones(150))
    z = logits(theta, blobs.x_val)
    attacked = blobs.x_val - GAMMA * (z / (theta[:2] @ theta[:2]))[:, None] * theta[:2]
    scores = exact_scores(blobs, estimator, (attacked, blobs.y_val))
    changes = retrained(blobs, SHARE, lambda theta: log_loss(logits(theta, attacked), blobs.y_val))
    correlation, slope = check(scores, changes, SHARE)
    assert correlation > 0.9999
    assert 0.99 < slope < 1.01


def test_full_removal(blobs, estimator):
    scores = exact_scores(blobs, estimator, (blobs.x_val, blobs.y_val))
    changes = retrained(blobs, 1.0, lambda theta: log_loss(logits(theta, blobs.x_val), blobs.y_val))
    correlation, slope = check(scores, changes, 1.0)
    assert correlation > 0.99
    assert 0.9 < slope < 1.3  # a sample's own curvature goes with it, so the real change is a little larger


def test_newton_finds_what_scipy_finds(blobs):
    """The oracle itself."""

    def objective(theta: np.ndarray) -> float:
        z = logits(theta, blobs.x)
        return float(np.sum(np.logaddexp(0, z) - blobs.y * z) + PENALTY / 2 * theta[:2] @ theta[:2])

    found = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    assert np.allclose(found.x, blobs.fit(np.ones(150)), atol=1e-6)


def test_flipped_labels_are_detrimental(blobs, estimator):
    scores = exact_scores(blobs, estimator, (blobs.x_val, blobs.y_val))
    assert int((scores[:10] < 0).sum()) >= 8
