"""From the scores at each point to one score: means, z-scores, ranks, loss deviations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .terms import LossDeviation, Term


def weighted_sum(columns: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_t w_t s_t of [B, T, Q]: [B, Q]. Elementwise, so that a row's bits do not depend on the rows around it."""
    total: Tensor | None = None
    for t, weight in enumerate(weights):
        part = columns[:, t] if weight == 1 else columns[:, t] * weight
        total = part if total is None else total + part
    assert total is not None
    return total


def combined(members: Tensor, weights: Sequence[float], combine: str, has_loss: Tensor | None = None) -> Tensor:
    """[N, Q] from the scores of all points [N, T, Q]: their weighted sum, or that of their z-scores or ranks over N.

    Args:
        has_loss: [N] bool, false for sequences in which no token counts: they stay 0 and are not among the N; None: all.
    """
    if combine == "mean":
        return weighted_sum(members, weights)
    rows = torch.ones(len(members), dtype=torch.bool) if has_loss is None else has_loss
    standard = torch.zeros_like(members)
    for t in range(members.shape[1]):
        for q in range(members.shape[2]):
            column = members[rows, t, q].double()
            standard[rows, t, q] = (_ranks(column) if combine == "rank" else _zscores(column)).to(standard)
    return weighted_sum(standard, weights)


def _zscores(s: Tensor) -> Tensor:
    """(s − mean)/standard deviation; zero where all are equal."""
    largest = s.abs().max() if len(s) else s.new_zeros(())
    s = s / largest if largest > 0 else s  # whose squares may be too small or too large for a number
    centred = s - s.mean()
    spread = centred.square().mean().sqrt()
    # Equal scores may have a mean that differs from them by its rounding.
    return centred / spread if len(s) and s.min() < s.max() else torch.zeros_like(s)


def _ranks(s: Tensor) -> Tensor:
    """Ranks spread evenly over (−1, 1), zero for the median; equal scores share their mean rank."""
    return doubled_ranks(s) / len(s) - 1


def doubled_ranks(s: Tensor) -> Tensor:
    """2r − 1 of the ranks r = 1..N, equal scores sharing their mean rank: whole numbers, whose sums are exact."""
    _, place, counts = torch.unique(s, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle = last - (counts.double() - 1) / 2
    found: Tensor = 2 * middle - 1
    return found[place]


def deviations(columns: Tensor, terms: Sequence[Term]) -> Tensor:
    """[N, T, Q] of the loss-deviation estimator from the losses [N, 1 + T, 1] at θ̂ and at each point."""
    first, *rest = terms
    assert isinstance(first, LossDeviation)
    moved = columns[:, 1:] - columns[:, :1].clamp(min=first.floor)
    if first.deviation is None:
        return -moved.square()
    c = torch.stack([term.deviation for term in rest if isinstance(term, LossDeviation) and term.deviation is not None])
    return moved * c.to(moved)


def by_deviation(terms: Sequence[Term]) -> bool:
    """Whether terms are those of the loss-deviation estimator, which compares each point with the first."""
    return bool(terms) and isinstance(terms[0], LossDeviation)
