"""Queries at the last layer: G = Z̄ᵀ H of the validation features and the cotangents of their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..curvature import HeadProblem, TrainRows, refuse_tokens
from ..curvature.features import HELD_BYTES
from ..engines import HeadEngine, TokenLabels
from ..errors import InputError
from ..fingerprint import fingerprint
from ..losses import loss_name
from ..points import Mask
from ..terms import Dot, Quadratic, Term
from .head import Group
from .query_maker import QueryMaker
from .validation import Validation, cut

VALIDATION_LOGITS = 1 << 24
"""Logits of validation tokens that are held at once."""


@dataclass(frozen=True)
class ValidationRows:
    """Rows of V: samples, or the counted tokens of sequences.

    Attributes:
        start: number of the first row, of tokens that of the first sequence of their block.
        features, labels: [B, d] and [B] or [B, C].
        query: of each row [B] or of all.
        argument: "val", or "pairs" where they are counterparts.
        tokens: which tokens the rows are; None: they are samples.
        shares: weight of each token in the loss of its sequence [B]. opens: whether it is the first of its sequence [B].
        empty: how many sequences without a counted token came up.
    """

    start: int
    features: Tensor
    labels: Tensor
    query: Tensor | int
    argument: str = "val"
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


def validation_rows(validation: Validation, engine: HeadEngine) -> Iterator[ValidationRows]:
    """All of V in contiguous blocks of BLOCK_ROWS, or of token_rows(C) tokens."""
    for index, argument, source in validation.passes():
        for start, block, labels in engine.blocks(argument, source):
            if isinstance(labels, TokenLabels):
                yield from _of_tokens(validation, engine, start, block, labels, index)
                continue
            for first in range(0, len(block), ops.BLOCK_ROWS):
                # Contiguous, since a library product of other strides may round otherwise.
                h, y = block[first : first + ops.BLOCK_ROWS].contiguous(), labels[first : first + ops.BLOCK_ROWS]
                query = validation.query_of(engine.where, index, start + first, len(h))
                query = query if isinstance(query, int) else query.to(h.device)
                yield ValidationRows(start + first, h, y, query, argument)


def _of_tokens(
    validation: Validation, engine: HeadEngine, start: int, block: Tensor, labels: TokenLabels, index: int
) -> Iterator[ValidationRows]:
    """The rows of a block of sequences; at least one, which may be empty, since it carries the count of the empty ones."""
    queries = validation.query_of(engine.where, index, start, len(labels.counts))
    shares, empty = labels.shares(), int((labels.counts == 0).sum())
    opens = labels.sequence.diff(prepend=labels.sequence.new_tensor([-1])) != 0
    size = token_rows(engine.last.outputs)
    for first in range(0, max(len(block), 1), size):
        rows = slice(first, first + size)
        part, h = labels.cut(rows), block[rows].contiguous()
        query = queries if isinstance(queries, int) else queries.to(block.device)[part.sequence]
        yield ValidationRows(
            start,
            h,
            part.labels,
            query,
            tokens=part,
            shares=shares[rows],
            opens=opens[rows],
            empty=0 if first else empty,
        )


def token_rows(classes: int) -> int:
    """Tokens of V at once: BLOCK_ROWS, and fewer where C is a vocabulary, since their logits are held in float64."""
    return max(64, min(ops.BLOCK_ROWS, VALIDATION_LOGITS // classes))


class HeadQueryMaker(QueryMaker[Group]):
    """Queries (G, G_b) at the last layer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rows: dict[int, TrainRows] = {}  # of a group's number

    def kept(self, group: Group) -> TrainRows | None:
        """The features of the training data that a fit has made at the points of a group, which are handed over."""
        rows = self._rows.pop(group.number, None)
        return rows if rows is not None and rows.complete else None

    def _losses(self, group: Group, validation: Validation) -> Tensor:
        total = torch.zeros(len(group.members), validation.queries, dtype=torch.float64)
        counts = torch.zeros(validation.queries, dtype=torch.int64)
        empty = 0
        for block in validation_rows(validation, group.engine):
            h, y = block.features, block.labels
            for t, member in enumerate(group.members):
                values = group.engine.loss_values(h, y, at=(member.dense(), member.bias))
                group.engine.require_finite("val", block.start, h, values, block.tokens)
                values = block.weighted(values.double())
                for q, rows in cut(block.query):
                    total[t, q] += float(values[rows].sum())
            for q, rows in cut(block.query):
                counts[q] += block.samples(rows)
            empty += block.empty
        self._tell_counts(validation, counts, empty, of_tokens=bool(group.engine.of_tokens.get("val")))
        return total / counts

    def _dots(self, group: Group, validation: Validation) -> list[Dot]:
        pairs = zip(group.points, self._gradients(group, validation), strict=True)
        return [Dot(point.weight, point, g, gb if group.engine.include_bias else None) for point, (g, gb) in pairs]

    def key(self, group: Group, index: int) -> str:
        member = group.members[index]
        engine = group.engine
        about = {"loss": loss_name(engine.loss), "tokens": engine.tokens, "bias": engine.include_bias}
        backbone = engine.last.backbone
        state = {} if backbone is None else dict(chain(backbone.named_parameters(), backbone.named_buffers()))
        own = {"weight": member.dense()} | ({} if member.bias is None else {"bias": member.bias})
        return fingerprint({f"model.{name}": value for name, value in state.items()} | own, about)

    def _quadratic(self, group: Group, index: int) -> Quadratic:
        if self.method.bent and group.engine.of_tokens.get("train"):
            refuse_tokens(group.engine.where)
        return super()._quadratic(group, index)

    def _problem(self, group: Group, index: int) -> HeadProblem:
        member = group.members[index]
        return HeadProblem(group.engine, self._train_rows(group), (member.dense(), member.bias))

    def _train_rows(self, group: Group) -> TrainRows:
        """Shared by the points of a group, and by the fits of a segment and its scores where all their features find room."""
        assert self.train is not None  # score and query have asked for it
        rows = self._rows.get(group.number)
        if rows is None or not rows.complete:  # the model of incomplete ones may have been given another state
            if sum(other.nbytes for other in self._rows.values()) > HELD_BYTES:
                self._rows.clear()
            rows = self._rows[group.number] = TrainRows(group.engine, self.train)
        return rows

    def _flat(self, term: Term) -> Tensor:
        assert isinstance(term, Dot)
        query = term.gradient.reshape(-1, term.gradient.shape[-2] * term.gradient.shape[-1])
        if term.bias_gradient is not None:
            query = torch.cat([query, term.bias_gradient.reshape(len(query), -1)], dim=1)
        return query.double()

    def _unflattened(self, term: Term, v: Tensor) -> Dot:
        assert isinstance(term, Dot)
        g, gb, size = term.gradient, term.bias_gradient, term.gradient.shape[-2] * term.gradient.shape[-1]
        bias = None if gb is None else v[:, size:].reshape(gb.shape).to(gb)
        return replace(term, gradient=v[:, :size].reshape(g.shape).to(g), bias_gradient=bias)

    def _gradients(self, group: Group, validation: Validation) -> list[tuple[Tensor, Tensor]]:
        """(G, G_b) of each point, [C, d] and [C], or [Q, C, d] and [Q, C]: products in the dtype of the features, sums in
        float64."""
        engine, impact, several = group.engine, self.impact, validation.queries
        weights = [member.dense() for member in group.members]
        count, outputs = len(weights), engine.last.outputs
        kept: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}
        numbers: dict[int, list[Tensor]] = {}  # of the kept samples of each query
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
        for block in validation_rows(validation, engine):
            h, y = block.features, block.labels
            dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
            parts = cut(block.query)
            self._require_samples(engine.where, of_tokens=block.tokens is not None)
            if not impact.additive:
                places = torch.arange(block.start, block.start + len(h), device=h.device)
                for q, rows in parts:
                    numbers.setdefault(q, []).append(places[rows])
            for t, (weight, member) in enumerate(zip(weights, group.members, strict=True)):
                z = engine.logits(h, at=(weight, member.bias))
                engine.require_finite(block.argument, block.start, h, z.sum(dim=1), block.tokens)
                features = h
                if impact.attacks:
                    features = impact.attacked(h.to(dtype), z, weight)
                    z = engine.logits(features, at=(weight, member.bias))
                cotangent = block.weighted(impact.cotangent(z.double(), y, engine.loss)) if impact.additive else None
                for q, rows in parts:
                    if cotangent is not None:
                        add(t, q, features[rows], cotangent[rows])
                    else:
                        # f needs all logits before any cotangent is known; V is small beside the training set, so it stays.
                        kept.setdefault((t, q), []).append((h[rows].clone(), y[rows].clone(), z[rows].double()))
            for q, rows in parts:
                rows_seen[q] += block.samples(rows)
                if y.dtype == torch.int64 and y.dim() == 1:
                    labels = y[rows]
                    class_counts[q] += torch.bincount(labels[labels >= 0], minlength=outputs)[:outputs].cpu()
            empty += block.empty
        of_tokens = bool(engine.of_tokens.get("val"))
        self._tell_counts(validation, rows_seen, empty, of_tokens=of_tokens)
        if engine.loss.form == "cross_entropy":
            counted = (class_counts // (2 if validation.pairs else 1)).tolist()
            self.stats["val_class_counts"] = counted[0] if validation.names is None else counted
        for (t, q), blocks in kept.items():
            every_z, every_y = torch.cat([z for _, _, z in blocks]), torch.cat([y for _, y, _ in blocks])
            samples = None if of_tokens else validation.samples(q, torch.cat(numbers[q]))
            every = impact.cotangent(every_z, every_y, engine.loss, samples)
            cotangents = torch.split(every, [len(h) for h, _, _ in blocks])
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
                mask = group.points[t].mask
                if mask is not None and mask.chain:
                    pair = _through_mask(*pair, mask, *engine.last.parameters)
                norms.append(float(torch.sqrt(pair[0].square().sum() + pair[1].square().sum())))
                if not torch.isfinite(pair[0]).all():
                    raise InputError(
                        "query: expected a finite gradient of the impact; got NaN or infinity. Check the impact function."
                    )
                pairs.append((pair[0].to(dtype), pair[1].to(dtype)))
            if validation.names is None:
                made.append(pairs[0])
            else:
                made.append((torch.stack([g for g, _ in pairs]), torch.stack([gb for _, gb in pairs])))
        self._tell_norms(norms)
        return made


def _through_mask(
    gradient: Tensor, bias_gradient: Tensor, mask: Mask, weight_name: str, bias_name: str
) -> tuple[Tensor, Tensor]:
    """The query that gives ⟨m∘G, m∘∇ℓ⟩ = ⟨m²∘G, ∇ℓ⟩ with m = scale·(1 − D): gradients through the mask."""
    gradient = (gradient * mask.scale**2).contiguous()
    gradient.view(-1)[mask.dropped(weight_name, tuple(gradient.shape)).to(gradient.device)] = 0
    if mask.bias:
        bias_gradient = bias_gradient * mask.scale**2
        bias_gradient[mask.dropped(bias_name, tuple(bias_gradient.shape)).to(bias_gradient.device)] = 0
    return gradient, bias_gradient
