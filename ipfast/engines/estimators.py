"""Fitted scikit-learn linear classifiers as heads: weights, the loss they were fitted with, and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, InputTypeError


@dataclass(frozen=True)
class EstimatorLabels:
    """Labels as the estimator knows them (classes_) -> labels as its loss takes them."""

    classes: np.ndarray
    form: str  # "index": class numbers; "binary": 0/1 of the second class; "one_hot"; "signs": ±1, one-against-rest

    def __call__(self, where: str, labels: Any) -> Tensor:
        labels = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if labels.ndim != 1:
            raise InputError(f"{where}: expected labels of shape [N] for a scikit-learn classifier; got {list(labels.shape)}.")
        known = np.isin(labels, self.classes)
        if not known.all():
            row = int(np.argmin(known))
            unknown = labels[row : row + 1].tolist()[0]
            raise InputError(
                f"{where}: expected labels among the classes of the fitted estimator "
                f"({', '.join(map(str, self.classes[:10]))}{', …' if len(self.classes) > 10 else ''}); got "
                f"{unknown!r} at row {row}. Drop such rows or fit with all classes."
            )
        index = torch.from_numpy(np.searchsorted(self.classes, labels).astype(np.int64))
        if self.form == "index":
            return index
        if len(self.classes) == 2:
            each = index[:, None].double()
        else:
            each = torch.nn.functional.one_hot(index, len(self.classes)).double()
        return 2 * each - 1 if self.form == "signs" else each


def is_estimator(model: Any) -> bool:
    """Whether a model looks like a scikit-learn classifier; scikit-learn itself need not be installed."""
    return not isinstance(model, torch.nn.Module) and hasattr(model, "get_params") and hasattr(model, "fit")


def read_estimator(where: str, model: Any) -> tuple[Tensor, Tensor | None, str, EstimatorLabels]:
    """(weight [C, d], bias [C], loss, label encoding) of a fitted linear classifier."""
    name = type(model).__name__
    if hasattr(model, "steps"):
        raise InputTypeError(
            f"{where}: expected a linear classifier; got a {name}. Score its last step on the transformed data: "
            "score(pipe[-1], (pipe[:-1].transform(X), y), (pipe[:-1].transform(X_val), y_val))."
        )
    if hasattr(model, "best_estimator_"):
        raise InputTypeError(f"{where}: expected a linear classifier; got a {name}. Pass its best_estimator_.")
    loss, form = _training_loss(where, model, name)
    missing = [attribute for attribute in ("coef_", "intercept_", "classes_") if not hasattr(model, attribute)]
    if missing:
        raise InputError(f"{where}: expected a fitted estimator; this {name} has no {missing[0]}. Call its fit first.")
    coefficients = np.atleast_2d(np.asarray(model.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64), (len(coefficients),))
    if np.asarray(model.classes_).ndim != 1 or isinstance(model.classes_, list):
        raise InputTypeError(f"{where}: expected a classifier with one label a sample; this {name} has several.")
    if loss == "cross_entropy" and len(coefficients) == 1:
        loss, form = "bce_with_logits", "binary"
    bias = torch.tensor(intercept) if getattr(model, "fit_intercept", True) else None
    return torch.tensor(coefficients), bias, loss, EstimatorLabels(np.asarray(model.classes_), form)


def read_columns(model: Any) -> tuple[str, ...] | None:
    """Names of the features that an estimator was fitted to, where it was fitted to a table that has them."""
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))


def read_penalty(model: Any) -> float:
    """λ of (λ/2)‖W‖² beside the sum of the losses, of an estimator that has one such number; else zero."""
    name, cross_validated = type(model).__name__, type(model).__name__.endswith("CV")
    if name in ("LogisticRegression", "LogisticRegressionCV"):
        ratio = model.l1_ratio_ if cross_validated and hasattr(model, "l1_ratio_") else getattr(model, "l1_ratio", None)
        smooth = all(each in (None, 0, 0.0) for each in np.atleast_1d(np.asarray(ratio, dtype=object)))
        strengths = np.unique(model.C_ if cross_validated else model.C)
        squared = getattr(model, "penalty", "l2") in ("l2", "deprecated", "elasticnet")
        if squared and smooth and len(strengths) == 1 and np.isfinite(strengths[0]):
            return float(1 / strengths[0])
    if name in ("RidgeClassifier", "RidgeClassifierCV"):
        alpha = model.alpha_ if cross_validated else model.alpha
        if np.ndim(alpha) == 0:
            # Its sum is of ‖z − y‖² over all outputs; the loss here is their mean.
            return float(2 * float(alpha) / np.atleast_2d(model.coef_).shape[0])
    return 0.0


def _training_loss(where: str, model: Any, name: str) -> tuple[str, str]:
    """The loss an estimator minimises, and the labels that loss takes."""
    if name in ("LogisticRegression", "LogisticRegressionCV"):
        # Releases before 1.8 fit one binary model a class on request, and always with this solver.
        apart = getattr(model, "multi_class", "auto") == "ovr" or model.solver == "liblinear"
        return ("bce_with_logits", "one_hot") if apart else ("cross_entropy", "index")
    if name == "SGDClassifier" and model.loss == "log_loss":
        return "bce_with_logits", "one_hot"
    if name in ("RidgeClassifier", "RidgeClassifierCV"):
        return "mse", "signs"
    if name == "SGDClassifier":
        name = f"SGDClassifier(loss={model.loss!r})"
    raise InputTypeError(
        f"{where}: expected LogisticRegression, LogisticRegressionCV, SGDClassifier(loss='log_loss') or RidgeClassifier; "
        f"got {name}. For other models copy the weights to an nn.Linear and name its loss."
    )
