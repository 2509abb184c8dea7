"""ipfast query: the validation side of a score alone, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ipfast

from . import options
from .app import command
from .impact import chosen_impact
from .method import chosen_method
from .training_data import training_data


@command
def query(
    head: options.Head,
    val: options.Val,
    out: Annotated[Path, typer.Option(help="Where to write the query, .safetensors.")],
    features: options.Features = None,
    labels: options.Labels = None,
    train: options.Train = None,
    method: Annotated[
        str,
        typer.Option(help="ip or ip_ensemble; with the training data: exact, lissa, cg, arnoldi, datainf or ekfac."),
    ] = "ip",
    method_option: options.MethodOption = None,
    loss: options.Loss = "auto",
    impact: options.Impact = "utility",
    groups: options.Groups = None,
    positive: options.Positive = None,
    pairs: options.Pairs = None,
    impact_option: options.ImpactOption = None,
    device: options.Device = None,
    tokens: options.Tokens = "mean",
) -> None:
    """Compute the query once, to score any training data with it later, a shard at a time or on other machines.

    Example: ipfast query --head head.safetensors --val val.npz --out query.safetensors
    then: ipfast score --head head.safetensors --train shard.npz --stored-query query.safetensors
    """
    given = (train, features, labels) != (None, None, None)
    data = training_data("query", train, features, labels) if given else None
    chosen = chosen_impact("query", impact, groups, positive, pairs, impact_option)
    made = ipfast.query(
        head,
        val,
        method=chosen_method("query", method, method_option),
        loss=loss,
        impact=chosen,
        train=data,
        device=device,
        tokens=tokens,
        out=out,
    )
    norms = made.stats.get("query_norm")
    about = f", norm {norms:.4g}" if isinstance(norms, float) else ""
    typer.echo(f"Query of {made.stats.get('M')} validation samples, method {made.method.name}{about}: {out}")
