"""The terms of a query and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .data.archives import opened_archive
from .data.writers import check_output, written_whole
from .engines import SampleLoss
from .errors import InputError
from .losses import Loss, get_loss
from .methods import METHODS, Control, Method
from .points import Mask, Point, State
from .terms import Dot, LossDeviation, NetworkDot, Term


def check_query_file(
    where: str, argument: str, path: str | os.PathLike[str], method: Method | Control, loss: str | Loss | SampleLoss
) -> Path:
    """Refuse, before any work, a path that cannot be written and a query that no file can hold."""
    if not isinstance(loss, (str, Loss)):
        raise InputError(
            f"{where}: expected a loss of ipfast.losses, which can be written to a file; got a callable. Pass the query on "
            "as it is."
        )
    file = check_output(where, argument, path, (".safetensors",))
    if not isinstance(method, Method) or not method.needs_val:
        raise InputError(f"{where}: expected a query made from validation data; {method.name!r} has nothing to store.")
    return file


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
        model: fingerprint of the last layer, or of all parameters of a network, at which gradients are taken; None: not known.
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
    model: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .safetensors file. Masks go by name, seed, member and rate, checkpoint files by path and hash."""
        where = "Query.save"
        file = check_query_file(where, "path", path, self.method, self.loss)
        assert isinstance(self.loss, Loss)
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
            "model": json.dumps(self.model),
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
        with opened_archive(where, path, "ipfast query or Query.save") as (about, archive):
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
            known = json.loads(about.get("model", "null"))
            return cls(
                terms, method, loss, about["head"], include_bias, stats, about["combine"], queries, tokens, scored, known
            )


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
