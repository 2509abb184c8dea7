"""Combine: one score from those of several objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..combine import combined, doubled_ranks
from ..data.joining import as_text
from ..errors import InputError
from ..registry import check_choice
from ..scores import Scores
from .inputs import as_scores

HOW = ("rank", "union", "zsum")


def combine(objectives: Any, how: str = "rank") -> Scores:
    """Scores whose lowest are detrimental to several objectives, such as utility and fairness.

        how="rank":   the mean of the ranks, spread evenly over (−1, 1), ties sharing theirs: free of scale
        how="union":  the lowest of each objective in turn, so that the k lowest hold the k/Q lowest of each of Q objectives,
                      topped up by the next of each where these overlap; ties by the mean rank, then by index
        how="zsum":   the sum of the z-scores (s − mean)/standard deviation

    Args:
        objectives: a mapping from names, or a list, of what `trim` takes as scores [N]; or scores [N, Q] of Q queries: a Scores
            object, an array, a DataFrame, or the path of a file of scores.
        how: as above.

    Returns:
        Scores [N] in the order of the data, float64. Those of rank and union are places: their sign says below or above the
        median, no more.

    Raises:
        InputError, InputTypeError: fewer than two objectives, of different lengths or ids.

    >>> combine({"utility": torch.tensor([-2.0, 0.0, 1.0]), "fairness": torch.tensor([9.0, 0.0, -9.0])}).values.tolist()
    [0.0, 0.0, 0.0]
    >>> combine([torch.tensor([-2.0, 0.0, 1.0, 2.0]), torch.tensor([9.0, 8.0, -9.0, 7.0])], "union").lowest(2).tolist()
    [2, 0]
    """
    where = "combine"
    check_choice(where, "how", how, HOW)
    parts = _parts(where, objectives)
    names, first = list(parts), next(iter(parts.values()))
    with_ids = next((name for name, scores in parts.items() if scores.ids is not None), names[0])
    ids = parts[with_ids].ids
    for name, scores in parts.items():
        if len(scores) != len(first):
            raise InputError(
                f"{where}: expected objectives of the same samples; {names[0]!r} has {len(first)} and {name!r} "
                f"has {len(scores)}."
            )
        if scores.ids is not None and ids is not None and as_text(scores.ids) != as_text(ids):
            raise InputError(f"{where}: expected objectives of the same samples; {with_ids!r} and {name!r} have other ids.")
    every = torch.stack([scores.of().double() for scores in parts.values()], dim=1)
    if how == "union":
        values = _union(every)
    elif how == "rank":
        # One division of an exact sum: samples of the same mean rank stay equal, and ties go by index.
        total = torch.stack([doubled_ranks(column) for column in every.unbind(dim=1)]).sum(dim=0)
        values = total / (len(names) * max(len(every), 1)) - 1
    else:
        values = combined(every[:, :, None], [1.0] * len(names), "zscore")[:, 0]
    methods = {scores.method for scores in parts.values()}
    method = methods.pop() if len(methods) == 1 else "combined"
    return Scores(values, method, "combined", "reference", {"combine": how, "objectives": names}, ids)


def _parts(where: str, objectives: Any) -> dict[str, Scores]:
    """Scores [N] by name."""
    if isinstance(objectives, Mapping):
        parts = {str(name): as_scores(where, scores, str(name)) for name, scores in objectives.items()}
        if len(parts) < len(objectives):
            raise InputError(f"{where}: expected objectives of different names; got {', '.join(map(repr, objectives))}.")
    elif isinstance(objectives, (list, tuple)):
        parts = {str(number): as_scores(where, scores) for number, scores in enumerate(objectives)}
    else:
        found = as_scores(where, objectives, "objectives")
        columns = found.values.shape[1] if found.values.dim() == 2 and found.counted is None else 1
        names = found.queries or tuple(map(str, range(columns)))
        parts = {name: found.only(number) if found.values.dim() == 2 else found for number, name in enumerate(names)}
    if len(parts) < 2:
        raise InputError(f"{where}: expected at least two objectives; got {len(parts)}. One needs no combination.")
    return parts


def _union(every: Tensor) -> Tensor:
    """Places in the order of each sample's lowest rank [N], spread evenly over (−1, 1)."""
    count = len(every)
    order = torch.argsort(every, dim=0, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(0, order, torch.arange(count)[:, None].expand_as(order).contiguous())
    final = np.lexsort((ranks.sum(dim=1).numpy(), ranks.amin(dim=1).numpy()))  # stable, so the rest is by index
    places = torch.empty(count, dtype=torch.float64)
    places[torch.from_numpy(final)] = (2 * torch.arange(count, dtype=torch.float64) + 1) / max(count, 1) - 1
    return places
