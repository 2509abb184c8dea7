"""The command line: python -m bench head | ensemble | vocab | mask | model | methods | tune | table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import record as results
from . import tune as tuning
from .cases import ensemble as ensemble_case
from .cases import head as head_case
from .cases import mask as mask_case
from .cases import methods as methods_case
from .cases import model as model_case
from .cases import model_job as job_case
from .cases import vocab as vocab_case
from .contender import Contender
from .gate import GateError
from .machine import ROOT
from .measure import MIN_REPEATS
from .memory import extra_peak_bytes
from .networks import NETWORKS, PACKAGES
from .peers import PEERS, missing
from .reports import ensemble as ensemble_report
from .reports import head as head_report
from .reports import mask as mask_report
from .reports import methods as methods_report
from .reports import model as model_report
from .reports import vocab as vocab_report
from .roofline import Probe
from .run import measure
from .tables import replace_block

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Benchmarks of ipfast. Run from the repository's root on an otherwise idle machine.",
)


@app.command()
def head(
    classes: Annotated[
        list[int] | None, typer.Option(help="Numbers of classes; may be repeated. Default: 2 10 100 1000.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Samples N; default: the standard size of each C.")] = None,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = 11,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure extra peak memory (a fresh process each on the CPU).")] = True,
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/head.jsonl.")] = True,
) -> None:
    """Scores of resident features at a linear head: time, ratios, memory, and whether the bounds hold."""
    place = torch.device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    probe = Probe(place, torch.float32)
    standard = head_case.STANDARD_ROWS[place.type]
    for number in classes or standard:
        count = rows or standard.get(number) or 40_000
        problem = head_case.make_problem(number, count, place)
        contenders = head_case.make_contenders(problem)
        _gate(partial(head_case.check_scores, problem), contenders)

        def child_memory(contender: Contender, number: int = number, count: int = count) -> int | None:
            return extra_peak_bytes(head_case.prepare_memory, contender.name, number, count, torch.get_num_threads())

        found = measure(
            head_case.NAME,
            {"rows": count, "width": head_case.WIDTH, "classes": number, "dtype": "float32"},
            contenders,
            probe,
            device=place,
            repeats=repeats,
            child_memory=child_memory if memory else None,
        )
        _tell(found, head_report.terminal(found), record)
        del problem, contenders
    _explain(head_case.MEANING)


@app.command()
def ensemble(
    members: Annotated[list[int] | None, typer.Option(min=1, help="Members; may be repeated. Default: 5 20.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Samples N; default: the standard size of the device.")] = None,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = MIN_REPEATS,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/ensemble.jsonl.")] = True,
) -> None:
    """All members of a dropout ensemble in one pass, against a pass for each and against the bare product."""
    case, place = ensemble_case, torch.device(device)
    rows = rows or case.STANDARD_ROWS[place.type]
    for number in members or case.STANDARD_MEMBERS:
        problem = case.Problem(rows, number, place)
        contenders = case.make_contenders(problem)
        _gate(partial(case.check_scores, problem), contenders)
        sizes = {"rows": rows, "width": case.WIDTH, "classes": case.CLASSES, "members": number, "rate": case.RATE}
        found = measure(
            case.NAME,
            {**sizes, "dtype": "float32"},
            contenders,
            Probe(place, torch.float32),
            device=place,
            repeats=repeats,
            child_memory=None,
        )
        _tell(found, ensemble_report.terminal(found), record)
        del problem, contenders
    _explain(case.MEANING)


@app.command()
def vocab(
    tokens: Annotated[int, typer.Option(min=64, help="Tokens N.")] = vocab_case.STANDARD_TOKENS,
    classes: Annotated[int, typer.Option(min=2, help="Size of the vocabulary.")] = vocab_case.STANDARD_CLASSES,
    width: Annotated[int, typer.Option(min=1, help="Width d of the hidden states.")] = vocab_case.STANDARD_WIDTH,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = MIN_REPEATS,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    memory: Annotated[bool, typer.Option(help="Measure extra peak memory in a fresh process.")] = True,
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/vocab.jsonl.")] = True,
) -> None:
    """Scores at the head of a language model, against the two bare products."""
    case, place = vocab_case, torch.device(device)
    problem = case.Problem(tokens, classes, width, place)
    contenders = case.make_contenders(problem)
    _gate(partial(case.check_scores, problem), contenders)

    def child_memory(_contender: Contender) -> int | None:
        return extra_peak_bytes(case.prepare_memory, tokens, classes, width, torch.get_num_threads())

    found = measure(
        case.NAME,
        {"rows": tokens, "width": width, "classes": classes, "dtype": "float32"},
        contenders,
        Probe(place, torch.float32),
        device=place,
        repeats=repeats,
        child_memory=child_memory if memory else None,
    )
    _tell(found, vocab_report.terminal(found), record)
    _explain(case.MEANING)


def _tell(found: list[results.Row], text: str, record: bool) -> None:
    typer.echo(text + "\n")
    if record:
        results.record(found)


def _explain(meaning: Mapping[str, str]) -> None:
    """What the names in a table mean."""
    for name, text in meaning.items():
        typer.echo(f"{name:<{max(map(len, meaning))}}  {text}")


def _gate(check: Callable[[Contender], None], contenders: list[Contender]) -> None:
    """No speed of anything that is wrong."""
    try:
        for contender in contenders:
            if contender.scores:
                check(contender)
    except GateError as error:
        typer.secho(f"Wrong scores, so no speed: {error}", fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def mask(
    elements: Annotated[int, typer.Option(min=1000, help="Weights of the parameter.")] = mask_case.STANDARD_ELEMENTS,
    rate: Annotated[
        float, typer.Option(min=0, max=0.999, help="Probability that a weight is dropped.")
    ] = mask_case.STANDARD_RATE,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = MIN_REPEATS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure extra peak memory in a fresh process.")] = True,
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/mask.jsonl.")] = True,
) -> None:
    """A dropout member's mask of one large parameter: time and memory against torch.bernoulli + nonzero."""
    if threads is not None:
        torch.set_num_threads(threads)
    contenders = mask_case.make_contenders(elements, rate)
    _gate(partial(mask_case.check_mask, elements, rate), contenders)

    def child_memory(_contender: Contender) -> int | None:
        return extra_peak_bytes(mask_case.prepare_memory, elements, rate, torch.get_num_threads())

    place = torch.device("cpu")
    found = measure(
        mask_case.NAME,
        {"elements": elements, "rate": rate, "dtype": "int64"},
        contenders,
        Probe(place, torch.float32),
        device=place,
        repeats=repeats,
        child_memory=child_memory if memory else None,
    )
    _tell(found, mask_report.terminal(found), record)
    _explain(mask_case.MEANING)


