"""How right predictions are, and how far they depend on whom a text is about."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import matthews_corrcoef

from .classifier import Classifier
from .texts import Texts
from .training import predict


def evaluate(classifier: Classifier, texts: Texts) -> dict[str, Any]:
    """What `measure` tells of the test half."""
    test = texts.problem.test
    before = predict(classifier, texts.test)
    after = before.copy()  # a text without a counterpart is its own
    if len(test.changed):
        after[test.changed] = predict(classifier, texts.test_rewritten)
    return measure(before, after, test.changed, test.labels)


def measure(before: np.ndarray, after: np.ndarray, changed: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, Matthews correlation and fair scores of predictions [M] for texts, and for the same about other people.

    Returns:
        "fair score", the share of texts whose prediction changes with the people: of all texts, as the paper has it; and
        "fair score of changed", of those alone that have a counterpart. Lower is fairer, and predicting the same class for all
        is fairest: "predicted 1" is the share of that class among the predictions.

    >>> found = measure(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 0]), np.array([1, 2]), np.array([0, 1, 0, 0]))
    >>> found["accuracy"], found["fair score"], found["fair score of changed"]
    (0.75, 0.25, 0.5)
    """
    flips = int((before != after).sum())
    return {
        "accuracy": float((before == labels).mean()),
        "matthews": float(matthews_corrcoef(labels, before)),
        "fair score": flips / len(labels),
        "fair score of changed": flips / len(changed) if len(changed) else float("nan"),
        "predicted 1": float(before.mean()),
    }
