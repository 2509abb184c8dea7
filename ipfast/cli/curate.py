"""ipfast curate: from a file of scores to a training set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import ipfast

from .app import command
from .relabelling import Relabelling
from .training_data import training_data


@command
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
        Path | None, typer.Option(help="Of ip_relabel, in place of --head and --val: what ipfast query wrote.")
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
    data = training_data("curate", train, features, labels) if has_data else None
    relabelling = Relabelling(head, val, loss, stored_query, logits, label_scores)
    rule = how if action == "relabel" else action
    relabelling.check(rule, has_features=has_data)
    ipfast.curate.Curated.check_save(action, out, data, report=report)
    found = _objectives(scores, combine or "rank", query)
    made = ipfast.curate.apply(
        found,
        action,
        int(drop) if drop is not None and drop >= 1 else drop,
        labels=classes,
        groups=groups,
        within=classes if by_class else None,
        how=how,
        **relabelling.of_classes(rule, train if features is None else features, classes, len(found)),
        temperature=temperature,
        clip=clip,
    )
    made.save(out, data, report=report)
    typer.echo(made.report)
    if made.action == "trim":
        typer.echo(f"Kept {len(made.keep)} of {len(found)} samples: {out}")
    else:
        typer.echo(f"{'New labels' if made.action == 'relabel' else 'Weights'} of {len(found)} samples: {out}")


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
