"""Relabel: give the lowest scores another class."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from ..losses import Loss
from ..query_file import Query
from ..registry import check_choice
from ..terms import Dot
from .head_outputs import head_outputs
from .inputs import as_scores, by_class, hard_labels
from .selection import lowest

HOW = ("flip", "runner_up", "rdia_soft", "ip_relabel")


def relabel(
    scores: Any,
    amount: float,
    labels: Any,
    *,
    how: str = "flip",
    logits: Any = None,
    label_scores: Any = None,
    within: Any = None,
    query: int | str | None = None,
) -> Tensor:
    """Labels in which the samples of the lowest scores have another class.

        how="flip":        y ← the other one of two classes: 1 − y of 0 and 1
        how="runner_up":   y ← argmax over c ≠ y of p(c): what the model predicts, or the second where it predicts y
        how="rdia_soft":   soft targets t_y = 0, t_c = ln(1 − p_y) / ((K − 1) ln p_c), whose cross-entropy is −ln(1 − p_y);
                           of two classes they are the flip
        how="ip_relabel":  y ← argmax over c ≠ y of the sample's score if its label were c

    Args:
        scores, amount, within, query: as in `trim`, whose samples these are.
        labels: [N] whole numbers from 0 on, or [N, 1]; an array, a tensor or an .npy path. Of flip any two whole numbers, as −1
            and 1.
        logits: [N, C] of the training samples, for runner_up and rdia_soft; [N] of a binary head with one output.
        label_scores: [N, C] as `curate.label_scores` gives them, for ip_relabel.

    Returns:
        New labels of all N samples, in the shape and dtype of those given (int64 for NumPy arrays that are unsigned or bool);
        of rdia_soft targets [N, C] in that of the logits, one-hot where nothing changed. They need not sum to one, and
        `losses.CrossEntropy` and torch take them as they are.

    Raises:
        InputError, InputTypeError: labels do not fit the scores, the logits or `how`.

    Source: section 7 of arXiv 2405.17490 flips binary labels; the soft ones are of RDIA, Kong et al., ICLR 2022.

    >>> relabel(torch.tensor([0.3, -1.0, 0.2]), 1, torch.tensor([0, 1, 1])).tolist()
    [0, 0, 1]
    """
    where = "relabel"
    check_choice(where, "how", how, HOW)
    found = as_scores(where, scores, query=query)
    given, whole = hard_labels(where, labels, len(found), least=None if how == "flip" else 0)
    for name, value, users in (("logits", logits, ("runner_up", "rdia_soft")), ("label_scores", label_scores, ("ip_relabel",))):
        if value is None and how in users:
            raise InputError(f"{where}: expected {name} with how={how!r}; got None.")
        if value is not None and how not in users:
            raise InputError(f"{where}: expected no {name} with how={how!r}, which does not look at them. Leave them out.")
    rows = lowest(where, found, amount, within=within)
    if how == "flip":
        new = _sum_of_two(where, whole) - whole[rows]
    elif how == "rdia_soft":
        z = by_class(where, "logits", logits, len(found), whole)
        targets = torch.nn.functional.one_hot(whole, z.shape[1]).to(z.dtype)
        targets[rows] = _soft(z[rows].double(), whole[rows]).to(z.dtype)
        return targets
    else:
        values = logits if how == "runner_up" else label_scores
        each = by_class(where, "logits" if how == "runner_up" else "label_scores", values, len(found), whole)
        if each.shape[1] < 2:
            raise InputError(f"{where}: expected two classes or more, to choose another; got one.")
        own = whole[rows][:, None]
        new = each[rows].scatter(1, own, -torch.inf).argmax(dim=1)
    cast = new.to(given.dtype)
    if bool((cast.long() != new).any()):
        wrong = int(new[(cast.long() != new).nonzero()[0, 0]])
        raise InputError(
            f"{where}: expected labels of a dtype that holds class {wrong}; got {given.dtype}. Pass them as int64."
        )
    given[rows] = cast.view_as(given[rows])
    return given


def _sum_of_two(where: str, whole: Tensor) -> int:
    """a + b of the two classes of labels, of which a flip makes a + b − y; 0 and 1 where one label is missing."""
    classes = torch.unique(whole)
    if not bool(((classes == 0) | (classes == 1)).all()) and len(classes) != 2:
        row = int(((whole != 0) & (whole != 1)).nonzero()[0])
        raise InputError(
            f"{where}: expected labels of two classes, as 0 and 1, with how='flip'; got {len(classes)}, as {int(whole[row])} "
            f"at row {row}. Of several classes pass how='runner_up' and the logits."
        )
    return int(classes.sum()) if len(classes) == 2 else 1


def _soft(z: Tensor, y: Tensor) -> Tensor:
    """ln(1 − p_y) / ((K − 1) ln p_c) [k, K], and 0 at y, from logarithms that are precise near p = 1."""
    own = y[:, None]
    others = z.scatter(1, own, -torch.inf).logsumexp(dim=1, keepdim=True)
    missed = -torch.logaddexp(z.gather(1, own) - others, z.new_zeros(()))  # ln(1 − p_y)
    top = z.argmax(dim=1, keepdim=True)
    below = z - z.gather(1, top)
    rest = torch.exp(below).scatter(1, top, 0).sum(dim=1, keepdim=True).log1p()
    ratio = missed / (below - rest)
    # Where p_c is one even as a logarithm, p_y has vanished beside it: the limit for all others vanishing too.
    ratio = torch.where(below - rest == 0, torch.ones_like(ratio), ratio)
    return (ratio / (z.shape[1] - 1)).scatter(1, own, 0)


def label_scores(query: Any, features: Any) -> Tensor:
    """What each sample would score under each label c, up to a number of the sample: −Σ_t w_t u_t with u_t = G_t h + G_b,t.

    The score of a sample with label c is E_p[u] − u_c, so the best label is the one of the lowest u. Label smoothing ε makes
    1 − ε times as much of their differences, and so do the values here. With a pos_weight the order of both labels is that of
    their scores, and their difference the one without the weight.

    Args:
        query: of `ipfast.query` at the last layer, or the path of a stored one; of one query.
        features: h [N, d], the inputs of the head: an array, a tensor, or the path of an .npy file, or of an .npz or
            .safetensors file that holds `features`.

    Returns:
        [N, C], higher is better; [N, 2] for a binary head with one output. float64 for float64 features, else float32.

    Raises:
        InputError, InputTypeError: the query is of another head, of a whole network or of several queries. NonFiniteError: a
            sample has NaN or infinite features.
    """
    where = "label_scores"
    if isinstance(query, (str, os.PathLike)):
        query = Query.load(query)
    if not isinstance(query, Query):
        raise InputTypeError(f"{where}: expected query to be made by ipfast.query; got {type(query).__name__}.")
    terms = [term for term in query.terms if isinstance(term, Dot)]
    if not terms or len(terms) != len(query.terms) or query.queries is not None or query.combine != "mean":
        raise InputError(
            f"{where}: expected a query of one validation set at the last layer, whose members are averaged; got another one."
        )
    outputs, width = terms[0].gradient.shape
    form, weight = query.loss.form if isinstance(query.loss, Loss) else "callable", getattr(query.loss, "weight", None)
    if (form, outputs > 1) not in (("cross_entropy", True), ("bce_with_logits", False)) or weight is not None:
        raise InputError(
            f"{where}: expected a query of cross_entropy without class weights, or of bce_with_logits of one output; got "
            f"{form} of {outputs}{' with weights' if weight is not None else ''}."
        )

    sharpness = 1 - getattr(query.loss, "label_smoothing", 0.0)

    def under_each_label(h: Tensor) -> Tensor:
        total = h.new_zeros(len(h), outputs)
        for term in terms:
            u = h @ term.gradient.to(h).T
            total -= sharpness * term.weight * (u if term.bias_gradient is None else u + term.bias_gradient.to(h))
        return total

    total = head_outputs(where, features, width, outputs, under_each_label)
    return total if outputs > 1 else torch.cat([torch.zeros_like(total), total], dim=1)
