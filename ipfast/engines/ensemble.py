"""Several heads on the same features: all their scores from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SPARSE_COST = 3.5
"""κ: what correcting for a dropped weight costs on the CPU, in units of a product with one weight (measured, as is γ)."""
GATHER_COST = 40.0
"""γ: what fetching a feature that some mask drops costs, in the same units; each is fetched once for all members."""
BF16_SPARSE_COST = 4.0
"""κ of bf16 products, whose features lie by columns already: γ is 0. (A processor without bf16 products computes in float32 and
would change to dense at a lower rate; what it loses in between is at most a third.)"""


@dataclass(frozen=True)
class EnsembleChoice:
    """How the logits of the members of a dropout ensemble are computed, and why."""

    name: str
    reason: str


def select_ensemble(
    *,
    rate: float,
    classes: int,
    width: int,
    members: int,
    device: str | torch.device = "cpu",
    precision: str | None = None,
) -> EnsembleChoice:
    """Choose how the logits of T dropout members are computed, and say why.

    "sparse" takes the dense product W h once and corrects it by the dropped entries of each member; "dense" takes a
    product with every masked W_m. Sparse is chosen where a feature's corrections cost less than the products it saves:

        κ·rate·C·T + γ·(1 − (1 − rate)^(C·T)) < (T − 1)·(C − 1)

    the second term for the features that some member drops, which must be fetched. (With few classes nearly all the work is
    in fetching; one class is the reference of the others and needs no product.) With precision="bf16" nothing is fetched and no
    class is the reference, which leaves κ·rate·T < T − 1.

    Args:
        rate: share of dropped weights. classes, width: of the head. members: T.
        device: where the features are.
        precision: of the products, as in ops.head_dot.

    Returns:
        The chosen name ("sparse" or "dense") and the reason.

    >>> select_ensemble(rate=0.01, classes=10, width=512, members=5).name
    'sparse'
    >>> select_ensemble(rate=0.5, classes=10, width=512, members=5).name
    'dense'
    """
    if torch.device(device).type != "cpu":
        return EnsembleChoice("dense", "on a GPU products are cheaper than gathers")
    entries = classes * members
    if precision == "bf16":
        cost, saved = BF16_SPARSE_COST * rate * entries, (members - 1) * classes
    else:
        cost = SPARSE_COST * rate * entries + GATHER_COST * (1 - (1 - rate) ** entries)
        saved = (members - 1) * max(classes - 1, 1)
    about = f"{cost:.3g} for corrections, {saved} for the products they save, at T={members}, rate={rate:g}, {classes}×{width}"
    return EnsembleChoice("sparse" if cost < saved else "dense", about)


@dataclass(frozen=True)
class Member:
    """One head z = scale·(W − D∘W) h + b, with D the dropped entries.

    Attributes:
        weight: W [C, d]. bias: b [C], as it is added. dropped: flat indices of D, or None. scale: on the kept entries.
    """

    weight: Tensor
    bias: Tensor | None
    dropped: Tensor | None = None
    scale: float = 1.0

    def dense(self) -> Tensor:
        """The member's own weight [C, d]."""
        if self.dropped is None:
            return self.weight
        weight = (self.weight * self.scale).contiguous()  # scikit-learn's lies by columns
        weight.view(-1)[self.dropped.to(weight.device)] = 0
        return weight


@dataclass
class _Call:
    """Arguments of one ops.head_dot: the scores of some columns of the result."""

    columns: list[int]
    weight: Tensor
    bias: Tensor | None
    gradient: Tensor
    bias_gradient: Tensor | None
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> _Call:
        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        weight, gradient = self.weight.to(device), self.gradient.to(device)
        return _Call(self.columns, weight, moved(self.bias), gradient, moved(self.bias_gradient), self.options)


