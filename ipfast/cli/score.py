"""ipfast score: scores at a linear head, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import ipfast

from .app import command
from .training_data import training_data


@command
def score(
    head: Annotated[Path, typer.Option(help=".safetensors or .npz with weight [C, d] and bias [C].")],
    features: Annotated[
        Path | None, typer.Option(help=".npy [N, d], of tokens [N, T, d]: inputs of the head; memory-mapped.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy [N], of tokens [N, T]: class indices; or targets [..., C].")] = None,
    train: Annotated[Path | None, typer.Option(help=".npz or .safetensors with both, features and labels.")] = None,
    val: Annotated[Path | None, typer.Option(help=".npz or .safetensors with trusted features and labels.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="ip, ip_ensemble, self_tracin, exact, lissa, cg, datainf, ekfac, self_ekfac, or a control: loss, random."
        ),
    ] = "ip",
    loss: Annotated[str, typer.Option(help="auto (cross_entropy), bce_with_logits or mse.")] = "auto",
    impact: Annotated[
        str,
        typer.Option(
            help="utility, adversarial; with --groups demographic_parity, equal_opportunity; with --pairs counterfactual."
        ),
    ] = "utility",
    groups: Annotated[Path | None, typer.Option(help=".npy [M], the sensitive group of each row of --val.")] = None,
    positive: Annotated[int | None, typer.Option(help="Of groups: the positive class, where there are over two.")] = None,
    pairs: Annotated[Path | None, typer.Option(help=".npy [M, d], the counterpart of each row of --val.")] = None,
    backend: Annotated[str, typer.Option(help="auto, reference, cpp or triton.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="bf16: rounded products, float32 sums; default: exact.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: cpu.")] = None,
    out: Annotated[Path | None, typer.Option(help=".npy, .parquet, .csv, or .safetensors for everything.")] = None,
    tokens: Annotated[str, typer.Option(help="Of token data: mean or sum over a sequence, or each token.")] = "mean",
    rows: Annotated[int, typer.Option(min=0, help="How many of the lowest scores to print.")] = 10,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on runs over a second.")] = True,
) -> None:
    """Score training samples at a linear head, from files.

    Example: ipfast score --features H.npy --labels y.npy --head head.safetensors --val val.npz --out scores.npy
    """
    data = training_data("score", train, features, labels)
    options: dict[str, Any] = {"backend": backend, "precision": precision, "device": device, "progress": progress, "out": out}
    chosen = _impact(impact, groups, positive, pairs)
    result = ipfast.score(head, data, val, method=method, loss=loss, impact=chosen, tokens=tokens, **options)
    _summary(result, rows)
    if out is not None:
        typer.echo(f"Scores written to {out}")


def _impact(name: str, groups: Path | None, positive: int | None, pairs: Path | None) -> Any:
    """The impact of that name with its data."""
    given = {"groups": groups, "positive": positive, "pairs": pairs}
    takes = {
        "demographic_parity": ("groups", "positive"),
        "equal_opportunity": ("groups", "positive"),
        "counterfactual": ("pairs",),
    }
    for option, value in given.items():
        if value is not None and option not in takes.get(name, ()):
            users = " or ".join(impact for impact, options in takes.items() if option in options)
            raise ipfast.InputError(f"score: expected --{option} with --impact {users} only; got {name!r}. Leave it out.")
    if name not in takes:
        return name
    needed = takes[name][0]
    if given[needed] is None:
        raise ipfast.InputError(f"score: expected --{needed} with --impact {name}; got none.")
    return ipfast.impacts.IMPACTS.get("score", name)(**{option: given[option] for option in takes[name]})


def _summary(scores: ipfast.Scores, rows: int) -> None:
    values = scores.values if scores.counted is None else scores.values[scores.counted]
    quantiles = np.quantile(values.double().numpy(), [0.05, 0.5, 0.95])
    typer.echo(
        f"{len(scores)} samples, method {scores.method}, engine {scores.engine}, backend {scores.backend}"
        + (f", {scores.stats['score_seconds']:.3g} s" if "score_seconds" in scores.stats else "")
    )
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
