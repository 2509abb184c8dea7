"""Scoring: a Scorer for one batch, and score() for a whole data set."""

from __future__ import annotations

import os
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import dispatch
from .checks import positive_integer, usable_device
from .data import Source, check_output, open_source, same_data
from .data.sources import split_batch
from .data.writers import FORMATS
from .engines import HeadEngine, find_last_layer
from .errors import InputError, InputTypeError, IpfastWarning
from .impacts import get_impact
from .losses import Loss
from .methods import Control, Method, get_method
from .query import BATCH_SIZE, Dot, Query, build_query, default_loss, known_loss, require_val
from .registry import check_choice
from .scores import Scores


class Scorer:
    """Scores of one batch: Scorer(model, query)((inputs, labels)) -> [B]. Picklable, so a worker can hold one.

    Args:
        model: as in `score`; with a query from `ipfast.query` or Query.load.
        query: the terms to score.
        backend, device: as in `score`.
        check: refuse a model in train mode and a head with NaN.
    """

    def __init__(
        self,
        model: Any,
        query: Query,
        *,
        backend: str = "auto",
        device: str | torch.device | None = None,
        check: bool = True,
    ) -> None:
        where = "Scorer"
        if not isinstance(query, Query):
            raise InputTypeError(f"{where}: expected query to be made by ipfast.query; got {type(query).__name__}.")
        check_choice(where, "backend", backend, dispatch.BACKENDS)
        # A stored query names its head ("" for a bare linear layer), so the model need not run to find it.
        last = find_last_layer(where, model, head=query.head, check=check)
        self.query = query
        self.engine = HeadEngine(
            where,
            last,
            query.loss,
            backend=backend,
            include_bias=query.include_bias,
            batch_size=BATCH_SIZE,
            device=usable_device(where, device),
        )
        check_query_fits(where, query, self.engine)

    def __call__(self, batch: Any) -> Tensor:
        """Scores [B] of a batch (inputs, labels)."""
        inputs, labels = split_batch("Scorer", "batch", batch)
        h = self.engine._place(self.engine.last.features("Scorer", inputs))
        y = self.engine.labels("batch", labels, len(h)).to(h.device)
        values = block_scores(self.engine, self.query, h, y, first_row=0)
        self.engine.require_finite("batch", 0, h, values)
        return values


def check_query_fits(where: str, query: Query, engine: HeadEngine) -> None:
    """Refuse a query that was made for a head of another shape."""
    for term in query.terms:
        if isinstance(term, Dot) and term.gradient.shape != engine.last.weight.shape:
            raise InputError(
                f"{where}: expected a query for a head of weight {list(engine.last.weight.shape)}; this one was made for "
                f"{list(term.gradient.shape)}. Make it again with ipfast.query and this model."
            )


def block_scores(engine: HeadEngine, query: Query, h: Tensor, y: Tensor, *, first_row: int) -> Tensor:
    """Σ_t w_t·(term t) of a block: [B]. Self-influence and loss are negated: positive is beneficial in every method."""
    if isinstance(query.method, Control):
        return -engine.loss_values(h, y)
    total: Tensor | None = None
    for term in query.terms:
        values = engine.dot(h, y, term.gradient, term.bias_gradient) if isinstance(term, Dot) else -engine.norm(h, y)
        if term.weight != 1:
            values = values * term.weight
        total = values if total is None else total + values
    assert total is not None
    return total


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
) -> Scores:
    """Score every training sample: which help the model on the validation data (positive) and which hurt it (negative).

        s_i = ⟨G, ∇ℓ_i⟩,   G = (1/M) Σ_v ∇ℓ_v            method="ip": to first order, the rise of the validation loss
                                                          if sample i is removed
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
        method: "ip", "self_tracin", or a control that others must beat: "loss" (−ℓ_i) or "random".
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

    Returns:
        Scores with values [N] in the order of the data, float32, or float64 for float64 features.

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
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    stored = val if isinstance(val, Query) else None
    given = {"method": method != "ip", "loss": loss != "auto", "impact": impact != "utility", "head": head is not None}
    given["include_bias"] = not include_bias
    if stored is not None and any(given.values()):
        superfluous = " and ".join(name for name, is_given in given.items() if is_given)
        raise InputError(f"{where}: expected no {superfluous} beside a stored Query, which carries its own. Leave it out.")
    chosen = stored.method if stored is not None else get_method(where, method)
    loss = known_loss(where, loss)
    chosen_impact = get_impact(where, impact)
    if stored is None:
        require_val(where, chosen, val, chosen_impact)
    output = None if out is None else check_output(where, "out", out, (".safetensors", *FORMATS))
    target = usable_device(where, device)
    dispatch.select_backend(backend, device=target or _device_of(model, train))

    source = open_source(where, "train", train, batch_size=size)
    val_source = None if val is None or stored is not None else open_source(where, "val", val, batch_size=size)
    names = _names(where, ids, source)
    if isinstance(chosen, Control) and chosen.name == "random":
        return _finish(where, Scores(_random(source, chosen), "random", "none", "reference", {}, names), output)

    finder = val_source or source
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
    )
    head_engine.check("train", source)
    if check and val_source is not None and same_data(train, val):
        warnings.warn(
            "score: val is the training data itself. Its gradient is nearly zero at the optimum and carries the same label "
            "noise, so scores can be worse than chance. Pass clean held-out data, or use method='self_tracin'.",
            IpfastWarning,
            stacklevel=2,
        )
    if stored is not None:
        check_query_fits(where, stored, head_engine)
    ready = stored or build_query(head_engine, chosen, chosen_impact, val_source)

    started = time.perf_counter()
    values, used, reason = _stream(head_engine, ready, source, progress)
    stats = {
        **ready.stats,
        "N": len(values),
        "backend_reason": reason,
        "engine_reason": "params='last': the head engine is exact and reads the features once",
        "loss": chosen_loss.form,
        "head": last.name,
        "score_seconds": time.perf_counter() - started,
    }
    if names is not None and len(names) != len(values):
        raise InputError(f"{where}: expected one id a sample; got {len(names)} ids for {len(values)} samples.")
    return _finish(where, Scores(values, chosen.name, head_engine.name, used, stats, names), output)


def _stream(engine: HeadEngine, query: Query, source: Source, progress: bool) -> tuple[Tensor, str, str]:
    """(scores [N] on the CPU, backend, its reason) from one pass over the training data."""
    values: Tensor | None = None
    pieces: list[Tensor] = []
    choice: dispatch.BackendChoice | None = None
    done = 0
    with tqdm(
        total=source.rows, desc=query.method.name, unit=" samples", unit_scale=True, delay=1, disable=not progress
    ) as bar:
        for start, h, y in engine.blocks("train", source):
            choice = choice or dispatch.select_backend(engine.backend, device=h.device)
            part = block_scores(engine, query, h, y, first_row=start)
            done = start + len(part)
            engine.require_finite("train", start, h, part)
            if source.rows is None:
                pieces.append(part.cpu())
            else:
                if done > source.rows:
                    break
                if values is None:
                    values = torch.empty(source.rows, dtype=part.dtype)
                values[start:done] = part
            bar.update(len(part))
    if source.rows not in (None, done):
        raise InputError(
            f"score: expected {source.rows} samples, the length of train; it gave {'more' if done > source.rows else done}. "
            "Check its __len__ and its sampler."
        )
    if source.rows is None:
        values = torch.cat(pieces) if pieces else None
    if values is None or choice is None:
        raise InputError("score: expected at least one sample in train; it is empty.")
    return values, choice.name, choice.reason


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
