"""Reweight: train on all samples, each as much as its score says."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from .inputs import as_scores

VANISHED = 1e-290
"""A weight so small that it changes no sum, by which the mean weight can still be divided."""


def reweight(
    scores: Any, *, temperature: float | None = None, clip: float | None = None, query: int | str | None = None
) -> Tensor:
    """Weights w_i = N exp(s_i/τ) / Σ_j exp(s_j/τ), whose mean is 1, so that a regulariser keeps its strength.

    Args:
        scores, query: as in `trim`.
        temperature: τ; None: the standard deviation of the scores (with N), so that their scale has no effect. 1 is the plain
            softmax, which for small scores changes nothing and for large ones leaves a single sample.
        clip: largest weight, 1 or more; what it cuts off goes to the others in proportion, so that the mean stays 1.

    Returns:
        [N] float64, in the order of the data: the sample weights of a fit, or of a sampler (`curate.sampler`). All are 1 where
        the scores are equal.

    Raises:
        InputError, InputTypeError: temperature is not positive, clip is below 1, or a score is NaN.

    Source: section 7 of arXiv 2405.17490, whose softmax has neither N nor τ.

    >>> s = torch.tensor([0.0, 0.0, math.log(4.0)], dtype=torch.float64)
    >>> reweight(s, temperature=1.0).round(decimals=9).tolist()
    [0.5, 0.5, 2.0]
    """
    where = "reweight"
    for name, value, least in (("temperature", temperature, 0.0), ("clip", clip, 1.0)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputTypeError(f"{where}: expected {name} to be a number; got {type(value).__name__}.")
        if not (value > 0 and least <= value < math.inf):
            bound = "positive" if name == "temperature" else "1 or more, since the mean weight is 1"
            raise InputError(f"{where}: expected {name} to be finite and {bound}; got {value:g}.")
    s = as_scores(where, scores, query=query).of().double()
    if not len(s):
        return s
    # By a power of two, which rounds nothing, so that neither squares nor differences of the scores overflow or vanish.
    scale = 2.0 ** -min(max(math.frexp(float(s.abs().max()))[1], -1000), 1000)
    s = s * scale
    tau = float(s.std(correction=0)) if temperature is None else max(float(temperature) * scale, math.ulp(0.0))
    if tau == 0:  # all scores are equal
        return torch.ones_like(s)
    # Before the division, which for a small τ would overflow.
    w = torch.softmax((s - s.max()) / tau, dim=0) * len(s)
    return w if clip is None else _clipped(w, float(clip))


def _clipped(w: Tensor, clip: float) -> Tensor:
    """min(a·w, clip) with the a for which the mean is 1."""
    # Weights that have vanished share what is left alike.
    ordered, order = torch.sort(w.clamp(min=VANISHED), descending=True, stable=True)
    count = len(w)
    below = ordered.flip(0).cumsum(0).flip(0)  # sum of the k-th and all smaller ones
    at_most = torch.arange(count, dtype=w.dtype)  # k are at the clip
    factor = (count - at_most * clip) / below
    fits = (factor * ordered <= clip * (1 + 1e-12)) & (factor >= 0)
    first = int(fits.nonzero()[0])
    result = torch.empty_like(w)
    result[order] = torch.cat([torch.full((first,), clip, dtype=w.dtype), ordered[first:] * factor[first]]).clamp(max=clip)
    return result
