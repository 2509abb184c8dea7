"""Logistic regression: Σ_i w_i ℓ_i(θ) + (λ/2)‖w‖² at its minimum, the intercept without penalty."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

TOLERANCE = 1e-8


def fit(
    x: np.ndarray, y: np.ndarray, penalty: float, *, intercept: bool = True, weights: np.ndarray | None = None
) -> LogisticRegression:
    """The model of these rows, by Newton's method in float64; the minimum is unique.

    Args:
        x: [N, d]. y: [N] of 0 and 1. penalty: λ, beside the sum of the losses. weights: [N] of the samples; None: 1 each.
    """
    # Its C multiplies the sum of the losses, so that C = 1/λ has the same minimum.
    model = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=TOLERANCE, max_iter=1000, fit_intercept=intercept)
    return model.fit(x, y, sample_weight=weights)


def logits(model: LogisticRegression, x: np.ndarray) -> np.ndarray:
    """z = θᵀx + b of each row [N]; class 1 is predicted where it is positive."""
    return np.asarray(model.decision_function(x))