@app.command()
def model(
    network: Annotated[list[str] | None, typer.Option(help="resnet, minilm or gpt2; may be repeated. Default: all.")] = None,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = MIN_REPEATS,
    device: Annotated[str, typer.Option(help="cpu or cuda; other libraries are measured on the CPU only.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own.")] = None,
    batch: Annotated[bool, typer.Option(help="Measure the engines on one batch.")] = True,
    jobs: Annotated[bool, typer.Option(help="Measure the whole job against other libraries.")] = True,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Libraries; may be repeated. Default: kronfluence captum. dattri takes minutes a call."),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure extra peak memory (a fresh process each on the CPU).")] = True,
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/model.jsonl.")] = True,
) -> None:
    """Scores by all parameters of a network: against inference, per-sample gradients and other libraries."""
    place = torch.device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    peers = peer or list(job_case.STANDARD_PEERS)
    _require_known("--network", network or [], list(NETWORKS))
    _require_known("--peer", peers, [known.name for known in PEERS])
    for name in network or NETWORKS:
        absent = missing(PACKAGES[name])
        if absent:
            typer.echo(f"{name}: left out, {' and '.join(absent)} not installed: pip install 'ipfast[bench]'.\n")
            continue
        if batch:
            found = _model_batch(name, place, repeats, memory)
            _tell(found, model_report.terminal(found), record)
        if jobs and device == "cpu" and name in job_case.STANDARD:
            found = _model_job(name, peers, repeats)
            _tell(found, model_report.job_terminal(found), record)
    _explain({**model_case.MEANING, **job_case.MEANING})


def _require_known(option: str, names: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}; got {name!r}.", param_hint=option)


