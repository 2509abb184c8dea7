"""Points that share features, at the last layer: their queries from one pass over V, their scores from one over the data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .data import Source
from .engines import EnsembleChoice, HeadEngine, Labels, LastLayer, Member, Stack, TokenLabels, select_ensemble
from .errors import InputError
from .impacts import Impact
from .methods import Method
from .points import Mask, Point
from .terms import Dot, LossDeviation, Quadratic, Term

VALIDATION_LOGITS = 1 << 24
"""Logits of validation tokens that are held at once."""


@dataclass(frozen=True)
class ValidationRows:
    """Rows of V: samples, or the counted tokens of sequences.

    Attributes:
        start: number of the first row, of tokens that of the first sequence of their block.
        features, labels: [B, d] and [B] or [B, C].
        query: of each row [B] or of all.
        tokens: which tokens the rows are; None: they are samples.
        shares: weight of each token in the loss of its sequence [B]. opens: whether it is the first of its sequence [B].
        empty: how many sequences without a counted token came up.
    """

    start: int
    features: Tensor
    labels: Tensor
    query: Tensor | int
    tokens: TokenLabels | None = None
    shares: Tensor | None = None
    opens: Tensor | None = None
    empty: int = 0

    def weighted(self, each: Tensor) -> Tensor:
        """Values or cotangents of the rows, each times its share."""
        return each if self.shares is None else each * self.shares.to(each.dtype).view(-1, *[1] * (each.dim() - 1))

    def samples(self, rows: Any) -> int:
        """How many samples some of the rows are: of tokens the sequences that begin there."""
        return len(self.labels[rows]) if self.opens is None else int(self.opens[rows].sum())


@dataclass(frozen=True)
class Validation:
    """V, cut into Q groups of which each makes a query of its own.

    Attributes:
        sources: one, or one for each query.
        names: of the queries; None: V is one query.
        groups: [M] number of the query that each row of the only source belongs to; None: a source is a query.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...] | None = None
    groups: Tensor | None = None

    @property
    def queries(self) -> int:
        return 1 if self.names is None else len(self.names)

    def blocks(self, engine: HeadEngine) -> Iterator[ValidationRows]:
        """All of V in contiguous blocks of BLOCK_ROWS, or of token_rows(C) tokens."""
        for index, source in enumerate(self.sources):
            for start, block, labels in engine.blocks("val", source):
                if isinstance(labels, TokenLabels):
                    yield from self._tokens(engine, start, block, labels, index)
                    continue
                for first in range(0, len(block), ops.BLOCK_ROWS):
                    # Contiguous, since a library product of other strides may round otherwise.
                    h, y = block[first : first + ops.BLOCK_ROWS].contiguous(), labels[first : first + ops.BLOCK_ROWS]
                    row = start + first
                    self._require_groups(engine, row + len(h))
                    yield ValidationRows(
                        row, h, y, index if self.groups is None else self.groups[row : row + len(h)].to(h.device)
                    )

    def _tokens(
        self, engine: HeadEngine, start: int, block: Tensor, labels: TokenLabels, index: int
    ) -> Iterator[ValidationRows]:
        """The rows of a block of sequences; at least one, which may be empty, since it carries the count of the empty ones."""
        self._require_groups(engine, start + len(labels.counts))
        queries = None if self.groups is None else self.groups[start : start + len(labels.counts)].to(block.device)
        shares, empty = labels.shares(), int((labels.counts == 0).sum())
        opens = labels.sequence.diff(prepend=labels.sequence.new_tensor([-1])) != 0
        size = token_rows(engine.last.outputs)
        for first in range(0, max(len(block), 1), size):
            rows = slice(first, first + size)
            part, h = labels.cut(rows), block[rows].contiguous()
            query = index if queries is None else queries[part.sequence]
            yield ValidationRows(start, h, part.labels, query, part, shares[rows], opens[rows], 0 if first else empty)

    def _require_groups(self, engine: HeadEngine, rows: int) -> None:
        if self.groups is not None and rows > len(self.groups):
            raise InputError(
                f"{engine.where}: expected val_groups to hold one group for each sample of val; got {len(self.groups)}."
            )


