"""score(): the scores of a whole data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import dispatch
from .arguments import (
    BATCH_SIZE,
    default_loss,
    known_loss,
    known_params,
    require_by,
    require_engine,
    require_one_query,
    require_val,
)
from .checks import check_no_overwriting, check_precision, fixed_width, positive_integer, usable_device
from .curvature import Passes
from .data import Source, check_output, open_source, same_data
from .data.files import read_ids
from .data.writers import FORMATS
from .engines import ENGINES, TOKENS
from .engines.autocast import without_autocast
from .errors import InputError, IpfastWarning
from .groups import NetworkJob, open_validation, validation_sets, with_impact
from .head_score import head_scores
from .impacts import get_impact
from .methods import Control, Method, get_method
from .network_score import NetworkRun, network_scores, require_pairs_fit
from .opening import check_query_fits_network, open_head, open_network
from .pairwise import require_pairs
from .query_file import Query
from .registry import check_choice
from .scores import Scores, check_columns
from .streaming import Result


@torch.inference_mode(False)  # in which nothing has derivatives
@without_autocast
def score(
    model: Any,
    train: Any,
    val: Any = None,
    *,
    method: str | Method | Control = "ip",
    loss: Any = "auto",
    impact: Any = "utility",
    params: str | Sequence[str] = "last",
    head: str | None = None,
    include_bias: bool = True,
    engine: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
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
    labels_key: str = "labels",
    by: str | None = None,
) -> Scores:
    """Score every training sample: which help the model on the validation data (positive) and which hurt it (negative).

        s_i = ⟨G, ∇ℓ_i⟩,   G = (1/M) Σ_v ∇ℓ_v            method="ip": to first order, the rise of the validation loss
                                                          if sample i is removed
        s_i = (1/T) Σ_t ⟨G_t, ∇ℓ_i(θ_t)⟩                 method="ip_ensemble": at T dropout members; "tracin": at checkpoints
        s_i = −‖∇ℓ_i‖²                                   method="self_tracin": no validation data; lowest = memorised, noisy

    Gradients are those of the last linear layer, computed exactly from its input features without being formed: each training
    batch passes through the model once, under inference_mode. With `params` they are those of any parameters, as exact: a
    forward-mode pass for one query, at about three times the cost of inference, or one backward pass to the layers' outputs for
    several queries and for self-influence. Nothing of the model is ever changed. val must be trusted: with label noise in it,
    "ip" can be worse than chance.

    Args:
        model: an nn.Module that ends in an nn.Linear, in eval mode; a bare nn.Linear, when the data are features; a fitted
            scikit-learn linear classifier; or a .safetensors or .npz path with `weight` [C, d] and `bias` [C].
        train, val: a pair (features or inputs [N, ...], labels) of arrays, tensors or .npy paths; a Dataset; a DataLoader that
            does not shuffle; a path to an .npz or .safetensors file with `features` and `labels`. A memory-mapped array is read
            block by block. Batches are tuples (inputs …, labels), or dictionaries with the keyword arguments of the model and
            its labels under `labels_key`, as those of Hugging Face data sets. val may be a stored Query, which carries its
            method; it is None for self_tracin, loss and random.
            Several validation sets, as a list of them or as a mapping from names, make as many queries.
        method: "ip", "ip_ensemble", "self_tracin", or a control that others must beat: "loss" (−ℓ_i) or "random"; or a Method,
            such as Method(points=Dropout(20, 0.05)), or Method(points=Checkpoints([...])) for TracIn. With an inverse Hessian
            of the mean training loss: "exact", "lissa", "cg", "arnoldi", "datainf", "ekfac", "self_lissa", "self_ekfac", or
            SOURCE, Method(points=Segments(...), curvature=Source()).
        loss: "cross_entropy" (integer labels), "bce_with_logits", "mse" or an object of ipfast.losses; "auto": the estimator's
            own for scikit-learn, else cross_entropy. With `params` also a callable (model, batch) -> ℓ [B] of each sample.
        impact: what should improve: "utility" (the mean validation loss); "adversarial" (that of samples moved across the
            decision boundary); an object of ipfast.impacts, such as DemographicParity(groups=…), EqualOpportunity(groups=…) or
            Counterfactual(pairs=…); or a callable f(logits [M, C], labels [M]) -> scalar, lower is better.
        params: "last", the final linear layer; "all" parameters; "trainable", those that require gradients; or a list of
            regular expressions searched for in their names, such as ["lora_"]. Others cost nothing but the forward pass.
        head: name of that layer; None finds it by running the model on one batch.
        include_bias: whether the layer's bias is a scored parameter.
        engine: "auto" (see `ipfast.select_engine`), or the one to use: "head" for the last layer, "forward", "ghost" or
            "explicit" (gradients that are formed, to check the others) for other parameters.
        backend: "auto", "reference", "cpp" or "triton"; a named one is used or refused. Of the last layer: with `params` each
            layer's operation chooses its own.
        precision: of the products with the features: None computes float64 features in float64 and all others in exact
            float32; "bf16" rounds features, weights and queries to bfloat16 and keeps sums, logits and everything else in
            float32. The query gradient and losses stay exact. Best with features stored as bfloat16. With `params` the model
            runs under torch.autocast, for the query as well, and losses and sums stay in float32.
        check: refuse a model in train mode and NaN weights, warn if val is train; and, from a few samples that are run before:
            refuse features or losses that are random or depend on the rest of the batch, warn of data that is not the same when
            it is read again.
        batch_size: samples that go through the model at once, where the data does not come in batches: default 256, or with
            `params` as many as fit into memory.
        device: where scores are computed; default: where the model or the features are.
        progress: show a bar with rate and remaining time on runs over a second.
        ids: [N] names of the samples, carried to the output; also the path of an .npy file, or of a .txt file with one a line.
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
        by: "layer" gives, beside the scores, the part that the parameters of each layer have in them, as `Scores.by_layer`
            [N, L]; "token" the part of what is computed at each position of sequences [B, T], as `Scores.by_token` [N, T]. Over
            a network and by the ghost engine only.

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
    params = known_params(where, params)
    check_choice(where, "engine", engine, ENGINES)
    check_choice(where, "backend", backend, dispatch.BACKENDS)
    check_choice(where, "tokens", tokens, TOKENS)
    size = BATCH_SIZE if batch_size is None else positive_integer(where, "batch_size", batch_size)
    stored = val if isinstance(val, Query) else None
    given = {"method": method != "ip", "loss": loss != "auto", "impact": impact != "utility", "head": head is not None}
    given["include_bias"] = not include_bias
    given["val_groups"] = val_groups is not None
    given["tokens"] = tokens != "mean"
    given["params"] = params != "last"
    if stored is not None and any(given.values()):
        superfluous = " and ".join(name for name, is_given in given.items() if is_given)
        raise InputError(f"{where}: expected no {superfluous} beside a stored Query, which carries its own. Leave it out.")
    chosen = stored.method if stored is not None else get_method(where, method)
    loss = known_loss(where, loss, params)
    chosen_impact = get_impact(where, impact)
    scored = params if stored is None else stored.params
    check_precision(where, precision)
    given = {"head": head is not None, "include_bias=False": not include_bias, f"backend={backend!r}": backend != "auto"}
    require_engine(where, scored, engine, given)
    combine = stored.combine if stored is not None else chosen.points.combine if isinstance(chosen, Method) else "mean"
    require_by(where, by, scored, engine, chosen, combine)
    if stored is None:
        require_val(where, chosen, val, chosen_impact)
    if not aggregate:
        several = isinstance(val, Mapping) or len(validation_sets(val)) > 1
        alone = {"a stored Query": stored is not None, "val_groups": val_groups is not None, "several sets": several}
        if precision is not None:
            raise InputError(
                f"{where}: expected no precision with aggregate=False, whose products are exact; got {precision!r}. "
                "Leave it out."
            )
        require_pairs(where, chosen, {**alone, "keep_members": keep_members, "impact": impact != "utility"}, params)
    output = None if out is None else check_output(where, "out", out, (".safetensors", *FORMATS))
    check_no_overwriting(where, {"out": out}, {"model": model, "train": train, "val": val, "ids": ids})
    target = usable_device(where, device)
    kernels = dispatch.select_backend(backend, device=target or _device_of(model, train)).name != "reference"

    source = open_source(where, "train", train, batch_size=size, labels_key=labels_key)
    validation = open_validation(where, None if stored is not None else val, val_groups, batch_size=size, labels_key=labels_key)
    validation = with_impact(where, validation, chosen_impact, batch_size=size, labels_key=labels_key)
    require_one_query(where, tokens, None if validation is None else validation.names)
    names = _names(where, ids, source)
    if isinstance(chosen, Control) and chosen.name == "random":
        if tokens == "each":
            raise InputError(f"{where}: expected no tokens='each' with method 'random', one number a sample. Leave it out.")
        return _finish(where, Scores(_random(source, chosen), "random", "none", "reference", {}, names), output)

    queries = stored.queries if stored is not None else None if validation is None else validation.names
    if output is not None and output.suffix in (".csv", ".parquet"):
        check_columns(where, queries or ())
    passes = Passes(where, chosen.name, progress, source.rows)
    asked: dict[str, Any] = {"stored": stored, "result": Result(combine, keep_members), "queries": queries}
    asked |= {"progress": progress, "ids": names, "pairs": not aggregate}
    if scored != "last":
        network = open_network(
            where,
            model,
            stored.loss if stored is not None else default_loss(loss, None, where),
            params=scored,
            tokens=tokens if stored is None else stored.tokens,
            precision=precision,
            device=target,
            check=check,
        )
        if stored is not None:
            check_query_fits_network(where, stored, network)
        if check and validation is not None:
            _warn_of_train(train, val)
        job = NetworkJob(where, network, engine=engine, batch_size=None if batch_size is None else size, by=by)
        if not aggregate:
            assert validation is not None
            validation = require_pairs_fit(where, network, validation)
        run = NetworkRun(job, chosen, chosen_impact, validation, source, check=check, passes=passes)
        return _finish(where, network_scores(run, source, **asked), output)
    head_engine = open_head(
        where,
        model,
        head=head if stored is None else stored.head,
        finder=source if validation is None else validation.sources[0],
        loss=loss if stored is None else stored.loss,
        backend=backend,
        include_bias=include_bias if stored is None else stored.include_bias,
        batch_size=size,
        device=target,
        tokens=tokens if stored is None else stored.tokens or "mean",
        precision=precision,
        check=check,
    )
    if check and validation is not None:
        _warn_of_train(train, val)
    made = head_scores(
        head_engine, chosen, chosen_impact, validation, source, check=check, kernels=kernels, passes=passes, **asked
    )
    return _finish(where, made, output)


def _warn_of_train(train: Any, val: Any) -> None:
    if any(same_data(train, data) for data in validation_sets(val)):
        warnings.warn(
            "score: val is the training data itself. Its gradient is nearly zero at the optimum and carries the same label "
            "noise, so scores can be worse than chance. Pass clean held-out data, or use method='self_tracin'.",
            IpfastWarning,
            stacklevel=3,
        )


def _random(source: Source, control: Control) -> Tensor:
    rows = source.rows
    if rows is None:
        rows = sum(len(batch.labels) for batch in source.batches(BATCH_SIZE))
    return torch.rand(rows, generator=torch.Generator().manual_seed(control.seed))


def _device_of(model: Any, train: Any) -> torch.device:
    """Where scores will be computed, as far as it can be told before the data is read."""
    parameters = None if isinstance(model, type) else getattr(model, "parameters", None)
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
    names = fixed_width(np.asarray(read_ids(where, "ids", ids) if isinstance(ids, (str, os.PathLike)) else ids))
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