class Stack:
    """T members with Q queries each, brought to as few calls of head_dot as they need.

    Args:
        members: T heads.
        gradients: G of each member, [C, d] or [Q, C, d]. bias_gradients: G_b of each, [C] or [Q, C]; None: the bias does not
            count.
        route: "sparse" corrects one product by the members' masks, "dense" multiplies with every member's weight.
    """

    def __init__(
        self, members: Sequence[Member], gradients: Sequence[Tensor], bias_gradients: Sequence[Tensor] | None, route: str
    ) -> None:
        queries = [g.reshape(-1, *g.shape[-2:]) for g in gradients]
        biases = None if bias_gradients is None else [g.reshape(-1, g.shape[-1]) for g in bias_gradients]
        self.members, self.queries = len(members), len(queries[0])
        self._calls: list[_Call] = []
        self._device: torch.device | None = None
        together: list[list[int]] = []
        if route == "sparse":
            scales = list(dict.fromkeys(member.scale for member in members if member.dropped is not None))
            for scale in scales:
                alike = [t for t, member in enumerate(members) if member.dropped is not None and member.scale == scale]
                # An unmasked member is one that drops nothing, where the kept entries are not scaled.
                together.append(sorted(alike + [t for t, m in enumerate(members) if m.dropped is None and scale == 1]))
            together += [[t] for t in range(len(members)) if not any(t in group for group in together)]
        elif self.queries == 1:
            together = [list(range(len(members)))]
        else:
            together = [[t] for t in range(len(members))]  # a product with W_m serves all queries of the member
        for group in together:
            self._calls.append(_call(members, queries, biases, group, self.queries, sparse=route == "sparse"))

    def scores(self, h: Tensor, dot: Callable[..., Tensor]) -> Tensor:
        """[B, T, Q] of a block; `dot` is HeadEngine.dot of the block, to be told the head and the query."""
        if self._device != h.device:
            self._calls, self._device = [call.to(h.device) for call in self._calls], h.device
        parts = [
            (call.columns, dot(call.gradient, call.bias_gradient, at=(call.weight, call.bias), **call.options))
            for call in self._calls
        ]
        if len(parts) == 1:
            return parts[0][1].view(len(parts[0][1]), self.members, self.queries)
        rows = len(parts[0][1])  # of token data fewer than those of h
        result = parts[0][1].new_empty(rows, self.members * self.queries)
        for columns, values in parts:
            result[:, columns] = values.view(rows, len(columns))
        return result.view(rows, self.members, self.queries)


def _call(
    members: Sequence[Member],
    queries: list[Tensor],
    biases: list[Tensor] | None,
    group: list[int],
    each: int,
    *,
    sparse: bool,
) -> _Call:
    """One call for the members `group`, with `each` queries a member."""
    chosen = [members[t] for t in group]
    columns = [t * each + q for t in group for q in range(each)]
    if len(columns) == 1:  # without a dimension for queries: what a single query at a single point always was
        gradient, bias_gradient = queries[group[0]][0], None if biases is None else biases[group[0]][0]
    else:
        gradient = torch.cat([queries[t] for t in group])
        bias_gradient = None if biases is None else torch.cat([biases[t] for t in group])
    if len(chosen) == 1 and (chosen[0].dropped is None or not sparse):
        return _Call(columns, chosen[0].dense(), chosen[0].bias, gradient, bias_gradient)
    bias: Tensor | None = None
    if chosen[0].bias is not None:
        bias = torch.stack([member.bias for member in chosen for _ in range(each) if member.bias is not None])
    if not sparse:
        return _Call(columns, torch.stack([member.dense() for member in chosen]), bias, gradient, bias_gradient)
    nothing = torch.empty(0, dtype=torch.int64)
    dropped = [nothing if member.dropped is None else member.dropped for member in chosen for _ in range(each)]
    scale = max((member.scale for member in chosen if member.dropped is not None), default=1.0)
    if len(columns) == 1:
        gradient, bias_gradient = gradient[None], None if bias_gradient is None else bias_gradient[None]
    options = {"dropped": dropped, "rescale": scale}
    return _Call(columns, chosen[0].weight, bias, gradient, bias_gradient, options)
