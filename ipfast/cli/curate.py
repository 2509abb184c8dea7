"""ipfast curate: from a file of scores to a training set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import ipfast
from ipfast.curate.inputs import read_values

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
        str | None,
        typer.Option(
            metavar="<share or count>",
            help="Of the lowest scores to drop or relabel: a share in (0, 1), or a whole number of them; default: 0.05.",
        ),
    ] = None,
    features: Annotated[Path | None, typer.Option(help=".npy [N, d], to write the curated data itself, or for --head.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help=".npy [N], or an archive with labels; without features to relabel, or to report.")
    ] = None,
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
    combine: Annotated[
        str | None, typer.Option(help="Of several files, or the queries of one, as objectives: rank, union or zsum.")
    ] = None,
    concat: Annotated[
        bool, typer.Option("--concat", help="Several files are the shards of one data set, in this order.")
    ] = False,
    query: Annotated[str | None, typer.Option(help="Name or number of one, of scores of several queries.")] = None,
    groups: Annotated[Path | None, typer.Option(help=".npy [N], to report on another attribute too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where to write what changed, .json.")] = None,
) -> None:
    """Drop, relabel or reweight samples by their scores: write the indices to keep, labels or weights, or the curated data.

    Example: ipfast curate scores.npy --drop 0.05 --train data.npz --out curated.npz
    """
    for option, is_given in (("drop", drop is not None), ("by-class", by_class)):
        if is_given and action == "reweight":
            raise ipfast.InputError(f"curate: expected no --{option} with reweight, which keeps all samples. Leave it out.")
    classes = train if labels is None else labels
    if by_class and classes is None:
        raise ipfast.InputError("curate: expected --labels or --train with --by-class, to know the classes; got neither.")
    has_data = train is not None or features is not None
    data = training_data("curate", train, features, labels) if has_data else None
    relabelling = Relabelling(head, val, loss, stored_query, logits, label_scores)
    rule = how if action == "relabel" else action
    relabelling.check(rule, has_features=has_data)
    ipfast.curate.Curated.check_save(action, out, data, report=report)
    found = _objectives(scores, combine, concat, query)
    made = ipfast.curate.apply(
        found,
        action,
        None if drop is None else _amount(drop),
        labels=_if_classes(classes) if has_data and rule == action and not by_class else classes,
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


def _amount(text: str) -> float:
    """A count where it is written as one, else a share."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise ipfast.InputError(f"curate: expected --drop to be a share in (0, 1) or a whole number; got {text!r}.") from error


def _if_classes(path: Path | None) -> Any:
    """The labels of training data where they are classes, whose balance can be told: no targets, and not of tokens."""
    labels = read_values("curate", "labels", path)
    is_one = labels.ndim == 1 or tuple(labels.shape[1:]) == (1,)
    is_float = str(labels.dtype).removeprefix("torch.").startswith(("float", "bfloat"))
    return labels if is_one and not (is_float and bool((labels != labels.round()).any())) else None


def _objectives(paths: list[Path], combine: str | None, concat: bool, query: str | None) -> ipfast.Scores:
    """Scores [N] from a file, or combined from several, or from the queries of one, which may be in shards."""
    names = [path.stem for path in paths]
    keys = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ipfast.InputError("curate: expected each file of scores once; got one of them twice.")
    if len(paths) > 1 and combine is None and not concat:
        raise ipfast.InputError(
            "curate: expected --combine rank, union or zsum, if the files are objectives of the same samples, or --concat, if "
            f"they are shards of one data set in this order; got {len(paths)} files and neither."
        )
    if concat:
        found = {"scores": ipfast.Scores.concat(paths)}
    else:
        found = {key: ipfast.Scores.load(path) for key, path in zip(keys, paths, strict=True)}
    of_several = [key for key, scores in found.items() if scores.values.dim() == 2 and scores.counted is None]
    if combine is not None and len(found) == 1 and (not of_several or query is not None):
        raise ipfast.InputError(
            "curate: expected several files of scores, or one of several queries, with --combine; got one. Leave it out."
        )
    if query is not None:
        number = (
            int(query) if query.isdecimal() and not any(query in (found[key].queries or ()) for key in of_several) else query
        )
        found |= {key: found[key].only(number) for key in of_several or found}
    if len(found) > 1:
        return ipfast.curate.combine(found, combine or "rank")
    scores = next(iter(found.values()))
    return scores if combine is None else ipfast.curate.combine(scores, combine)
