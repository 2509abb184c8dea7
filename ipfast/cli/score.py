"""ipfast score: scores at a linear head, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import ipfast

from . import options
from .app import command
from .impact import chosen_impact
from .method import chosen_method
from .training_data import training_data


@command
def score(
    head: options.Head,
    features: options.Features = None,
    labels: options.Labels = None,
    train: options.Train = None,
    val: options.Val = None,
    stored_query: Annotated[
        Path | None, typer.Option(help="In place of --val and all that is said of it: what ipfast query has written.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="ip, ip_ensemble, self_tracin, exact, lissa, cg, arnoldi, datainf, ekfac, self_lissa, self_ekfac, or a "
            "control: loss, random."
        ),
    ] = "ip",
    method_option: options.MethodOption = None,
    loss: options.Loss = "auto",
    impact: options.Impact = "utility",
    groups: options.Groups = None,
    positive: options.Positive = None,
    pairs: options.Pairs = None,
    impact_option: options.ImpactOption = None,
    backend: Annotated[str, typer.Option(help="auto, reference, cpp or triton.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="bf16: rounded products, float32 sums; default: exact.")] = None,
    device: options.Device = None,
    ids: Annotated[
        Path | None, typer.Option(help=".npy [N], or .txt with one a line: names of the samples, for the output.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=".npy, .parquet, .csv, or .safetensors for everything.")] = None,
    tokens: options.Tokens = "mean",
    rows: Annotated[int, typer.Option(min=0, help="How many of the lowest scores to print.")] = 10,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on runs over a second.")] = True,
) -> None:
    """Score training samples at a linear head, from files.

    Example: ipfast score --features H.npy --labels y.npy --head head.safetensors --val val.npz --out scores.npy
    """
    data = training_data("score", train, features, labels)
    chosen = chosen_impact("score", impact, groups, positive, pairs, impact_option)
    trusted: Any = val
    if stored_query is not None:
        if val is not None:
            raise ipfast.InputError("score: expected --val or --stored-query; got both. Leave one of them out.")
        trusted = ipfast.Query.load(stored_query)
    result = ipfast.score(
        head,
        data,
        trusted,
        method=chosen_method("score", method, method_option),
        loss=loss,
        impact=chosen,
        tokens=tokens,
        backend=backend,
        precision=precision,
        device=device,
        progress=progress,
        ids=ids,
        out=out,
    )
    _summary(result, rows)
    if out is not None:
        typer.echo(f"Scores written to {out}")


def _summary(scores: ipfast.Scores, rows: int) -> None:
    typer.echo(
        f"{len(scores)} samples, method {scores.method}, engine {scores.engine}, backend {scores.backend}"
        + (f", {scores.stats['score_seconds']:.3g} s" if "score_seconds" in scores.stats else "")
    )
    for query in scores.queries or ():
        typer.echo(f"Query {query}:")
        _of_query(scores.only(query), rows)
    if not scores.queries:
        _of_query(scores, rows)


def _of_query(scores: ipfast.Scores, rows: int) -> None:
    values = scores.values if scores.counted is None else scores.values[scores.counted]
    if not len(values):
        typer.echo("No token counts: all labels are the ignored one.")
        return
    quantiles = np.quantile(values.double().numpy(), [0.05, 0.5, 0.95])
    typer.echo(
        f"{int((values < 0).sum())} negative; minimum {float(values.min()):.4g}, 5 % {quantiles[0]:.4g}, "
        f"median {quantiles[1]:.4g}, 95 % {quantiles[2]:.4g}, maximum {float(values.max()):.4g}"
    )
    if scores.counted is not None:
        _lowest_tokens(scores, rows)
        return
    count = min(rows, len(scores))
    if count:
        typer.echo(f"The {count} lowest (most detrimental first):")
        typer.echo(f"{'row':>12}  {'score':>12}")
        for row in scores.lowest(count).tolist():
            typer.echo(f"{row:>12}  {float(values[row]):>12.5g}")


def _lowest_tokens(scores: ipfast.Scores, rows: int) -> None:
    assert scores.counted is not None
    values, (sequence, token) = scores.values[scores.counted], scores.counted.nonzero(as_tuple=True)
    lowest = values.argsort(stable=True)[:rows].tolist()
    if lowest:
        typer.echo(f"The {len(lowest)} lowest tokens (most detrimental first):")
        typer.echo(f"{'row':>12}  {'token':>8}  {'score':>12}")
    for place in lowest:
        typer.echo(f"{int(sequence[place]):>12}  {int(token[place]):>8}  {float(values[place]):>12.5g}")
