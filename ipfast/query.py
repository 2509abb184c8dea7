"""The query: what the gradients of the training samples are multiplied with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import dispatch
from .checks import check_precision, existing_file, positive_integer, usable_device
from .data import Source, open_source
from .data.writers import check_output, written_whole
from .engines import TOKENS, HeadEngine, SampleLoss, find_last_layer
from .errors import InputError, InputTypeError
from .groups import HeadQueryMaker, NetworkJob, Validation, groups, open_validation, with_impact
from .hygiene import check_features
from .impacts import Impact, get_impact
from .losses import Loss, get_loss
from .methods import METHODS, Control, Method, get_method
from .network_score import NetworkRun, open_network, require_engine
from .points import Mask, Point, State, Trainable
from .registry import check_choice
from .terms import Dot, LossDeviation, NetworkDot, Term

BATCH_SIZE = 256
"""Samples that go through a backbone at once, where the data does not come in batches."""


@dataclass(frozen=True)
class Query:
    """The terms of a score, ready to meet training data; made by `ipfast.query`, stored with `save`.

    Attributes:
        terms: one for each point: Dot, Quadratic or LossDeviation; empty for the controls.
        method: a row of the method table.
        loss: of one sample.
        head: name of the scored layer in the model; "" for a bare linear layer.
        include_bias: whether the bias is a scored parameter.
        stats: the query's norm, M, class counts, seconds.
        combine: how the scores at the points become one: "mean", "zscore" or "rank".
        queries: names of several queries, whose scores are [N, Q]; None for a single one.
        tokens: what a sample of token data is, "mean", "sum" or "each"; None: the query is of samples, not of token data.
        params: "last", or the names of the scored parameters of a whole network.
    """

    terms: tuple[Term, ...]
    method: Method | Control
    loss: Loss | SampleLoss
    head: str
    include_bias: bool
    stats: Mapping[str, Any] = field(default_factory=dict)
    combine: str = "mean"
    queries: tuple[str, ...] | None = None
    tokens: str | None = "mean"
    params: str | tuple[str, ...] = "last"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .safetensors file. Masks go by name, seed, member and rate, checkpoint files by path and hash."""
        where = "Query.save"
        if not isinstance(self.loss, Loss):
            raise InputError(
                f"{where}: expected a loss of ipfast.losses, which can be written to a file; got a callable. Pass the query on "
                "as it is."
            )
        file = check_output(where, "path", path, (".safetensors",))
        if not isinstance(self.method, Method) or not self.method.needs_val:
            raise InputError(f"{where}: expected a query made from validation data; {self.method.name!r} has nothing to store.")
        tensors: dict[str, Tensor] = {}
        for index, term in enumerate(self.terms):
            if isinstance(term, Dot):
                tensors[f"{index}.weight"] = term.gradient
                if term.bias_gradient is not None:
                    tensors[f"{index}.bias"] = term.bias_gradient
            elif isinstance(term, NetworkDot):
                tensors |= {f"{index}.gradient.{name}": value for name, value in term.gradients.items()}
            elif isinstance(term, LossDeviation) and term.deviation is not None:
                tensors[f"{index}.deviation"] = term.deviation
            state = term.point.state
            if state is not None and state.values is not None:
                if self.head or self.params != "last":
                    raise InputError(
                        f"{where}: expected checkpoints of a whole network as files, which a query refers to; got state dicts. "
                        "Save them and pass their paths."
                    )
                tensors |= {f"{index}.state.{name}": value for name, value in state.values.items()}
        about = {
            "ipfast": "query 1",
            "method": self.method.name,
            "loss": self.loss.form,
            "loss_options": json.dumps(self.loss.options()),
            "head": self.head,
            "include_bias": json.dumps(self.include_bias),
            "terms": json.dumps([_described(term) for term in self.terms]),
            "combine": self.combine,
            "queries": json.dumps(self.queries),
            "tokens": json.dumps(self.tokens),
            "params": json.dumps(self.params),
            "stats": json.dumps(dict(self.stats)),
        }
        with written_whole(file) as beside:
            save_file(
                {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
                beside,
                metadata=about,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Query:
        """Read what `save` wrote."""
        where = "Query.load"
        file = existing_file(where, "path", path)
        try:
            with safe_open(str(file), framework="pt") as archive:
                about = archive.metadata() or {}
                tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dict)
            terms = tuple(_restored(index, entry, tensors) for index, entry in enumerate(json.loads(about["terms"])))
            names = json.loads(about["queries"])
            loss = type(get_loss(where, about["loss"]))(**json.loads(about["loss_options"]))
            include_bias, stats = json.loads(about["include_bias"]), json.loads(about["stats"])
            name = about["method"]
            # A stored query is complete in its terms; of a method that is no row of the table only the name is left to know.
            method = METHODS.get(where, name) if name in METHODS else Method(name=name)
            queries = None if names is None else tuple(names)
            tokens, params = json.loads(about.get("tokens", "null")), json.loads(about.get("params", '"last"'))
            scored = params if isinstance(params, str) else tuple(params)
            return cls(terms, method, loss, about["head"], include_bias, stats, about["combine"], queries, tokens, scored)
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"{where}: expected a file written by Query.save; {str(file)!r} cannot be read ({error})."
            ) from error


