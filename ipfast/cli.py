"""The command line: ipfast score, curate, doctor, demo and experiment."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

import ipfast

from .doctor import examine


class _Group(TyperGroup):
    """Turns the errors of ipfast into one message and exit code 2; anything else is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except ipfast.IpfastError as error:
            typer.secho(f"ipfast: {error}", fg="red", err=True)
            raise typer.Exit(2) from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.secho(f"ipfast: warning: {message}", fg="yellow", err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    help="Which training samples help your model and which hurt it. Positive scores help, negative scores hurt.",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(ipfast.__version__)
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _pair(where: str, train: Path | None, features: Path | None, labels: Path | None) -> Any:
    """The training data: one file, or a pair of .npy files."""
    if train is not None and features is None and labels is None:
        return train
    if train is None and features is not None and labels is not None:
        return (features, labels)
    raise ipfast.InputError(
        f"{where}: expected either --train data.npz (with features and labels) or both --features H.npy and --labels y.npy."
    )


@app.command()
def score(
    head: Annotated[Path, typer.Option(help=".safetensors or .npz with weight [C, d] and bias [C].")],
    features: Annotated[
        Path | None, typer.Option(help=".npy [N, d], of tokens [N, T, d]: inputs of the head; memory-mapped.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy [N], of tokens [N, T]: class indices; or targets [..., C].")] = None,
    train: Annotated[Path | None, typer.Option(help=".npz or .safetensors with both, features and labels.")] = None,
    val: Annotated[Path | None, typer.Option(help=".npz or .safetensors with trusted features and labels.")] = None,
    method: Annotated[str, typer.Option(help="ip, ip_ensemble, self_tracin, or a control: loss, random.")] = "ip",
    loss: Annotated[str, typer.Option(help="auto (cross_entropy), bce_with_logits or mse.")] = "auto",
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
    data = _pair("score", train, features, labels)
    options: dict[str, Any] = {"backend": backend, "precision": precision, "device": device, "progress": progress, "out": out}
    result = ipfast.score(head, data, val, method=method, loss=loss, tokens=tokens, **options)
    _summary(result, rows)
    if out is not None:
        typer.echo(f"Scores written to {out}")


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


@app.command()
def curate(
    scores: Annotated[Path, typer.Argument(help="Scores written by ipfast score: .npy, .csv, .parquet or .safetensors.")],
    out: Annotated[Path, typer.Option(help=".npy or .csv for the kept rows' indices; with data also .npz or .safetensors.")],
    drop: Annotated[float, typer.Option(help="Share of the lowest scores to drop, in (0, 1), or a count of 1 or more.")] = 0.05,
    features: Annotated[Path | None, typer.Option(help=".npy [N, d], to write the curated data itself.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy [N].")] = None,
    train: Annotated[Path | None, typer.Option(help=".npz or .safetensors with both, features and labels.")] = None,
) -> None:
    """Drop the lowest scores: write the indices of the samples to keep, or the curated training set.

    Example: ipfast curate scores.npy --drop 0.05 --train data.npz --out curated.npz
    """
    if drop >= 1 and drop != int(drop):
        raise ipfast.InputError(f"curate: expected --drop to be a share in (0, 1) or a whole count; got {drop:g}.")
    amount: float = int(drop) if drop >= 1 else drop
    has_data = any(path is not None for path in (train, features, labels))
    data = _pair("curate", train, features, labels) if has_data else None
    kept, total = ipfast.curate.write_kept(ipfast.Scores.load(scores), amount, out, data=data)
    typer.echo(f"Kept {kept} of {total} samples: {out}")


@app.command()
def doctor() -> None:
    """Show versions and backends, and test each backend against the reference."""
    healthy = True
    for finding in examine():
        healthy = healthy and finding.good is not False
        mark = {True: typer.style("ok  ", fg="green"), False: typer.style("FAIL", fg="red"), None: "-   "}[finding.good]
        typer.echo(f"{mark}  {finding.name:<22} {finding.text}")
    if not healthy:
        raise typer.Exit(1)


@app.command()
def demo(
    cifar: Annotated[
        Path | None, typer.Option(help="Folder with cifar-10-batches-bin/ and CIFAR-10_human.pt: real human label noise.")
    ] = None,
    cifar_labels: Annotated[
        str | None, typer.Option(help="With --cifar: worse, aggre, random1, random2 or random3; default: worse.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Where to write the page, .html.")] = Path("report.html"),
    noise: Annotated[float | None, typer.Option(help="Share of the digits' labels to flip; default: 0.1.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the flips and the network.")] = 0,
) -> None:
    """Find wrong labels in real images, trim them, train again, and write a page that shows it."""
    from .demo import run_demo  # scikit-learn and matplotlib are an extra

    run_demo(cifar=cifar, cifar_labels=cifar_labels, report=report, noise=noise, seed=seed, echo=typer.echo)


def _parts(values: list[str] | None) -> list[str] | None:
    """What was given once or several times, each with commas or without."""
    return None if not values else [part.strip() for value in values for part in value.split(",") if part.strip()]


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="synthetic or vision.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets; synthetic needs none.")] = None,
    out: Annotated[Path, typer.Option(help="Where NAME-SCALE/ with results goes, and is gone on with.")] = Path(
        "ipfast-experiments"
    ),
    scale: Annotated[str, typer.Option(help="small, or paper: the setting of the paper, for a GPU.")] = "small",
    methods: Annotated[list[str] | None, typer.Option(help="Names with commas; default: all.")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="Whole numbers with commas, shared by all methods.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option(help="Parts, settings or part/setting with commas: removal/worst; default: all.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: a GPU if there is one.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Start nothing new after that time.")] = None,
    progress: Annotated[bool, typer.Option(help="Show progress and the time that is left.")] = True,
) -> None:
    """Run an experiment of the paper, or go on with it: what is finished is never run again.

    Example: ipfast experiment vision --data data --settings removal/worst --methods ip,random --seeds 0,1,2
    """
    from .experiments import run_experiment  # scikit-learn and matplotlib are an extra

    numbers = _parts(seeds)
    if numbers is not None and not all(number.isdecimal() for number in numbers):
        raise ipfast.InputError(
            f"experiment: expected --seeds to be whole numbers; got {','.join(numbers)}. Pass --seeds 0,1,2."
        )
    run_experiment(
        name,
        data=data,
        out=out,
        scale=scale,
        methods=_parts(methods),
        seeds=None if numbers is None else [int(number) for number in numbers],
        settings=_parts(settings),
        device=device,
        minutes=minutes,
        progress=progress,
        echo=typer.echo,
    )


if __name__ == "__main__":
    app()
