"""Scoring: a Scorer for one batch, and score() for a whole data set."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import dispatch
from .checks import positive_integer, usable_device
from .combine import combined, deviations, weighted_sum
from .data import Source, check_output, open_source, same_data
from .data.sources import split_batch
from .data.writers import FORMATS
from .engines import TOKENS, HeadEngine, Labels, TokenLabels, find_last_layer
from .errors import InputError, InputTypeError, IpfastWarning
from .groups import Group, GroupScorer, QueryMaker, groups
from .impacts import get_impact
from .losses import Loss
from .methods import Control, Method, get_method
from .ops import BLOCK_ROWS
from .pairwise import Pairwise, require_pairs
from .points import Final, Point
from .query import (
    BATCH_SIZE,
    Query,
    default_loss,
    known_loss,
    open_validation,
    require_one_query,
    require_val,
    trainable,
    validation_sets,
)
from .registry import check_choice
from .scores import Scores
from .terms import Dot, LossDeviation, Quadratic, Term


class Scorer:
    """Scores of one batch: Scorer(model, query)((inputs, labels)) -> [B]. Picklable, so a worker can hold one.

    Token data [B, T, d] is scored as the query was made: one score a sequence [B], or with tokens="each" [B, T].

    Args:
        model: as in `score`; with a query from `ipfast.query` or Query.load.
        query: the terms to score.
        backend, device: as in `score`.
        check: refuse a model in train mode and a head with NaN.
        group: number of the group of points to score, where they do not share features: each checkpoint of a network is one.
            The scores of the groups add up.
    """

    def __init__(
        self,
        model: Any,
        query: Query,
        *,
        backend: str = "auto",
        device: str | torch.device | None = None,
        check: bool = True,
        group: int | None = None,
    ) -> None:
        where = "Scorer"
        if not isinstance(query, Query):
            raise InputTypeError(f"{where}: expected query to be made by ipfast.query; got {type(query).__name__}.")
        check_choice(where, "backend", backend, dispatch.BACKENDS)
        if query.combine != "mean":
            raise InputError(
                f"{where}: expected a query whose members are averaged; combine={query.combine!r} needs the scores of all "
                "samples at once. Use ipfast.score."
            )
        # A stored query names its head ("" for a bare linear layer), so the model need not run to find it.
        last = find_last_layer(where, model, head=query.head, check=check)
        self.query = query
        engine = HeadEngine(
            where,
            last,
            query.loss,
            backend=backend,
            include_bias=query.include_bias,
            batch_size=BATCH_SIZE,
            device=usable_device(where, device),
            tokens=query.tokens or "mean",
        )
        _know_query(engine, query)
        check_query_fits(where, query, engine)
        made = _only(where, groups(engine, [term.point for term in query.terms] or Final().points()), group)
        self.group, self._scorer = made[0], GroupScorer(made[0], list(query.terms[made[1] : made[1] + len(made[0].points)]))
        if isinstance(query.method, Method) and len(made[0].points) < len(query.terms) and _by_deviation(query.terms):
            raise InputError(
                f"{where}: expected points that share their features for the loss-deviation estimator, which compares each "
                "with the first; a network's do not. Use ipfast.score."
            )
        self.engine = self.group.engine

    def __call__(self, batch: Any) -> Tensor:
        """Scores [B] of a batch (inputs, labels); [B, Q] of several queries."""
        inputs, labels = split_batch("Scorer", "batch", batch)
        h, y = self.engine.batch("batch", inputs, labels)
        tokens = y if isinstance(y, TokenLabels) else None
        columns, weights = self._scorer(h, y), self._scorer.weights
        self.engine.require_finite("batch", 0, h, columns, tokens)
        if _by_deviation(self.query.terms):
            columns, weights = deviations(columns, self.query.terms), weights[1:]
        values = weighted_sum(columns, weights)
        if self.query.queries is None:
            values = values[:, 0]
        if tokens is None or tokens.tokens != "each":
            return values
        return _spread(values, tokens.sequence, tokens.position, len(tokens.counts), tokens.length)


def _only(where: str, found: Iterator[Group], group: int | None) -> tuple[Group, int]:
    """The group that is asked for, or the only one, and the number of its first point."""
    first, before = 0, None
    for index, item in enumerate(found):
        if index == group:
            return item, first
        if group is None and before is not None:
            raise InputError(
                f"{where}: expected group to be a number, since the points do not share features; got None. Pass 0, 1, … and "
                "add up the scores."
            )
        before, first = item, first + len(item.points)
    if before is None or group is not None:
        raise InputError(f"{where}: expected group to be below the number of groups; got {group}.")
    return before, 0


def _know_query(engine: HeadEngine, query: Query) -> None:
    """Tell the engine whether the query is of token data, which the scored data must then be too."""
    if isinstance(query.method, Method) and query.method.needs_val:
        engine.of_tokens["the query"] = query.tokens is not None


def _spread(values: Tensor, sequence: Tensor, position: Tensor, rows: int, length: int) -> Tensor:
    """[N, T] of scores of tokens [K] (members [N, P, T] of [K, P]), 0 where a token does not count."""
    result = values.new_zeros(rows, length, *values.shape[1:])
    result[sequence, position] = values
    return result if values.dim() == 1 else result.transpose(1, 2).contiguous()


def _by_deviation(terms: Sequence[Term]) -> bool:
    return bool(terms) and isinstance(terms[0], LossDeviation)


def check_query_fits(where: str, query: Query, engine: HeadEngine) -> None:
    """Refuse a query that was made for a head of another shape."""
    for term in query.terms:
        if isinstance(term, Dot) and term.gradient.shape[-2:] != engine.last.weight.shape:
            raise InputError(
                f"{where}: expected a query for a head of weight {list(engine.last.weight.shape)}; this one was made for "
                f"{list(term.gradient.shape[-2:])}. Make it again with ipfast.query and this model."
            )


def score(
    model: Any,
    train: Any,
    val: Any = None,
    *,
    method: str | Method | Control = "ip",
    loss: str | Loss = "auto",
    impact: Any = "utility",
    params: str = "last",
    head: str | None = None,
    include_bias: bool = True,
    engine: str = "auto",
    backend: str = "auto",
    check: bool = True,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    ids: Any = None,
    out: str | os.PathLike[str] | None = None,
    val_groups: Any = None,
    keep_members: bool = False,
    aggregate: bool = True,
    tokens: str = "mean",
) -> Scores:
    """Score every training sample: which help the model on the validation data (positive) and which hurt it (negative).

        s_i = ⟨G, ∇ℓ_i⟩,   G = (1/M) Σ_v ∇ℓ_v            method="ip": to first order, the rise of the validation loss
                                                          if sample i is removed
        s_i = (1/T) Σ_t ⟨G_t, ∇ℓ_i(θ_t)⟩                 method="ip_ensemble": at T dropout members; "tracin": at checkpoints
        s_i = −‖∇ℓ_i‖²                                   method="self_tracin": no validation data; lowest = memorised, noisy

    Gradients are those of the last linear layer, computed exactly from its input features without being formed. Each training
    batch passes through the model once, under inference_mode. val must be trusted: with label noise in it, "ip" can be worse
    than chance.

    Args:
        model: an nn.Module that ends in an nn.Linear, in eval mode; a bare nn.Linear, when the data are features; a fitted
            scikit-learn linear classifier; or a .safetensors or .npz path with `weight` [C, d] and `bias` [C].
        train, val: a pair (features or inputs [N, ...], labels) of arrays, tensors or .npy paths; a Dataset; a DataLoader that
            does not shuffle; a path to an .npz or .safetensors file with `features` and `labels`. A memory-mapped array is read
            block by block. val may be a stored Query, which carries its method; it is None for self_tracin, loss and random.
            Several validation sets, as a list of them or as a mapping from names, make as many queries.
        method: "ip", "ip_ensemble", "self_tracin", or a control that others must beat: "loss" (−ℓ_i) or "random"; or a Method,
            such as Method(points=Dropout(20, 0.05)), or Method(points=Checkpoints([...])) for TracIn.
        loss: "cross_entropy" (integer labels), "bce_with_logits", "mse" or an object of ipfast.losses; "auto": the estimator's
            own for scikit-learn, else cross_entropy.
        impact: what should improve: "utility" (the mean validation loss) or a callable f(logits [M, C], labels [M]) -> scalar,
            lower is better.
        params: "last", the final linear layer.
        head: name of that layer; None finds it by running the model on one batch.
        include_bias: whether the layer's bias is a scored parameter.
        engine: "auto" or "head".
        backend: "auto", "reference", "cpp" or "triton"; a named one is used or refused.
        check: refuse a model in train mode and NaN weights, warn if val is train.
        batch_size: samples that go through the model at once (default 256), where the data does not come in batches.
        device: where scores are computed; default: where the model or the features are.
        progress: show a bar with rate and remaining time on runs over a second.
        ids: [N] names of the samples, carried to the output.
        out: .npy, .parquet or .csv path for the scores, or .safetensors for everything; appears only when complete.
        val_groups: [M] group of each validation sample, a number or a name: the samples of each group make a query.
        keep_members: keep the scores at each point as `Scores.members` [N, T], for their spread.
        aggregate: False gives the inner product with each validation sample, [N, M], instead of their mean.
        tokens: what a sample of token data is, features [N, T, d] with labels [N, T] or targets [N, T, C]: a sequence whose
            loss is the "mean" or the "sum" over its tokens, or "each" token, scored against the query of "mean": values [N, T].
            The logits at a position are compared with the label at the same position: labels must already be shifted, as next
            tokens are by `labels[:, :-1] = ids[:, 1:]; labels[:, -1] = -100`. Tokens labelled -100 (or the `ignore_index` of
            the loss), or whose targets are all NaN, do not count, nor do their features. A sequence without any scores 0, and
            is left out of M. A callable impact gets the counted tokens of val as its logits [K, C] and labels [K].

    Returns:
        Scores with values [N] in the order of the data, [N, Q] for several queries, [N, T] with tokens="each"; float32, or
        float64 for float64 features.

    Raises:
        InputError, InputTypeError, MissingFileError: an argument does not fit; nothing has been computed or written.
        NonFiniteError: NaN or infinite features, with the row. UnavailableError: a backend or package is not there.

    Source: Eq. (2) of arXiv 2405.17490; self-influence: arXiv 2002.08484.

    >>> linear = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.zeros_(linear.weight)
    >>> h = torch.eye(2, dtype=torch.float64)
    >>> score(linear, (h, torch.tensor([0, 0])), (h[:1], torch.tensor([0]))).values.tolist()
    [0.5, 0.0]
    """
    where = "score"
    check_choice(where, "engine", engine, ("auto", "head"))
    check_choice(where, "params", params, ("last",))
    check_choice(where, "backend", backend, dispatch.BACKENDS)
    check_choice(where, "tokens", tokens, TOKENS)
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    stored = val if isinstance(val, Query) else None
    given = {"method": method != "ip", "loss": loss != "auto", "impact": impact != "utility", "head": head is not None}
    given["include_bias"] = not include_bias
    given["val_groups"] = val_groups is not None
    given["tokens"] = tokens != "mean"
    if stored is not None and any(given.values()):
        superfluous = " and ".join(name for name, is_given in given.items() if is_given)
        raise InputError(f"{where}: expected no {superfluous} beside a stored Query, which carries its own. Leave it out.")
    chosen = stored.method if stored is not None else get_method(where, method)
    loss = known_loss(where, loss)
    chosen_impact = get_impact(where, impact)
    if stored is None:
        require_val(where, chosen, val, chosen_impact)
    if not aggregate:
        several = isinstance(val, Mapping) or len(validation_sets(val)) > 1
        alone = {"a stored Query": stored is not None, "val_groups": val_groups is not None, "several sets": several}
        require_pairs(where, chosen, {**alone, "keep_members": keep_members, "impact": impact != "utility"})
    output = None if out is None else check_output(where, "out", out, (".safetensors", *FORMATS))
    target = usable_device(where, device)
    kernels = dispatch.select_backend(backend, device=target or _device_of(model, train)).name != "reference"

    source = open_source(where, "train", train, batch_size=size)
    validation = open_validation(where, None if stored is not None else val, val_groups, batch_size=size)
    require_one_query(where, tokens, None if validation is None else validation.names)
    names = _names(where, ids, source)
    if isinstance(chosen, Control) and chosen.name == "random":
        if tokens == "each":
            raise InputError(f"{where}: expected no tokens='each' with method 'random', one number a sample. Leave it out.")
        return _finish(where, Scores(_random(source, chosen), "random", "none", "reference", {}, names), output)

    finder = source if validation is None else validation.sources[0]
    last = find_last_layer(
        where,
        model,
        head=head if stored is None else stored.head,
        first_inputs=lambda: next(iter(finder.batches(size)))[0],
        check=check,
    )
    chosen_loss = stored.loss if stored is not None else default_loss(loss, last.loss, where)
    head_engine = HeadEngine(
        where,
        last,
        chosen_loss,
        backend=backend,
        include_bias=include_bias if stored is None else stored.include_bias,
        batch_size=size,
        device=target,
        tokens=tokens if stored is None else stored.tokens or "mean",
    )
    if stored is not None:
        _know_query(head_engine, stored)
    head_engine.check("train", source)
    for val_source in () if validation is None else validation.sources:
        head_engine.check("val", val_source)
    if check and validation is not None and any(same_data(train, data) for data in validation_sets(val)):
        warnings.warn(
            "score: val is the training data itself. Its gradient is nearly zero at the optimum and carries the same label "
            "noise, so scores can be worse than chance. Pass clean held-out data, or use method='self_tracin'.",
            IpfastWarning,
            stacklevel=2,
        )
    if stored is not None:
        check_query_fits(where, stored, head_engine)
    started = time.perf_counter()
    result = _Result(stored, keep_members, kernels)
    maker = None if stored is not None or isinstance(chosen, Control) else QueryMaker(chosen, chosen_impact, validation)
    if stored is not None and stored.terms:
        points: Iterable[Point] = [term.point for term in stored.terms]
    else:
        points = chosen.points.points(trainable(head_engine)) if isinstance(chosen, Method) else Final().points()
    if stored is None and isinstance(chosen, Method):
        result.combine = chosen.points.combine
    for group in groups(head_engine, points):
        if not aggregate and validation is not None:
            result.add_pairs(group, Pairwise(group, validation), source, chosen.name, progress)
            continue
        first = len(result.terms)
        terms = (
            list((stored.terms if stored else ())[first : first + len(group.points)]) if maker is None else maker.terms(group)
        )
        result.add(group, GroupScorer(group, terms), source, chosen.name, progress)
    values, members = result.finish()
    queries = stored.queries if stored is not None else None if validation is None else validation.names
    if queries is None and aggregate:
        values, members = values[:, 0], None if members is None else members[:, :, 0]
    record, counted = result.record, None
    samples = len(values) if record is None else len(record.counts)
    if record is not None and record.each:
        values, counted = record.spread(values), record.mask()
        members = None if members is None else record.spread(members)
    about: Mapping[str, Any] = stored.stats if stored is not None else {} if maker is None else maker.stats
    stats = {
        **about,
        "N": samples,
        "backend_reason": result.reason,
        "engine_reason": "params='last': the head engine is exact and reads the features once",
        "loss": chosen_loss.form,
        "head": last.name,
        "score_seconds": time.perf_counter() - started - (0.0 if maker is None else maker.stats.get("query_seconds", 0.0)),
    }
    if len(result.weights) > 1:
        stats |= {"members": len(result.weights), "ensemble": result.route, "ensemble_reason": result.route_reason}
    if record is not None:
        stats |= {"tokens": head_engine.tokens, "counted_tokens": int(record.counts.sum())}
        stats["empty_sequences"] = int((record.counts == 0).sum())
    if names is not None and len(names) != samples:
        raise InputError(f"{where}: expected one id a sample; got {len(names)} ids for {samples} samples.")
    made = Scores(values, chosen.name, head_engine.name, result.backend, stats, names, members, queries, counted)
    return _finish(where, made, output)


class _Result:
    """Scores of one group of points after another, added up, or kept for each point where they are needed alone."""

    def __init__(self, stored: Query | None, keep_members: bool, kernels: bool) -> None:
        self.combine = "mean" if stored is None else stored.combine
        self.keep_members, self.kernels = keep_members, kernels
        self.terms: list[Term] = []
        self.weights: list[float] = []
        self.backend = self.reason = self.route = self.route_reason = ""
        self.record: TokenRecord | None = None
        self._kept: list[Tensor] = []
        self._total: Tensor | None = None

    def add(self, group: Group, scorer: GroupScorer, source: Source, name: str, progress: bool) -> None:
        """Score the training data at the points of a group."""
        alone = self.keep_members or self.combine != "mean" or _by_deviation(scorer.terms)

        def block(h: Tensor, y: Labels) -> Tensor:
            columns = scorer(h, y)
            return columns if alone else weighted_sum(columns, scorer.weights)

        by_row = self.kernels and scorer.stack is not None  # a kernel's score of a row depends on that row alone
        part, self.backend, self.reason, self.record = _stream(
            group.engine, block, scorer.columns, source, name, progress, by_row=by_row
        )
        if self.record is not None and not self.record.each and scorer.terms and isinstance(scorer.terms[0], Quadratic):
            self.backend, self.reason = "reference", "self-influence of sequences: products of residuals and features in torch"
        self.route, self.route_reason = group.choice.name, group.choice.reason
        self.terms += scorer.terms
        self.weights += scorer.weights
        if alone:
            self._kept.append(part)
        else:
            self._total = part if self._total is None else self._total + part

    def add_pairs(self, group: Group, pairs: Pairwise, source: Source, name: str, progress: bool) -> None:
        """The products of the training data with each validation sample at the points of a group."""
        part, _, _, _ = _stream(group.engine, pairs, len(pairs.features), source, name, progress, rows=BLOCK_ROWS)
        self.backend, self.reason = "reference", "aggregate=False: two matrix products"
        self.route, self.route_reason = "dense", "every point has residuals of its own"
        self.weights += pairs.weights
        self._total = part if self._total is None else self._total.add_(part)

    def finish(self) -> tuple[Tensor, Tensor | None]:
        """(scores [N, Q], scores at each point [N, T, Q] if asked for)"""
        if self._total is not None:
            return self._total, None
        members = self._kept[0] if len(self._kept) == 1 else torch.cat(self._kept, dim=1)
        if _by_deviation(self.terms):
            members, self.weights = deviations(members, self.terms), self.weights[1:]
        return combined(members, self.weights, self.combine), members if self.keep_members else None


class TokenRecord:
    """Which tokens of a run had counted, in order.

    Attributes:
        each: whether the scores are of tokens.
        length: T, the longest that a sequence was with its padding.
    """

    def __init__(self, tokens: str) -> None:
        self.each, self.length = tokens == "each", 0
        self._counts: list[Tensor] = []
        self._position: list[Tensor] = []

    def add(self, block: TokenLabels) -> None:
        self.length = max(self.length, block.length)
        self._counts.append(block.counts)
        if self.each:
            self._position.append(block.position.cpu())

    @property
    def counts(self) -> Tensor:
        """T_i [N]"""
        return torch.cat(self._counts)

    def spread(self, values: Tensor) -> Tensor:
        """[N, T] of scores of tokens [K], or [N, P, T] of [K, P]."""
        counts = self.counts
        sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return _spread(values, sequence, torch.cat(self._position), len(counts), self.length)

    def mask(self) -> Tensor:
        """Whether a token counted [N, T]."""
        return self.spread(torch.ones(int(self.counts.sum()), dtype=torch.bool))


def _pieces(blocks: Iterator[tuple[int, Tensor, Labels]], rows: int | None) -> Iterator[tuple[int, Tensor, Labels]]:
    for start, h, y in blocks:
        if rows is None or isinstance(y, TokenLabels):
            yield start, h, y
            continue
        for first in range(0, len(h), rows):
            piece = slice(first, first + rows)
            yield start + first, h[piece], y[piece]


def _stream(
    engine: HeadEngine,
    score_block: Callable[[Tensor, Labels], Tensor],
    columns: int,
    source: Source,
    name: str,
    progress: bool,
    rows: int | None = None,
    by_row: bool = False,
) -> tuple[Tensor, str, str, TokenRecord | None]:
    """(scores [N, ...] on the CPU, backend, its reason, which tokens counted in token data) from one pass over the training
    data, at most `rows` at once."""
    values: Tensor | None = None
    pieces: list[Tensor] = []
    choice: dispatch.BackendChoice | None = None
    done = 0
    record: TokenRecord | None = None
    with tqdm(total=source.rows, desc=name, unit=" samples", unit_scale=True, delay=1, disable=not progress) as bar:
        for start, h, y in _pieces(engine.blocks("train", source, columns=columns, by_row=by_row), rows):
            choice = choice or dispatch.select_backend(engine.backend, device=h.device)
            part = score_block(h, y)
            tokens = y if isinstance(y, TokenLabels) else None
            samples = len(part) if tokens is None else len(tokens.counts)
            done = start + samples
            engine.require_finite("train", start, h, part, tokens)
            if tokens is not None:
                record = record or TokenRecord(engine.tokens)
                record.add(tokens)
            if source.rows is None or (record is not None and record.each):
                pieces.append(part.cpu())
            else:
                if done > source.rows:
                    break
                if values is None:
                    values = torch.empty(source.rows, *part.shape[1:], dtype=part.dtype)
                values[start:done] = part
            bar.update(samples)
    if source.rows not in (None, done):
        raise InputError(
            f"score: expected {source.rows} samples, the length of train; it gave {'more' if done > source.rows else done}. "
            "Check its __len__ and its sampler."
        )
    if pieces:
        values = torch.cat(pieces)
    if values is None or choice is None:
        raise InputError("score: expected at least one sample in train; it is empty.")
    return values, choice.name, choice.reason, record


def _random(source: Source, control: Control) -> Tensor:
    rows = source.rows
    if rows is None:
        rows = sum(len(labels) for _, labels in source.batches(BATCH_SIZE))
    return torch.rand(rows, generator=torch.Generator().manual_seed(control.seed))


def _device_of(model: Any, train: Any) -> torch.device:
    """Where scores will be computed, as far as it can be told before the data is read."""
    parameters = getattr(model, "parameters", None)
    if callable(parameters):
        device = next((p.device for p in parameters() if isinstance(p, Tensor)), torch.device("cpu"))
        if device.type != "cpu":
            return device
    if isinstance(train, (tuple, list)) and train and isinstance(train[0], Tensor):
        return train[0].device
    return torch.device("cpu")


def _names(where: str, ids: Any, source: Source) -> np.ndarray | None:
    if ids is None:
        return None
    names = np.asarray(ids)
    if names.dtype.kind in "OT" and all(isinstance(name, str) for name in names.flat):  # names as pandas gives them
        names = names.astype(str)
    if names.ndim != 1 or names.dtype.kind not in "biufU" or (source.rows is not None and len(names) != source.rows):
        raise InputError(
            f"{where}: expected ids to be {source.rows if source.rows is not None else 'N'} numbers or strings, one a sample; "
            f"got shape {list(names.shape)} and dtype {names.dtype}."
        )
    return names


def _finish(where: str, scores: Scores, output: Any) -> Scores:
    if output is not None:
        scores.save(output)
    return scores
