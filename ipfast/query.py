"""The query: what the gradients of the training samples are multiplied with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from . import dispatch
from .arguments import (
    BATCH_SIZE,
    default_loss,
    known_loss,
    known_params,
    require_engine,
    require_one_query,
    require_val,
)
from .checks import check_no_overwriting, check_precision, positive_integer, usable_device
from .data import Source, open_source
from .engines import TOKENS, HeadEngine
from .engines.autocast import without_autocast
from .errors import InputError
from .groups import HeadQueryMaker, NetworkJob, Validation, groups, open_validation, with_impact
from .hygiene import check_features
from .impacts import Impact, get_impact
from .methods import Control, Method, get_method
from .network_score import NetworkRun
from .opening import head_key, network_key, open_head, open_network, trainable
from .query_file import Query, check_query_file
from .registry import check_choice
from .terms import Term


@torch.inference_mode(False)  # in which nothing has derivatives
@without_autocast
def query(
    model: Any,
    val: Any = None,
    *,
    method: str | Method | Control = "ip",
    loss: Any = "auto",
    impact: Any = "utility",
    params: str | Sequence[str] = "last",
    head: str | None = None,
    include_bias: bool = True,
    backend: str = "auto",
    precision: str | None = None,
    check: bool = True,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    train: Any = None,
    val_groups: Any = None,
    tokens: str = "mean",
    labels_key: str = "labels",
    out: str | os.PathLike[str] | None = None,
) -> Query:
    """Make the query of a method: for "ip" the gradient G = (1/M) Σ_v ∇ℓ_v of the validation loss at the last layer.

    Args:
        model, val, val_groups, method, loss, impact, params, head, include_bias, check, batch_size, device, tokens,
            labels_key: as in
            `ipfast.score`.
        backend, precision: accepted so that the options of `score` can be passed on; the query itself is computed by torch, in
            float64 or exact float32. Say them again to `score` or `Scorer`.
        train: the training data, which methods with a curvature (such as "ekfac") are fitted to; of others used only to find
            the head by running the model when there is no `val`.
        out: .safetensors path for the query, as `Query.save` writes it.

    Returns:
        A Query, to be passed to `ipfast.score` in place of val, to `ipfast.Scorer`, or saved.

    Raises:
        InputError, InputTypeError: the arguments do not fit. NonFiniteError: a validation sample has NaN features.

    Source: Eq. (2) of arXiv 2405.17490.

    >>> head = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.zeros_(head.weight)
    >>> query(head, (torch.tensor([[2.0, 4.0]], dtype=torch.float64), torch.tensor([0]))).terms[0].gradient.tolist()
    [[-1.0, -2.0], [1.0, 2.0]]
    """
    where = "query"
    chosen = get_method(where, method)
    params = known_params(where, params)
    given = {"head": head is not None, "include_bias=False": not include_bias, f"backend={backend!r}": backend != "auto"}
    require_engine(where, params, "auto", given)
    check_choice(where, "tokens", tokens, TOKENS)
    check_choice(where, "backend", backend, dispatch.BACKENDS)
    check_precision(where, precision)
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    loss = known_loss(where, loss, params)
    target_impact = get_impact(where, impact)
    require_val(where, chosen, val, target_impact)
    bent = isinstance(chosen, Method) and chosen.needs_train
    if bent and train is None:
        raise InputError(
            f"{where}: expected train, the training data to which the curvature of method {chosen.name!r} is fitted; got None."
        )
    if out is not None:
        check_query_file(where, "out", out, chosen, loss)
        check_no_overwriting(where, {"out": out}, {"model": model, "val": val, "train": train})
    target = usable_device(where, device)
    validation = open_validation(where, val, val_groups, batch_size=size, labels_key=labels_key)
    validation = with_impact(where, validation, target_impact, batch_size=size, labels_key=labels_key)
    require_one_query(where, tokens, None if validation is None else validation.names)
    training = None if train is None else open_source(where, "train", train, batch_size=size, labels_key=labels_key)
    if params != "last":
        network = open_network(
            where,
            model,
            default_loss(loss, None, where),
            params=params,
            tokens=tokens,
            precision=precision,
            device=target,
            check=check,
        )
        job = NetworkJob(where, network, engine="auto", batch_size=None if batch_size is None else size)
        run = NetworkRun(job, chosen, target_impact, validation, training if bent else None, check=check)
        return _finish(build_network_query(run), out)
    engine = open_head(
        where,
        model,
        head=head,
        finder=training if validation is None else validation.sources[0],
        loss=loss,
        backend=backend,
        include_bias=include_bias,
        batch_size=size,
        device=target,
        tokens=tokens,
        check=check,
    )
    for _, argument, source in () if validation is None else validation.passes():
        engine.check(argument, source)
    if training is not None and bent:
        engine.check("train", training)
    target_impact.check_outputs(where, engine.last.outputs, engine.loss)
    if check and validation is not None:
        check_features(where, engine.last, {"val": validation.sources, "pairs": validation.pairs})
    return _finish(build_query(engine, chosen, target_impact, validation, training), out)


def _finish(made: Query, out: str | os.PathLike[str] | None) -> Query:
    if out is not None:
        made.save(out)
    return made


def build_query(
    engine: HeadEngine,
    method: Method | Control,
    impact: Impact,
    validation: Validation | None,
    train: Source | None = None,
) -> Query:
    """The query of a method at the points it names."""
    names = None if validation is None else validation.names
    if not isinstance(method, Method):
        about = (engine.loss, engine.last.name, engine.include_bias)
        return Query((), method, *about, {}, queries=names, tokens=engine.tokens)
    maker = HeadQueryMaker(method, impact, validation, train)
    terms: list[Term] = []
    maker.prepare(lambda: groups(engine, method.points.points(trainable(engine))))
    for group in groups(engine, method.points.points(trainable(engine))):
        terms += [_pinned(term) for term in maker.terms(group)]
    return Query(
        tuple(terms),
        method,
        engine.loss,
        engine.last.name,
        engine.include_bias,
        maker.stats,
        combine=method.points.combine,
        queries=names,
        tokens=engine.tokens if validation is None or engine.of_tokens["val"] else None,
        model=head_key(engine),
    )


def build_network_query(run: NetworkRun) -> Query:
    """The query of a method at the points it names, for parameters of a whole network."""
    network, validation = run.job.network, run.validation
    return Query(
        tuple(map(_pinned, run.query_terms())),
        run.method,
        network.loss,
        "",
        True,
        {} if run.maker is None else run.maker.stats,
        combine=run.method.points.combine if isinstance(run.method, Method) else "mean",
        queries=None if validation is None else validation.names,
        tokens=network.tokens,
        params=tuple(network.parameters),
        model=network_key(network),
    )


def _pinned(term: Term) -> Term:
    state = term.point.state
    return term if state is None else replace(term, point=replace(term.point, state=state.pinned()))
