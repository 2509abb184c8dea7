"""The command line: ipfast score, curate, doctor, demo and experiment."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

import ipfast

from .checks import check_no_overwriting
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


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make it a command, which refuses, before any work, to write over what it reads."""

    @functools.wraps(function)
    def guarded(**given: Any) -> None:
        outputs = {f"--{name}": given.get(name) for name in ("out", "report")}
        paths = {name: value for name, value in given.items() if isinstance(value, (Path, list)) and f"--{name}" not in outputs}
        inputs = {
            name if name == "scores" else f"--{name.replace('_', '-')}": value
            for name, value in paths.items()
            if isinstance(value, Path) or all(isinstance(part, Path) for part in value)
        }
        check_no_overwriting(function.__name__, outputs, inputs)
        function(**given)

    app.command()(guarded)
    return guarded


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


@_command
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
    data = _pair("score", train, features, labels)
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


@_command
def curate(
    scores: Annotated[
        list[Path], typer.Argument(help="Scores written by ipfast score: .npy, .csv, .parquet or .safetensors; or several.")
    ],
    out: Annotated[
        Path, typer.Option(help=".npy, .csv or .parquet for indices, labels or weights; .npz or .safetensors for the data.")
    ],
    action: Annotated[str, typer.Option(help="trim (drop the lowest), relabel (the lowest) or reweight (all).")] = "trim",
    drop: Annotated[
        float | None,
        typer.Option(help="Share of the lowest scores to drop or relabel, in (0, 1), or a count of 1 or more; default: 0.05."),
    ] = None,
    features: Annotated[Path | None, typer.Option(help=".npy [N, d], to write the curated data itself, or for --head.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy [N]; without features to relabel, or to report on classes.")] = None,
    train: Annotated[Path | None, typer.Option(help=".npz or .safetensors with both, features and labels.")] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Drop or relabel the same share of every class.")] = False,
    how: Annotated[str, typer.Option(help="Of relabel: flip (two classes), runner_up, rdia_soft or ip_relabel.")] = "flip",
    head: Annotated[
        Path | None, typer.Option(help="Of runner_up, rdia_soft and ip_relabel: the head, as ipfast score takes it.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Of ip_relabel: .npz or .safetensors with trusted features and labels.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Of ip_relabel with --head and --val: bce_with_logits for one output.")
    ] = None,
    stored_query: Annotated[
        Path | None, typer.Option(help="Of ip_relabel, in place of --head and --val: a query that Query.save wrote.")
    ] = None,
    logits: Annotated[Path | None, typer.Option(help=".npy [N, C], in place of --head for runner_up and rdia_soft.")] = None,
    label_scores: Annotated[Path | None, typer.Option(help=".npy [N, C], in place of --head and --val for ip_relabel.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of reweight, by which scores are divided; default: their standard deviation.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Of reweight: the largest weight, where the mean is 1.")] = None,
    combine: Annotated[str | None, typer.Option(help="Of several files of scores: rank (the default), union or zsum.")] = None,
    query: Annotated[str | None, typer.Option(help="Name or number of one, of scores of several queries.")] = None,
    groups: Annotated[Path | None, typer.Option(help=".npy [N], to report on another attribute too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where to write what changed, .json.")] = None,
) -> None:
    """Drop, relabel or reweight samples by their scores: write the indices to keep, labels or weights, or the curated data.

    Example: ipfast curate scores.npy --drop 0.05 --train data.npz --out curated.npz
    """
    if drop is not None and drop >= 1 and not drop.is_integer():
        raise ipfast.InputError(f"curate: expected --drop to be a share in (0, 1) or a whole count; got {drop:g}.")
    for option, is_given in (("drop", drop is not None), ("by-class", by_class)):
        if is_given and action == "reweight":
            raise ipfast.InputError(f"curate: expected no --{option} with reweight, which keeps all samples. Leave it out.")
    classes = train if labels is None else labels
    if by_class and classes is None:
        raise ipfast.InputError("curate: expected --labels or --train with --by-class, to know the classes; got neither.")
    if combine is not None and len(scores) == 1:
        raise ipfast.InputError("curate: expected several files of scores with --combine; got one. Leave it out.")
    has_data = train is not None or features is not None
    data = _pair("curate", train, features, labels) if has_data else None
    made_at_head: dict[str, Any] = {"head": head, "val": val, "loss": loss, "stored_query": stored_query}
    of_classes: dict[str, Any] = {"logits": logits, "label_scores": label_scores}
    _check_relabelling(how if action == "relabel" else action, has_data, made_at_head, of_classes)
    found = _objectives(scores, combine or "rank", query)
    if how in RELABELLING:
        of_classes |= _of_classes(how, train if features is None else features, **made_at_head)
    made = ipfast.curate.apply(
        found,
        action,
        int(drop) if drop is not None and drop >= 1 else drop,
        labels=classes,
        groups=groups,
        within=classes if by_class else None,
        how=how,
        **of_classes,
        temperature=temperature,
        clip=clip,
    )
    made.save(out, data, report=report)
    typer.echo(made.report)
    if made.action == "trim":
        typer.echo(f"Kept {len(made.keep)} of {len(found)} samples: {out}")
    else:
        typer.echo(f"{'New labels' if made.action == 'relabel' else 'Weights'} of {len(found)} samples: {out}")


