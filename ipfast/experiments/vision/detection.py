"""How well scores find labels that are known to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

import ipfast

from ..intervals import share_interval

SHARES = (0.01, 0.05, 0.1)


def detect(scores: ipfast.Scores, wrong: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """AUC, and for each of SHARES the share of wrong labels among the lowest scores, with its bootstrap interval.

    Args:
        wrong: [N] whether the given label is wrong. given: [N] labels.

    Returns:
        "AUC"; "base rate"; "precision 0.05" and "interval 0.05"; "largest class 0.05", the share of the lowest that has the
        commonest of their labels.
    """
    found: dict[str, Any] = {"AUC": float(roc_auc_score(wrong, -scores.values.numpy())), "base rate": float(wrong.mean())}
    for share in SHARES:
        lowest = scores.lowest(share).numpy()
        hits = int(wrong[lowest].sum())
        found[f"precision {share}"] = hits / len(lowest)
        found[f"interval {share}"] = share_interval(hits, len(lowest))
        found[f"largest class {share}"] = float(np.bincount(given[lowest]).max() / len(lowest))
    return found
