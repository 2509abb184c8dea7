"""The query: what the gradients of the training samples are multiplied with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import dispatch, ops
from .checks import existing_file, positive_integer, usable_device
from .curvature import Identity
from .data import Source, open_source
from .data.writers import check_output, written_whole
from .engines import HeadEngine, find_last_layer
from .errors import InputError
from .impacts import Impact, get_impact
from .losses import Loss, get_loss
from .methods import METHODS, Control, Method, get_method
from .points import Point
from .registry import check_choice

BATCH_SIZE = 256
"""Samples that go through a backbone at once, where the data does not come in batches."""


@dataclass(frozen=True)
class Dot:
    """w·⟨q, ∇ℓ_i(θ)⟩ with the query q in two parts, G [C, d] and G_b [C]."""

    weight: float
    point: Point
    gradient: Tensor
    bias_gradient: Tensor | None


@dataclass(frozen=True)
class Quadratic:
    """w·⟨∇ℓ_i(θ), H⁻¹ ∇ℓ_i(θ)⟩, the self-influence."""

    weight: float
    point: Point
    curvature: Identity


@dataclass(frozen=True)
class Query:
    """The terms of a score, ready to meet training data; made by `ipfast.query`, stored with `save`.

    Attributes:
        terms: Dot or Quadratic; empty for the controls.
        method: a row of the method table.
        loss: of one sample.
        head: name of the scored layer in the model; "" for a bare linear layer.
        include_bias: whether the bias is a scored parameter.
        stats: the query's norm, M, class counts, seconds.
    """

    terms: tuple[Dot | Quadratic, ...]
    method: Method | Control
    loss: Loss
    head: str
    include_bias: bool
    stats: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .safetensors file."""
        where = "Query.save"
        file = check_output(where, "path", path, (".safetensors",))
        if not all(isinstance(term, Dot) for term in self.terms) or not isinstance(self.method, Method):
            raise InputError(f"{where}: expected a query made from validation data; {self.method.name!r} has nothing to store.")
        tensors = {}
        for index, term in enumerate(self.terms):
            assert isinstance(term, Dot)
            tensors[f"{index}.weight"] = term.gradient.contiguous()
            if term.bias_gradient is not None:
                tensors[f"{index}.bias"] = term.bias_gradient.contiguous()
        about = {
            "ipfast": "query 1",
            "method": self.method.name,
            "loss": self.loss.form,
            "loss_options": json.dumps(self.loss.options()),
            "head": self.head,
            "include_bias": json.dumps(self.include_bias),
            "weights": json.dumps([term.weight for term in self.terms]),
            "stats": json.dumps(dict(self.stats)),
        }
        with written_whole(file) as beside:
            save_file(tensors, beside, metadata=about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Query:
        """Read what `save` wrote."""
        where = "Query.load"
        file = existing_file(where, "path", path)
        try:
            with safe_open(str(file), framework="pt") as archive:
                about = archive.metadata() or {}
                tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dict)
            terms = tuple(
                Dot(weight, Point(weight), tensors[f"{index}.weight"], tensors.get(f"{index}.bias"))
                for index, weight in enumerate(json.loads(about["weights"]))
            )
            loss = type(get_loss(where, about["loss"]))(**json.loads(about["loss_options"]))
            include_bias, stats = json.loads(about["include_bias"]), json.loads(about["stats"])
            name = about["method"]
            # A stored query is complete in its terms; of a method that is no row of the table only the name is left to know.
            method = METHODS.get(where, name) if name in METHODS else Method(name=name)
            return cls(terms, method, loss, about["head"], include_bias, stats)
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"{where}: expected a file written by Query.save; {str(file)!r} cannot be read ({error})."
            ) from error


