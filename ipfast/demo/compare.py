"""Every method against the controls on one Problem: find wrong labels, trim, train again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

import ipfast

from ..methods import get_method
from .problem import Problem, stopwatch

TRIMMED = 0.1
"""The share of the lowest scores that is dropped before training again."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what the line is called.
        about: one clause that says what the score is.
        method: as ipfast.score takes it, or a function of the trained head that makes it.
        kind: "method"; "control", which methods must beat; or "misuse", which shows what to avoid.
        noisy_val: compare with the hold-out under noisy labels instead of the clean one.
    """

    name: str
    about: str
    method: str | Callable[[LogisticRegression], Any]
    kind: str = "method"
    noisy_val: bool = False


STAGES = (2, 5, 10, 20)
"""Iterations after which a head is taken as a checkpoint of its training."""


def tracin(stages: list[dict[str, torch.Tensor]]) -> ipfast.Method:
    """TracIn at stages of the training of a head."""
    return ipfast.Method(points=ipfast.Checkpoints(stages), name="tracin")


ROWS = (
    Row("ip", "inner product of the sample's gradient with the mean gradient of the clean hold-out", "ip"),
    Row("ip_ensemble", "mean of ip over five copies of the head, each with 1 % of its weights dropped", "ip_ensemble"),
    Row("tracin", "mean of ip over the head and four stages of its training", lambda head: tracin(head.stages)),
    Row("self_tracin", "minus the squared norm of the sample's own gradient; needs no hold-out", "self_tracin"),
    Row("loss", "minus the sample's own loss", "loss", kind="control"),
    Row("random", "chance", "random", kind="control"),
    Row("ip, noisy hold-out", "ip against a hold-out whose labels are as noisy as the training set's", "ip", "misuse", True),
)


@dataclass(frozen=True)
class Outcome:
    """What one row of the table achieved."""

    row: Row
    scores: np.ndarray  # [N]
    lowest: np.ndarray  # [TRIMMED·N] indices, worst first
    auc: float  # chance that a wrong label scores below a right one
    found: float  # share of wrong labels among the lowest
    accuracy: float  # on the test set, after training without the lowest
    score_seconds: float
    train_seconds: float


@dataclass(frozen=True)
class Comparison:
    """A problem and what every row achieved on it."""

    problem: Problem
    predicted: np.ndarray  # [N] what the head says that was trained on all given labels
    accuracy: float  # its test accuracy
    train_seconds: float
    outcomes: list[Outcome]


def compare(problem: Problem, rows: Sequence[Row] = ROWS) -> Comparison:
    """Train a head on the given labels, score every training sample by every row, and train again without the lowest."""
    # Standardised, because ip compares directions: pixels and ReLU features are all positive, and the mean that they share
    # would drown the differences that tell classes apart.
    scaler = StandardScaler().fit(problem.features)
    h, h_val, h_test = (scaler.transform(part) for part in (problem.features, problem.val[0], problem.test[0]))
    outcomes = []
    with tqdm(total=1 + len(rows), desc="training heads", delay=1, leave=False) as bar:
        with stopwatch() as training:
            head = train_head(h, problem.given)
        head.stages = [*early_stages(h, problem.given), state_of(head)]
        bar.update()
        for row in rows:
            method = row.method(head) if callable(row.method) else row.method
            val_labels = problem.val_given if row.noisy_val else problem.val[1]
            val = (h_val, val_labels) if get_method("demo", method).needs_val else None
            with stopwatch() as scoring:
                scores = ipfast.score(head, (h, problem.given), val, method=method)
            keep = ipfast.curate.trim(scores, TRIMMED).numpy()
            with stopwatch() as training_again:
                again = train_head(h[keep], problem.given[keep])
            lowest = scores.lowest(TRIMMED).numpy()
            outcomes.append(
                Outcome(
                    row=row,
                    scores=scores.values.numpy(),
                    lowest=lowest,
                    auc=float(roc_auc_score(problem.wrong, -scores.values.numpy())),
                    found=float(problem.wrong[lowest].mean()),
                    accuracy=float(again.score(h_test, problem.test[1])),
                    score_seconds=scoring(),
                    train_seconds=training_again(),
                )
            )
            bar.update()
    return Comparison(
        problem=problem,
        predicted=head.predict(h),
        accuracy=float(head.score(h_test, problem.test[1])),
        train_seconds=training(),
        outcomes=outcomes,
    )


def state_of(head: LogisticRegression) -> dict[str, torch.Tensor]:
    """The state dict of the linear layer that a head is."""
    return {"weight": torch.tensor(head.coef_), "bias": torch.tensor(head.intercept_)}


def early_stages(features: np.ndarray, labels: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """What train_head has reached after a few iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [state_of(LogisticRegression(C=0.1, max_iter=count).fit(features, labels)) for count in STAGES]


def train_head(features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """Softmax regression, the least of Σ_i ℓ_i + 5·‖W‖², from zero and without chance."""
    return LogisticRegression(C=0.1, max_iter=1000).fit(features, labels)
