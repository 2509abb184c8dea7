"""Points that share features, at the last layer, and their scores from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature import Problem, QuadraticFactors, refuse_tokens
from ..curvature.features import ROWS
from ..engines import EnsembleChoice, HeadEngine, Labels, LastLayer, Member, Stack, select_ensemble
from ..errors import InputError
from ..points import Mask, Point
from ..terms import Dot, Quadratic, Term


@dataclass
class Group:
    """Points whose features are the same, so that one pass over the data serves them all.

    Attributes:
        number: of the group among all, in order.
        engine: at the state of these points.
        points, members: θ_t, and its head.
        choice: how the members' logits are computed.
    """

    number: int
    engine: HeadEngine
    points: list[Point]
    members: list[Member]
    choice: EnsembleChoice

    def entered(self) -> AbstractContextManager[Any]:
        """While the points are met: nothing is edited for them."""
        return nullcontext()


def groups(engine: HeadEngine, points: Iterable[Point]) -> Iterator[Group]:
    """Points in groups, in order: heads on given features are one group; of a network every stored state is one."""
    for number, (at, together) in enumerate(_together(engine, points)):
        yield _group(number, at, together)


def _together(engine: HeadEngine, points: Iterable[Point]) -> Iterator[tuple[HeadEngine, list[Point]]]:
    waiting: list[Point] = []
    for point in points:
        everywhere = point.mask is not None and point.mask.scope == "all"
        if not everywhere and (engine.last.backbone is None or point.state is None):
            waiting.append(point)
            continue
        if waiting:
            yield engine, waiting
            waiting = []
        yield engine.at(_state(engine, point)), [point]
    if waiting:
        yield engine, waiting


def _group(number: int, engine: HeadEngine, points: list[Point]) -> Group:
    last = engine.last
    members = []
    for point in points:
        # The state of a network has been loaded into it.
        by_state = point.state is not None and last.backbone is None
        head = last.at(engine.where, point.state.load(engine.where)) if by_state and point.state is not None else last
        members.append(_member(engine.where, head, point.mask))
    masks = [point.mask for point in points if point.mask is not None]
    if not masks or any(point.state is not None for point in points) or masks[0].scope == "all":
        return Group(number, engine, points, members, EnsembleChoice("dense", "every point has parameters of its own"))
    device = last.weight.device if engine.device is None else engine.device
    choice = select_ensemble(
        rate=max(mask.rate for mask in masks),
        classes=last.outputs,
        width=last.width,
        members=len(members),
        device=device,
        precision=engine.precision,
    )
    return Group(number, engine, points, members, choice)


def _state(engine: HeadEngine, point: Point) -> Mapping[str, Tensor]:
    """All parameters and buffers of the network at a point, every weight masked where the mask says so."""
    module = engine.last.backbone
    if module is None:
        raise InputError(
            f"{engine.where}: expected a network with Dropout(scope='all'), whose features are computed anew for each "
            "member; got features. Pass the network and its inputs, or leave scope out."
        )
    state = module.state_dict() if point.state is None else dict(point.state.load(engine.where))
    if point.mask is None:
        return state
    parameters = {name: state[name] for name, value in module.named_parameters() if value.dtype.is_floating_point}
    masked = point.mask.masked(parameters)
    # Tied parameters are in a state under all their names, of which the last one loaded holds.
    first = {id(value): name for name, value in module.named_parameters()}
    tied = {name: first[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}
    return {**state, **{name: masked[other] for name, other in tied.items() if other in masked}}


def _member(where: str, last: LastLayer, mask: Mask | None) -> Member:
    """The head with its mask."""
    if mask is None or mask.scope == "all":  # carried out in the whole network
        return Member(last.weight, last.bias)
    weight_name, bias_name = last.parameters
    foreign = [name for name in mask.names if name not in last.parameters]
    if foreign:
        raise InputError(
            f"{where}: expected names of Dropout to map {weight_name!r} or {bias_name!r}, the parameters of the scored layer; "
            f"got {foreign[0]!r}."
        )
    dropped = mask.dropped(weight_name, tuple(last.weight.shape))
    bias = last.bias
    if mask.bias and bias is not None:
        bias = bias * mask.scale
        bias[mask.dropped(bias_name, tuple(bias.shape)).to(bias.device)] = 0
    return Member(last.weight, bias, dropped, mask.scale)


class GroupScorer:
    """The columns of a group for a block: of each point t and query q its own score, not yet weighted or combined.

    Args:
        group: the points.
        terms: one for each of them; none for the control "loss", whose column is −ℓ_i.
    """

    def __init__(self, group: Group, terms: list[Term]) -> None:
        self.engine, self.members, self.terms = group.engine, group.members, terms
        self.weights = [term.weight for term in terms] or [1.0]
        self.route = group.choice
        self.stack: Stack | None = None
        if terms and isinstance(terms[0], Dot):
            dots = [term for term in terms if isinstance(term, Dot)]
            biases = [term.bias_gradient for term in dots if term.bias_gradient is not None]
            self.stack = Stack(
                group.members, [term.gradient for term in dots], biases if len(biases) == len(dots) else None, group.choice.name
            )

    @property
    def columns(self) -> int:
        """How many scores a row of features gives."""
        return len(self.members) * (1 if self.stack is None else self.stack.queries)

    def __call__(self, h: Tensor, y: Labels) -> Tensor:
        """[B, T, Q], of token data a row for each sequence or token. Self-influence and loss are negated: positive is
        beneficial in every method."""
        engine = self.engine
        if self.stack is not None:
            return self.stack.scores(h, lambda *query, **options: engine.dot(h, y, *query, **options))
        by_point = []
        for index, member in enumerate(self.members):
            head = member.dense(), member.bias
            term = self.terms[index] if self.terms else None
            if isinstance(term, Quadratic) and term.factors is not None and term.problem is not None:
                by_point.append(-self._quadratic(term.factors, term.problem, h, y))
            elif isinstance(term, Quadratic):
                by_point.append(-engine.norm(h, y, at=head))
            else:
                values = engine.loss_values(h, y, at=head)
                by_point.append(values if self.terms else -values)
        return by_point[0][:, None, None] if len(by_point) == 1 else torch.stack(by_point, dim=1)[:, :, None]

    def _quadratic(self, factors: QuadraticFactors, problem: Problem, h: Tensor, y: Labels) -> Tensor:
        """⟨g_i, H⁻¹ g_i⟩ of a block, in the dtype of its scores."""
        if not isinstance(y, Tensor):
            refuse_tokens(self.engine.where)
        dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
        pieces = [
            factors.quadratic(problem.block(h[first : first + ROWS], y[first : first + ROWS]))
            for first in range(0, len(h), ROWS)
        ]
        return torch.cat(pieces).to(dtype)
