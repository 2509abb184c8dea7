"""The scored part of a model, opened for a run: its last layer, or the network with the parameters that are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .arguments import default_loss
from .data import Source
from .engines import HeadEngine, SampleLoss, find_last_layer
from .engines.network import Network
from .errors import InputError, InputTypeError
from .fingerprint import fingerprint
from .losses import Loss
from .methods import Method
from .points import Trainable
from .query_file import Query
from .terms import Dot, NetworkDot


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
    precision: str | None = None,
    check: bool,
) -> HeadEngine:
    """The last layer of a model, found by running it on the first batch of `finder` where `head` does not name it."""
    first = None if finder is None else lambda: finder.first(batch_size).inputs
    last = find_last_layer(where, model, head=head, first_inputs=first, check=check)
    if last.class_weight is not None and isinstance(loss, str) and loss == "auto":
        raise InputError(
            f"{where}: expected loss, since the estimator was fitted with class_weight={last.class_weight!r}, of which the "
            f"loss here knows nothing; got 'auto'. Pass loss={last.loss!r} for losses without weights, or one of ipfast.losses "
            "with a weight for each class."
        )
    return HeadEngine(
        where,
        last,
        default_loss(loss, last.loss, where),
        backend=backend,
        include_bias=include_bias,
        batch_size=batch_size,
        device=device,
        tokens=tokens,
        precision=precision,
        check=check,
    )


def open_network(
    where: str,
    model: Any,
    loss: Loss | SampleLoss,
    *,
    params: str | Sequence[str],
    tokens: str | None,
    precision: str | None,
    device: torch.device | None,
    check: bool,
) -> Network:
    """The model as a network; its scored parameters by pattern, or by name where a stored query gives a tuple of them."""
    if tokens == "each":
        raise InputError(
            f"{where}: expected tokens='mean' or 'sum' with params={params!r}; got 'each', which is of the last layer. Use "
            "params='last'."
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile's, whose code knows no derivatives along a direction
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if isinstance(params, tuple):
        params = [f"^{re.escape(name)}$" for name in params]
    network = Network(where, model, loss, params=params, tokens=tokens or "mean", precision=precision, check=check)
    if precision is not None and network.dtype == torch.float64:
        raise InputTypeError(
            f"{where}: expected a model in float32 or narrower with precision='bf16'; got float64. Leave it out."
        )
    if device is not None and torch.empty(0, device=device).device != network.device:
        raise InputError(
            f"{where}: expected the model on {device}, since it is scored where it is; its parameters are on {network.device}. "
            "Move it there with model.to."
        )
    return network


def know_query(engine: HeadEngine, query: Query) -> None:
    """Tell the engine whether the query is of token data, which the scored data must then be too."""
    if isinstance(query.method, Method) and query.method.needs_val:
        engine.of_tokens["the query"] = query.tokens is not None


def head_key(engine: HeadEngine) -> str:
    """The fingerprint of the last layer, by which a query knows it again."""
    last = engine.last
    return fingerprint({"weight": last.weight} | ({} if last.bias is None else {"bias": last.bias}), {})


def network_key(network: Network) -> str:
    """The fingerprint of all parameters of a network, by which a query knows it again."""
    return fingerprint(network.every(), {})


def _check_known(where: str, query: Query, key: Callable[[], str]) -> None:
    """Refuse a model with other parameters, unless all points bring their own; a fingerprint takes seconds of large models."""
    of_its_own = query.terms and all(term.point.state is not None for term in query.terms)
    if query.model is not None and not of_its_own and query.model != key():
        raise InputError(
            f"{where}: expected the model that the query was made with; this one has the same shapes, and other parameters, of "
            "another training or another dtype. Make the query again with ipfast.query and this model."
        )


def check_query_fits(where: str, query: Query, engine: HeadEngine) -> None:
    """Refuse a query that was made for another head."""
    for term in query.terms:
        if isinstance(term, Dot) and term.gradient.shape[-2:] != engine.last.weight.shape:
            raise InputError(
                f"{where}: expected a query for a head of weight {list(engine.last.weight.shape)}; this one was made for "
                f"{list(term.gradient.shape[-2:])}. Make it again with ipfast.query and this model."
            )
    _check_known(where, query, lambda: head_key(engine))


def check_query_fits_network(where: str, query: Query, network: Network) -> None:
    """Refuse a query that was made for another network."""
    for term in query.terms:
        for name, gradient in term.gradients.items() if isinstance(term, NetworkDot) else ():
            own = network.parameters.get(name)
            if own is None or gradient.shape[1:] != own.shape:
                got = "it has none of that name" if own is None else f"its {name!r} is {list(own.shape)}"
                raise InputError(
                    f"{where}: expected the model that the query was made for, with {name!r} of shape "
                    f"{list(gradient.shape[1:])}; {got}. Make the query again with ipfast.query and this model."
                )
    _check_known(where, query, lambda: network_key(network))


def trainable(engine: HeadEngine) -> Trainable:
    """What points that train the model on may do with it."""
    return Trainable(engine.last.module, engine.sample_losses)