def _described(term: Term) -> dict[str, Any]:
    """All of a term that is not tensors, for JSON."""
    point = term.point
    about: dict[str, Any] = {"weight": term.weight}
    if point.mask is not None:
        about["mask"] = {**vars(point.mask), "names": dict(point.mask.names)}
    if point.state is not None:
        stored = point.state.path is not None
        about["state"] = {"path": str(point.state.path), "sha256": point.state.sha256} if stored else {}
    if isinstance(term, LossDeviation):
        about["floor"] = term.floor
    return about


def _restored(index: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Term:
    """The term that `_described` and its tensors came from."""
    state: State | None = None
    if "state" in about:
        prefix = f"{index}.state."
        if about["state"]:
            state = State(path=Path(about["state"]["path"]), sha256=about["state"]["sha256"])
        else:
            state = State({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    weight = about["weight"]
    point = Point(weight, Mask(**about["mask"]) if "mask" in about else None, state)
    if "floor" in about:
        return LossDeviation(weight, point, tensors[f"{index}.deviation"], about["floor"])
    start = f"{index}.gradient."
    gradients = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
    if gradients:
        return NetworkDot(weight, point, gradients)
    return Dot(weight, point, tensors[f"{index}.weight"], tensors.get(f"{index}.bias"))


@torch.inference_mode(False)  # in which nothing has derivatives
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
    check_params(where, params)
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
        return build_network_query(NetworkRun(job, chosen, target_impact, validation, training if bent else None, check=check))
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
    return build_query(engine, chosen, target_impact, validation, training)


def open_head(
    where: str,
    model: Any,
    *,
    head: str | None,
    finder: Source | None,
    loss: str | Loss | SampleLoss,
    backend: str = "auto",
    include_bias: bool,
    batch_size: int,
    device: torch.device | None,
    tokens: str,
    check: bool,
) -> HeadEngine:
    """The last layer of a model, found by running it on the first batch of `finder` where `head` does not name it."""
    first = None if finder is None else lambda: next(iter(finder.batches(batch_size)))[0]
    last = find_last_layer(where, model, head=head, first_inputs=first, check=check)
    return HeadEngine(
        where,
        last,
        default_loss(loss, last.loss, where),
        backend=backend,
        include_bias=include_bias,
        batch_size=batch_size,
        device=device,
        tokens=tokens,
    )


def check_params(where: str, params: Any) -> None:
    """Refuse params that are neither a known word nor patterns."""
    words = ("last", "all", "trainable")
    if isinstance(params, str) and params not in words:
        raise InputTypeError(
            f"{where}: expected params to be one of {', '.join(map(repr, words))}, or a list of patterns of parameter names; "
            f"got {params!r}. Put a single pattern into a list."
        )


def known_loss(where: str, loss: str | Loss | SampleLoss, params: str | Sequence[str] = "last") -> str | Loss | SampleLoss:
    """The loss asked for, checked before a model runs; "auto" stays, since only the model can tell."""
    if params != "last" and callable(loss) and not isinstance(loss, (Loss, type)):
        return loss
    return loss if isinstance(loss, str) and loss == "auto" else get_loss(where, loss)  # type: ignore[arg-type]


def default_loss(loss: str | Loss | SampleLoss, own: str | None, where: str) -> Any:
    """The loss asked for; "auto" is the estimator's own, else cross_entropy."""
    if callable(loss) and not isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss == "auto":
        loss = own or "cross_entropy"
    return get_loss(where, loss)


def require_val(where: str, method: Method | Control, val: Any, impact: Impact) -> None:
    """Refuse val where it has no meaning, and its absence where it is needed."""
    if isinstance(method, Method):
        method.points.check(where)
        if method.points.deviation_floor is not None and impact.name != "utility":
            raise InputError(
                f"{where}: expected no impact with the loss-deviation estimator, which looks at the validation loss and no "
                "other function. Leave it out, or use estimator='gradient'."
            )
    if method.needs_val and val is None:
        raise InputError(
            f"{where}: expected val, the trusted validation data that method {method.name!r} compares with; got None. "
            "Pass (features, labels) or a loader, or use method='self_tracin', which needs none."
        )
    if not method.needs_val and val is not None:
        raise InputError(
            f"{where}: expected no val for method {method.name!r}, which does not look at validation data. Leave it out."
        )
    if not method.needs_val and impact.name != "utility":
        raise InputError(
            f"{where}: expected no impact for method {method.name!r}, which has no validation data to take it on. Leave it out."
        )


def require_one_query(where: str, tokens: str, names: tuple[str, ...] | None) -> None:
    """Refuse scores of tokens for several queries, before any work."""
    if tokens == "each" and names is not None:
        raise InputError(
            f"{where}: expected a single query with tokens='each', whose scores are [N, T]; got {len(names)} queries. Score "
            "them one at a time, or use tokens='mean'."
        )


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
    )


def trainable(engine: HeadEngine) -> Trainable:
    """What points that train the model on may do with it."""
    return Trainable(engine.last.module, engine.sample_losses)


def _pinned(term: Term) -> Term:
    state = term.point.state
    return term if state is None else replace(term, point=replace(term.point, state=state.pinned()))