RELABELLING = {
    # what each rule computes from the features, or takes in its place
    "runner_up": ("head", "logits"),
    "rdia_soft": ("head", "logits"),
    "ip_relabel": ("head", "val", "loss", "stored_query", "label_scores"),
}


def _check_relabelling(rule: str, has_data: bool, made: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse what the rule does not look at, and too much or too little of what it does."""
    used = {name: value for name, value in {**made, **given}.items() if value is not None}
    for name in used:
        if name not in RELABELLING.get(rule, ()):
            users = " or ".join(how for how, names in RELABELLING.items() if name in names)
            raise ipfast.InputError(
                f"curate: expected {_option(name)} with --action relabel --how {users} only; got {rule!r}. Leave it out."
            )
    if rule not in RELABELLING:
        return
    ways: tuple[tuple[str, ...], ...] = (("head",), ("logits",))
    if rule == "ip_relabel":
        ways = (("head", "val"), ("stored_query",), ("label_scores",))
    if tuple(name for name in used if name != "loss") not in ways or ("loss" in used and "val" not in used):
        every = ", or ".join(" and ".join(map(_option, way)) for way in ways)
        raise ipfast.InputError(
            f"curate: expected {every}, with --how {rule}; got {' and '.join(map(_option, used)) or 'none'}."
        )
    if not has_data and any(used.get(name) is not None for name in made):
        raise ipfast.InputError(
            f"curate: expected --train data.npz, or both --features and --labels, with {_option(next(iter(used)))}, which is "
            "applied to them; got none."
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _of_classes(
    how: str, features: Path | None, head: Path | None, val: Path | None, loss: str | None, stored_query: Path | None
) -> dict[str, Any]:
    """Logits, or scores under other labels, of the features."""
    if how != "ip_relabel":
        return {} if head is None else {"logits": ipfast.curate.head_logits(head, features)}
    chosen = stored_query if head is None else ipfast.query(head, val, loss=loss or "auto")
    return {} if chosen is None else {"label_scores": ipfast.curate.label_scores(chosen, features)}


def _objectives(paths: list[Path], combine: str, query: str | None) -> ipfast.Scores:
    """Scores [N] from a file, or combined from several."""
    names = [path.stem for path in paths]
    keys = names if len(set(names)) == len(names) else [str(path) for path in paths]
    found = {key: _of_query(ipfast.Scores.load(path), query) for key, path in zip(keys, paths, strict=True)}
    if len(found) < len(paths):
        raise ipfast.InputError("curate: expected each file of scores once; got one of them twice.")
    return ipfast.curate.combine(found, combine) if len(found) > 1 else next(iter(found.values()))


def _of_query(scores: ipfast.Scores, query: str | None) -> ipfast.Scores:
    """The scores of one query, by name or number, of a file of several."""
    if query is None:
        return scores
    number = int(query) if query.isdecimal() and query not in (scores.queries or ()) else query
    return dataclasses.replace(scores, values=scores.of(number), queries=None, members=None)


@_command
def doctor() -> None:
    """Show versions and backends, and test each backend against the reference."""
    healthy = True
    for finding in examine():
        healthy = healthy and finding.good is not False
        mark = {True: typer.style("ok  ", fg="green"), False: typer.style("FAIL", fg="red"), None: "-   "}[finding.good]
        typer.echo(f"{mark}  {finding.name:<22} {finding.text}")
    if not healthy:
        raise typer.Exit(1)


@_command
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


@_command
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
        model=model,
        progress=progress,
        echo=typer.echo,
    )


if __name__ == "__main__":
    app()
