"""ipfast doctor, demo and experiment, each of which runs a part of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ipfast

from ..doctor import examine
from .app import command


@command
def doctor() -> None:
    """Show versions and backends, and test each backend against the reference."""
    healthy = True
    for finding in examine():
        healthy = healthy and finding.good is not False
        mark = {True: typer.style("ok  ", fg="green"), False: typer.style("FAIL", fg="red"), None: "-   "}[finding.good]
        typer.echo(f"{mark}  {finding.name:<22} {finding.text}")
    if not healthy:
        raise typer.Exit(1)


@command
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
    from ..demo import run_demo  # scikit-learn and matplotlib are an extra

    run_demo(cifar=cifar, cifar_labels=cifar_labels, report=report, noise=noise, seed=seed, echo=typer.echo)


def _parts(values: list[str] | None) -> list[str] | None:
    """What was given once or several times, each with commas or without."""
    return None if not values else [part.strip() for value in values for part in value.split(",") if part.strip()]


@command
def experiment(
    name: Annotated[str, typer.Argument(help="synthetic, vision, nlp or tabular.", show_default=False)],
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
    model: Annotated[
        str | None, typer.Option(help="Of nlp: a folder with a Hugging Face model, or its name on the hub.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress and the time that is left.")] = True,
) -> None:
    """Run an experiment of the paper, or go on with it: what is finished is never run again.

    Example: ipfast experiment vision --data data --settings removal/worst --methods ip,random --seeds 0,1,2
    """
    from ..experiments import run_experiment  # scikit-learn and matplotlib are an extra

    numbers = _parts(seeds)
    if numbers is not None and not all(number.removeprefix("-").isdecimal() for number in numbers):
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
        model=model,
        progress=progress,
        echo=typer.echo,
    )