def token_rows(classes: int) -> int:
    """Tokens of V at once: BLOCK_ROWS, and fewer where C is a vocabulary, since their logits are held in float64."""
    return max(64, min(ops.BLOCK_ROWS, VALIDATION_LOGITS // classes))


@dataclass
class Group:
    """Points whose features are the same, so that one pass over the data serves them all.

    Attributes:
        engine: at the state of these points.
        points, members: θ_t, and its head.
        choice: how the members' logits are computed.
    """

    engine: HeadEngine
    points: list[Point]
    members: list[Member]
    choice: EnsembleChoice


def groups(engine: HeadEngine, points: Iterable[Point]) -> Iterator[Group]:
    """Points in groups, in order: heads on given features are one group; of a network every stored state is one."""
    waiting: list[Point] = []
    for point in points:
        everywhere = point.mask is not None and point.mask.scope == "all"
        if not everywhere and (engine.last.backbone is None or point.state is None):
            waiting.append(point)
            continue
        if waiting:
            yield _group(engine, waiting)
            waiting = []
        yield _group(engine.at(_state(engine, point)), [point])
    if waiting:
        yield _group(engine, waiting)


def _group(engine: HeadEngine, points: list[Point]) -> Group:
    last = engine.last
    members = []
    for point in points:
        # The state of a network has been loaded into it.
        by_state = point.state is not None and last.backbone is None
        head = last.at(engine.where, point.state.load(engine.where)) if by_state and point.state is not None else last
        members.append(_member(engine.where, head, point.mask))
    masks = [point.mask for point in points if point.mask is not None]
    if not masks or any(point.state is not None for point in points) or masks[0].scope == "all":
        return Group(engine, points, members, EnsembleChoice("dense", "every point has parameters of its own"))
    device = last.weight.device if engine.device is None else engine.device
    choice = select_ensemble(
        rate=max(mask.rate for mask in masks),
        classes=last.outputs,
        width=last.width,
        members=len(members),
        device=device,
        precision=engine.precision,
    )
    return Group(engine, points, members, choice)


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
    return {**state, **point.mask.masked(parameters)}


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


class QueryMaker:
    """The terms of one group after another, from passes over V.

    Args:
        method: what is scored.
        impact: what should improve.
        validation: V; None for target "self".
    """

    def __init__(self, method: Method, impact: Impact, validation: Validation | None) -> None:
        self.method, self.impact, self.validation = method, impact, validation
        self.stats: dict[str, Any] = {}
        self._base_loss: Tensor | None = None

    def terms(self, group: Group) -> list[Term]:
        """The term of each point of a group."""
        floor = self.method.points.deviation_floor
        if self.validation is None:
            if floor is not None:
                return [LossDeviation(point.weight, point, None, floor) for point in group.points]
            return [Quadratic(point.weight, point, self.method.curvature) for point in group.points]
        started = time.perf_counter()
        made: list[Term] = []
        if floor is not None:
            for point, value in zip(group.points, self._losses(group), strict=True):
                self._base_loss = value.clamp(min=floor) if self._base_loss is None else self._base_loss
                made.append(LossDeviation(point.weight, point, value - self._base_loss, floor))
        else:
            for point, (gradient, bias_gradient) in zip(group.points, self._gradients(group), strict=True):
                made.append(Dot(point.weight, point, gradient, bias_gradient if group.engine.include_bias else None))
        self.stats["impact"] = self.impact.name
        self.stats["query_seconds"] = self.stats.get("query_seconds", 0.0) + time.perf_counter() - started
        return made

    def _losses(self, group: Group) -> Tensor:
        """Mean validation loss of each point and query: [T, Q] float64."""
        assert self.validation is not None
        total = torch.zeros(len(group.members), self.validation.queries, dtype=torch.float64)
        counts = torch.zeros(self.validation.queries, dtype=torch.int64)
        empty = 0
        for block in self.validation.blocks(group.engine):
            h, y = block.features, block.labels
            for t, member in enumerate(group.members):
                values = group.engine.loss_values(h, y, at=(member.dense(), member.bias))
                group.engine.require_finite("val", block.start, h, values, block.tokens)
                values = block.weighted(values.double())
                for q, rows in _cut(block.query):
                    total[t, q] += float(values[rows].sum())
            for q, rows in _cut(block.query):
                counts[q] += block.samples(rows)
            empty += block.empty
        self._about(counts, [], empty, of_tokens=bool(group.engine.of_tokens.get("val")))
        return total / counts

    def _gradients(self, group: Group) -> list[tuple[Tensor, Tensor]]:
        """(G, G_b) of each point, [C, d] and [C], or [Q, C, d] and [Q, C]: products in the dtype of the features, sums in
        float64."""
        assert self.validation is not None
        engine, impact, several = group.engine, self.impact, self.validation.queries
        weights = [member.dense() for member in group.members]
        count, outputs = len(weights), engine.last.outputs
        kept: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}
        total: list[list[Tensor | None]] = [[None] * several for _ in weights]
        bias_total: list[list[Tensor | None]] = [[None] * several for _ in weights]
        rows_seen = torch.zeros(several, dtype=torch.int64)
        class_counts = torch.zeros(several, outputs, dtype=torch.int64)
        dtype = torch.float32

        def add(t: int, q: int, h: Tensor, cotangent: Tensor) -> None:
            part = (cotangent.to(dtype).T @ h.to(dtype)).double()
            bias_part = cotangent.double().sum(dim=0)
            before, bias_before = total[t][q], bias_total[t][q]
            total[t][q] = part if before is None else before.add_(part)
            bias_total[t][q] = bias_part if bias_before is None else bias_before.add_(bias_part)

        empty = 0
        for block in self.validation.blocks(engine):
            h, y = block.features, block.labels
            dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
            cut = _cut(block.query)
            for t, (weight, member) in enumerate(zip(weights, group.members, strict=True)):
                z = engine.logits(h, at=(weight, member.bias))
                engine.require_finite("val", block.start, h, z.sum(dim=1), block.tokens)
                cotangent = block.weighted(impact.cotangent(z.double(), y, engine.loss)) if impact.additive else None
                for q, rows in cut:
                    if cotangent is not None:
                        add(t, q, h[rows], cotangent[rows])
                    else:
                        # f needs all logits before any cotangent is known; V is small beside the training set, so it stays.
                        kept.setdefault((t, q), []).append((h[rows].clone(), y[rows].clone(), z[rows].double()))
            for q, rows in cut:
                rows_seen[q] += block.samples(rows)
                if y.dtype == torch.int64 and y.dim() == 1:
                    labels = y[rows]
                    class_counts[q] += torch.bincount(labels[labels >= 0], minlength=outputs)[:outputs].cpu()
            empty += block.empty
        counted = class_counts.tolist() if engine.loss.form == "cross_entropy" else []
        self._about(rows_seen, counted, empty, of_tokens=bool(engine.of_tokens.get("val")))
        for (t, q), blocks in kept.items():
            every_z, every_y = torch.cat([z for _, _, z in blocks]), torch.cat([y for _, y, _ in blocks])
            cotangents = torch.split(impact.cotangent(every_z, every_y, engine.loss), [len(h) for h, _, _ in blocks])
            for (h, _, _), cotangent in zip(blocks, cotangents, strict=True):
                add(t, q, h, cotangent)
        made, norms = [], []
        for t in range(count):
            pairs = []
            for q in range(several):
                gradient, bias_gradient = total[t][q], bias_total[t][q]
                assert gradient is not None
                assert bias_gradient is not None
                divisor = int(rows_seen[q]) if impact.additive else 1
                pair = gradient / divisor, bias_gradient / divisor
                mask, dropped = group.points[t].mask, group.members[t].dropped
                if mask is not None and mask.chain and dropped is not None:
                    pair = _through_mask(*pair, mask, dropped, engine.last.parameters[1])
                norms.append(float(torch.sqrt(pair[0].square().sum() + pair[1].square().sum())))
                if not torch.isfinite(pair[0]).all():
                    raise InputError(
                        "query: expected a finite gradient of the impact; got NaN or infinity. Check the impact function."
                    )
                pairs.append((pair[0].to(dtype), pair[1].to(dtype)))
            if self.validation.names is None:
                made.append(pairs[0])
            else:
                made.append((torch.stack([g for g, _ in pairs]), torch.stack([gb for _, gb in pairs])))
        before = self.stats.get("query_norm")
        norms = norms if before is None else [*(before if isinstance(before, list) else [before]), *norms]
        self.stats["query_norm"] = norms[0] if len(norms) == 1 else norms
        return made

    def _about(self, counts: Tensor, class_counts: list[list[int]], empty: int, *, of_tokens: bool) -> None:
        assert self.validation is not None
        if not bool((counts > 0).all()):
            if of_tokens:
                raise InputError(
                    "query: expected a token that counts in val, for each query; all labels are the ignored one. Pass "
                    "validation sequences with labels."
                )
            raise InputError("query: expected at least one sample in val; it is empty.")
        one = self.validation.names is None
        samples = int(counts.sum()) + empty
        if self.validation.groups is not None and samples != len(self.validation.groups):
            raise InputError(
                f"query: expected val_groups to hold one group for each of the {samples} samples of val; got "
                f"{len(self.validation.groups)}."
            )
        if of_tokens:
            self.stats["val_empty_sequences"] = empty
        self.stats["M"] = int(counts[0]) if one else counts.tolist()
        if class_counts:
            self.stats["val_class_counts"] = class_counts[0] if one else class_counts


def _cut(query: Tensor | int) -> list[tuple[int, Any]]:
    """(query, its rows of a block) for each query of the block."""
    if isinstance(query, int):
        return [(query, slice(None))]
    return [(int(q), (query == q).nonzero().squeeze(1)) for q in torch.unique(query)]


def _through_mask(
    gradient: Tensor, bias_gradient: Tensor, mask: Mask, dropped: Tensor, bias_name: str
) -> tuple[Tensor, Tensor]:
    """The query that gives ⟨m∘G, m∘∇ℓ⟩ = ⟨m²∘G, ∇ℓ⟩ with m = scale·(1 − D): gradients through the mask."""
    gradient = (gradient * mask.scale**2).contiguous()
    gradient.view(-1)[dropped.to(gradient.device)] = 0
    if mask.bias:
        bias_gradient = bias_gradient * mask.scale**2
        bias_gradient[mask.dropped(bias_name, tuple(bias_gradient.shape)).to(bias_gradient.device)] = 0
    return gradient, bias_gradient


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
            if self.terms and isinstance(self.terms[index], Quadratic):
                by_point.append(-engine.norm(h, y, at=head))
            else:
                values = engine.loss_values(h, y, at=head)
                by_point.append(values if self.terms else -values)
        return by_point[0][:, None, None] if len(by_point) == 1 else torch.stack(by_point, dim=1)[:, :, None]
