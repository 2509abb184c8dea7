"""A curvature fitted to the training data once, for any number of queries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .arguments import BATCH_SIZE, default_loss, known_loss, known_params
from .checks import check_no_overwriting, positive_integer, usable_device
from .curvature import Fitted, Journal, Kept, Passes, PointCurvature, StoredFactors
from .data import ArraySource, Source, open_source
from .data.writers import check_output
from .engines import TOKENS
from .engines.autocast import without_autocast
from .errors import InputError
from .fingerprint import fingerprint
from .groups import HeadQueryMaker, NetworkJob, groups
from .hygiene import check_features
from .impacts import get_impact
from .losses import loss_name
from .methods import Control, Method, get_method
from .network_score import NetworkRun
from .opening import open_head, open_network, trainable
from .points import Segments
from .registry import check_choice


@torch.inference_mode(False)  # in which nothing has derivatives
@without_autocast
def fit(
    model: Any,
    train: Any,
    *,
    method: str | Method = "ekfac",
    loss: Any = "auto",
    params: str | Sequence[str] = "last",
    head: str | None = None,
    include_bias: bool = True,
    check: bool = True,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    tokens: str = "mean",
    labels_key: str = "labels",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fitted:
    """Fit the curvature of a method to the training data, and keep its factors for queries to come.

    Args:
        model, train, loss, params, head, include_bias, check, batch_size, device, tokens, labels_key: as in `ipfast.score`.
        method: one whose curvature is Exact, EKFAC, Arnoldi or Source. The others solve anew for every query, so there is
            nothing to keep but the query: see `ipfast.query` and `Query.save`.
        out: .safetensors path for the factors. Beside it, at the same path with the ending .part, lies what has been summed so
            far, written every minute: the same call goes on with it when it was interrupted, and removes it in the end.
        progress: show a bar with rate and remaining time on passes over a second.

    Returns:
        A Fitted: pass it to `ipfast.score`, `ipfast.query` or `Scorer` as the method, with any val and impact. Its factors go
        with the parameters that they were fitted at, and other ones are refused.

    Raises:
        InputError, InputTypeError, MissingFileError: an argument does not fit; nothing has been computed or written.

    >>> linear = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    >>> h, y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    >>> fitted = fit(linear, (h, y), method="exact", progress=False)
    >>> scores = __import__("ipfast").score(linear, (h, y), (h[:1], y[:1]), method=fitted, progress=False)
    >>> scores.method
    'exact'
    """
    where = "fit"
    chosen = _storable(where, get_method(where, method))
    chosen.points.check(where)
    params = known_params(where, params)
    check_choice(where, "tokens", tokens, TOKENS)
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    loss = known_loss(where, loss, params)
    output = None if out is None else check_output(where, "out", out, (".safetensors",))
    check_no_overwriting(where, {"out": out}, {"model": model, "train": train})
    target = usable_device(where, device)
    source = open_source(where, "train", train, batch_size=size, labels_key=labels_key)
    journal = None
    if output is not None:
        about = {
            "curvature": repr(chosen.curvature),
            "params": params,
            "head": head,
            "include_bias": include_bias,
            "loss": loss if isinstance(loss, str) else loss_name(loss),
            "tokens": tokens,
            "samples": source.rows,
            "data": fingerprint(_some_of(source, size), {}),
        }
        journal = Journal(where, output.with_suffix(".part"), json.dumps(about, default=list))
    passes = Passes(where, chosen.name, progress, source.rows, journal)
    impact = get_impact(where, "utility")
    if params == "last":
        engine = open_head(
            where,
            model,
            head=head,
            finder=source,
            loss=loss,
            include_bias=include_bias,
            batch_size=size,
            device=target,
            tokens=tokens,
            check=check,
        )
        engine.check("train", source)
        if check:
            check_features(where, engine.last, {"train": (source,)})
        maker: Any = HeadQueryMaker(chosen, impact, None, source, passes)
        kept = _kept(chosen, maker, lambda: groups(engine, chosen.points.points(trainable(engine))))
    else:
        network = open_network(
            where,
            model,
            default_loss(loss, None, where),
            params=params,
            tokens=tokens,
            precision=None,
            device=target,
            check=check,
        )
        job = NetworkJob(where, network, engine="auto", batch_size=None if batch_size is None else size)
        run = NetworkRun(job, chosen, impact, None, source, check=check, passes=passes)
        run.look_ahead(train=source)
        kept = _kept(chosen, run.maker, lambda: run.groups(None))
    fitted = Fitted(chosen.curvature, kept)
    if output is not None:
        fitted.save(output)
    if journal is not None:
        journal.remove()
    return fitted


KNOWN_ROWS = 1000
"""Of whose features are looked at, to know data again."""


def _some_of(source: Source, size: int) -> dict[str, Tensor]:
    """Numbers by which data are known again: of arrays all labels and the features of some rows, of others the first sample."""
    if isinstance(source, ArraySource):
        rows = np.unique(np.linspace(0, len(source.labels) - 1, KNOWN_ROWS).astype(np.int64))
        labels = source.labels
        if not isinstance(labels, Tensor):
            labels = torch.frombuffer(bytearray("\n".join(map(str, labels)).encode()), dtype=torch.uint8)
        return {"features": source.inputs.taken(rows), "labels": labels}
    batch = source.first(size)
    parts = tree_leaves((batch.inputs, batch.labels))
    leaves = (leaf if isinstance(leaf, Tensor) else np.asarray(leaf) for leaf in parts)
    numbers = (leaf for leaf in leaves if isinstance(leaf, Tensor) or leaf.dtype.kind in "biuf")
    return {str(place): torch.as_tensor(leaf[:1] if leaf.ndim else leaf) for place, leaf in enumerate(numbers)}


def _storable(where: str, method: Method | Control) -> Method:
    """Refuse a method without factors that can be kept."""
    if isinstance(method, Control) or not method.curvature.stored:
        name = method.name if isinstance(method, Control) else type(method.curvature).__name__
        raise InputError(
            f"{where}: expected a method whose curvature is Exact, EKFAC, Arnoldi or Source; got {name}, which leaves no "
            "factors to keep. Keep its query instead: ipfast.query(...).save(path)."
        )
    return method


def _kept(method: Method, maker: Any, groups: Callable[[], Iterator[Any]]) -> dict[str, Kept]:
    """The factors at each point, or of each segment."""
    if isinstance(method.points, Segments):
        segments = enumerate(maker.segments(groups, torch.device("cpu")))
        return {maker.key_of_segment(groups, number): _packed(factors) for number, factors in segments}
    curvature, kept = method.curvature, {}
    assert isinstance(curvature, PointCurvature)
    for group in groups():
        with group.entered():
            for index in range(len(group.points)):
                factors = curvature.fit(maker.problem(group, index))
                assert isinstance(factors, StoredFactors)  # the others have been refused
                kept[maker.key(group, index)] = _packed(factors)
    return kept


def _packed(factors: StoredFactors) -> Kept:
    return Kept(factors.kind, factors.tensors(), factors.described(), factors.stats)