def query(
    model: Any,
    val: Any = None,
    *,
    method: str | Method | Control = "ip",
    loss: str | Loss = "auto",
    impact: Any = "utility",
    params: str = "last",
    head: str | None = None,
    include_bias: bool = True,
    backend: str = "auto",
    check: bool = True,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    train: Any = None,
) -> Query:
    """Make the query of a method: for "ip" the gradient G = (1/M) Σ_v ∇ℓ_v of the validation loss at the last layer.

    Args:
        model, val, method, loss, impact, params, head, include_bias, check, batch_size, device: as in `ipfast.score`.
        backend: accepted so that the options of `score` can be passed on; the query itself is computed by torch.
        train: used only to find the head by running the model when there is no `val`.

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
    check_choice(where, "params", params, ("last",))
    check_choice(where, "backend", backend, dispatch.BACKENDS)
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    loss = known_loss(where, loss)
    target_impact = get_impact(where, impact)
    require_val(where, chosen, val, target_impact)
    target = usable_device(where, device)
    source = None if val is None else open_source(where, "val", val, batch_size=size)
    finder = source
    if finder is None and train is not None:
        finder = open_source(where, "train", train, batch_size=size)
    first = None if finder is None else lambda: next(iter(finder.batches(size)))[0]
    last = find_last_layer(where, model, head=head, first_inputs=first, check=check)
    chosen_loss = default_loss(loss, last.loss, where)
    engine = HeadEngine(
        where,
        last,
        chosen_loss,
        backend=backend,
        include_bias=include_bias,
        batch_size=size,
        device=target,
    )
    return build_query(engine, chosen, target_impact, source)


def known_loss(where: str, loss: str | Loss) -> str | Loss:
    """The loss asked for, checked before a model runs; "auto" stays, since only the model can tell."""
    return loss if isinstance(loss, str) and loss == "auto" else get_loss(where, loss)


def default_loss(loss: str | Loss, own: str | None, where: str) -> Loss:
    """The loss asked for; "auto" is the estimator's own, else cross_entropy."""
    if isinstance(loss, str) and loss == "auto":
        loss = own or "cross_entropy"
    return get_loss(where, loss)


def require_val(where: str, method: Method | Control, val: Any, impact: Impact) -> None:
    """Refuse val where it has no meaning, and its absence where it is needed."""
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


def build_query(engine: HeadEngine, method: Method | Control, impact: Impact, source: Source | None) -> Query:
    """The query of a method at the points it names."""
    terms: list[Dot | Quadratic] = []
    stats: dict[str, Any] = {}
    if isinstance(method, Method):
        for point in method.points.points():
            if method.target == "self":
                terms.append(Quadratic(point.weight, point, method.curvature))
                continue
            assert source is not None
            engine.check("val", source)
            started = time.perf_counter()
            gradient, bias_gradient, about = _validation_gradient(engine, impact, source)
            terms.append(Dot(point.weight, point, gradient, bias_gradient if engine.include_bias else None))
            stats = {**about, "impact": impact.name, "query_seconds": time.perf_counter() - started}
    return Query(tuple(terms), method, engine.loss, engine.last.name, engine.include_bias, stats)


def _validation_gradient(engine: HeadEngine, impact: Impact, source: Source) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(G [C, d], G_b [C], stats): blocks are multiplied in the dtype of the features and summed in float64."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    total: Tensor | None = None
    bias_total: Tensor | None = None
    count, dtype = 0, torch.float32
    class_counts = torch.zeros(engine.last.outputs, dtype=torch.int64)

    def add(h: Tensor, cotangent: Tensor) -> None:
        nonlocal total, bias_total
        part = (cotangent.to(dtype).T @ h.to(dtype)).double()
        total = part if total is None else total + part
        bias_part = cotangent.double().sum(dim=0)
        bias_total = bias_part if bias_total is None else bias_total + bias_part

    for start, block, labels in engine.blocks("val", source):
        dtype = torch.float64 if block.dtype == torch.float64 else torch.float32
        for first in range(0, len(block), ops.BLOCK_ROWS):
            # Contiguous, since a library product of other strides may round otherwise.
            h, y = block[first : first + ops.BLOCK_ROWS].contiguous(), labels[first : first + ops.BLOCK_ROWS]
            z = engine.logits(h)
            engine.require_finite("val", start + first, h, z.sum(dim=1))
            if impact.additive:
                add(h, impact.cotangent(z.double(), y, engine.loss))
            else:
                # f needs all logits before any cotangent is known; V is small beside the training set, so its features stay.
                kept.append((h.clone(), y.clone(), z.double()))
            if y.dtype == torch.int64:
                class_counts += torch.bincount(y, minlength=engine.last.outputs).cpu()
        count += len(block)
    if count == 0:
        raise InputError("query: expected at least one sample in val; it is empty.")
    if kept:
        every_z, every_y = torch.cat([z for _, _, z in kept]), torch.cat([y for _, y, _ in kept])
        cotangents = torch.split(impact.cotangent(every_z, every_y, engine.loss), [len(h) for h, _, _ in kept])
        for (h, _, _), cotangent in zip(kept, cotangents, strict=True):
            add(h, cotangent)
    assert total is not None
    assert bias_total is not None
    divisor = count if impact.additive else 1
    gradient, bias_gradient = total / divisor, bias_total / divisor
    about: dict[str, Any] = {
        "M": count,
        "query_norm": float(torch.sqrt(gradient.square().sum() + bias_gradient.square().sum())),
    }
    if engine.loss.form == "cross_entropy":
        about["val_class_counts"] = class_counts.tolist()
    if not torch.isfinite(gradient).all():
        raise InputError("query: expected a finite gradient of the impact; got NaN or infinity. Check the impact function.")
    return gradient.to(dtype), bias_gradient.to(dtype), about