def _model_batch(name: str, place: torch.device, repeats: int, memory: bool) -> list[results.Row]:
    """The rows of the engines on one batch."""
    case = model_case
    count = case.STANDARD_ROWS[place.type][name]
    problem = case.Problem(name, count, place)
    contenders = case.make_contenders(problem)
    truth = case.Truth(problem.model, problem.batch, problem.queries)
    _gate(partial(case.check_scores, problem, truth), contenders)

    def child_memory(contender: Contender) -> int | None:
        return extra_peak_bytes(case.prepare_memory, contender.name, name, count, torch.get_num_threads())

    parameters = sum(value.numel() for value in problem.network.parameters.values())
    return measure(
        case.NAME,
        {"network": name, "rows": count, "parameters": parameters, "queries": case.QUERIES, "dtype": "float32"},
        contenders,
        Probe(place, torch.float32),
        device=place,
        repeats=repeats,
        child_memory=child_memory if memory else None,
    )


def _model_job(name: str, peers: list[str], repeats: int) -> list[results.Row]:
    """The rows of the libraries that are there, on the whole job."""
    case, place = job_case, torch.device("cpu")
    absent = missing(peers)
    if absent:
        typer.echo(f"{name}: {' and '.join(absent)} left out, not installed: pip install 'ipfast[peers]'.")
    val, train = case.STANDARD[name]
    problem = case.Problem(name, val, train)
    contenders = case.make_contenders(problem, [peer for peer in PEERS if peer.name in peers and peer.name not in absent])
    _gate(partial(case.check_scores, problem, problem.truth()), contenders)
    return measure(
        case.NAME,
        {"network": name, "val": val, "train": train, "batch": problem.batch, "dtype": "float32"},
        contenders,
        Probe(place, torch.float32),
        device=place,
        repeats=repeats,
        child_memory=None,
    )


@app.command()
def methods(
    classes: Annotated[list[int] | None, typer.Option(min=2, help="Classes; may be repeated. Default: 10 100.")] = None,
    rows: Annotated[int, typer.Option(min=methods_case.LOOP_ROWS, help="Samples N.")] = methods_case.STANDARD_ROWS,
    repeats: Annotated[int, typer.Option(min=MIN_REPEATS, help="Interleaved repeats.")] = MIN_REPEATS,
    record: Annotated[bool, typer.Option(help="Write the rows to bench/results/methods.jsonl, and the charts.")] = True,
) -> None:
    """Every method at a head, and the loops over stored gradients that others run: seconds, ratios, stages."""
    case, place = methods_case, torch.device("cpu")
    for number in classes or case.STANDARD_CLASSES:
        problem = case.Problem(rows, number, place)
        try:
            case.check(problem)
        except GateError as error:
            typer.echo(f"Wrong scores, so no speed: {error}")
            raise typer.Exit(1) from error
        found = measure(
            case.NAME,
            {"rows": rows, "width": case.WIDTH, "classes": number, "val": case.VALIDATION, "dtype": "float32"},
            case.make_contenders(problem),
            Probe(place, torch.float32),
            device=place,
            repeats=repeats,
            child_memory=None,
        )
        stages = {name: problem.scores(method).stats for name, method in case.METHODS.items()}
        _tell(found, methods_report.terminal(found, stages), record)
        if record:
            methods_report.chart(found, results.RESULTS / f"methods_{number}.png")
        del problem
    _explain(case.MEANING)


@app.command()
def tune(
    kernel: Annotated[list[str] | None, typer.Option(help="Kernels; may be repeated. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="A file for the figures, one JSON object a line.")] = None,
) -> None:
    """Block sizes of the Triton kernels on this GPU, fastest first; changes nothing."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("expected a GPU; torch finds none here.")
    known = list(dict.fromkeys(case.kernel for case in tuning.CASES))
    _require_known("--kernel", kernel or [], known)
    for found in tuning.tune(case for case in tuning.CASES if not kernel or case.kernel in kernel):
        typer.echo(f"{found['case']}: default {found['default_ms']:.4g} ms, {found['failed']} do not run")
        for best in found["best"][:3]:
            typer.echo(f"    {best}")
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(found) + "\n")


@app.command()
def table(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if the README is not up to date.")] = False,
    readme: Annotated[Path, typer.Option(help="The file with the markers.")] = ROOT / "README.md",
) -> None:
    """Write the README's tables from bench/results."""
    stale = replace_block(readme, head_case.NAME, head_report.readme(results.load(head_case.NAME)), dry=check)
    typer.echo(f"{readme.name}: {('out of date' if check else 'written') if stale else 'up to date'}")
    if check and stale:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
