"""A run of an experiment: the cells that are not finished, then tables and figures of all that are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from numbers import Real
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checks import usable_device
from ..data.writers import written_whole
from ..errors import InputError, InputTypeError, IpfastError, UnavailableError
from ..methods import METHODS
from ..registry import check_choice
from .arithmetic import exact
from .base import Experiment, Surroundings
from .cells import Cell, Record, Records
from .chosen import choose_methods
from .ledger import Ledger
from .machine import describe_machine, require_same_machine
from .pins import RESULTS, Pins, is_begun
from .selection import select_cells, unused_methods

EXPERIMENTS = ("synthetic", "vision", "nlp", "tabular")
SCALES = ("small", "paper")
OUT = Path("ipfast-experiments")


def run_experiment(
    name: str,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = OUT,
    scale: str = "small",
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] | None = None,
    device: str | None = None,
    minutes: float | None = None,
    model: str | None = None,
    progress: bool = True,
    echo: Callable[[str], object] = print,
) -> Path:
    """Run what is not finished of an experiment, then write tables and figures of all that is.

    Args:
        name: one of EXPERIMENTS.
        data: the folder of the data sets, in the layouts in which they are downloaded; "synthetic" needs none.
        out: results go to out/NAME-SCALE: results.jsonl, tables.md, figures, and what later cells use again; recipe.json,
            methods.json and data.json tell what they were computed by and from.
        scale: "small", for two processor cores or minutes of a GPU; or "paper", the setting of the paper.
        methods: names of methods and controls; None: all that this version has.
        seeds: shared by all methods; None: those of the scale.
        settings: parts ("removal"), settings ("worst") or both ("removal/worst") to run; None: all.
        device: None: a GPU if there is one.
        minutes: start no further cell after that time.
        model: for "nlp" a folder with a model of Hugging Face, or the name of one on the hub; None: that of the scale.
        progress: show bars. echo: called with each line of text.

    Returns:
        The folder of the results. A cell that is in its results.jsonl is never run again.

    Raises:
        InputError, InputTypeError, MissingFileError: an argument or a file does not fit, or the results that are there are of
        another recipe or other data. UnavailableError: a package is not installed, or another process writes the same results.
    """
    check_choice("experiment", "NAME", name, EXPERIMENTS)
    check_choice("experiment", "--scale", scale, SCALES)
    target = usable_device("experiment", device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, source = _path("--out", out) / f"{name}-{scale}", None if data is None else _path("--data", data)
    methods, seeds, settings = (
        _listed(option, values) for option, values in (("--methods", methods), ("--seeds", seeds), ("--settings", settings))
    )
    minutes, kind = _minutes(minutes), _experiment(name)
    chosen = choose_methods(name, kind.methods, methods)
    if model is not None and not kind.takes_model:
        raise InputError(f"experiment: expected no --model for {name!r}, which starts from no pretrained one. Leave it out.")
    experiment = kind(Surroundings(folder, source, scale, target, progress, model))
    cells = select_cells(experiment, chosen, _seeds(seeds, kind.seeds[scale]), settings)
    new = not folder.is_dir()
    if new:
        experiment.check(cells)
        _make_folder(folder)
    with Ledger(folder / RESULTS, experiment=name, scale=scale) as ledger:
        pending = [cell for cell in cells if cell not in ledger.finished]
        startable = pending if minutes is None or minutes > 0 else []
        if startable and not new:
            experiment.check(startable)
        pins = Pins(folder, begun=bool(ledger.finished) or is_begun(folder, kind.unpinned))
        pins.recipe(experiment.recipe)
        pins.methods({name: repr(METHODS.get("experiment", name)) for name in _of_the_library(startable)})
        for line in (*unused_methods(chosen if methods else [], cells), *([] if settings else experiment.left_out())):
            echo(line)
        echo(f"{len(cells) - len(pending)} of {len(cells)} cells are finished.")
        failed = _run_cells(experiment, startable, ledger, pins, minutes, echo)
        left = [cell for cell in pending if cell not in ledger.finished]
        if left:
            echo(f"{len(left)} cells are left. The same command goes on with them.")
        for line in _publish(experiment, Records(ledger.finished), folder):
            echo(line)
    if failed:
        cell, error = next(iter(failed.items()))
        raise InputError(
            f"experiment: expected every cell to run; {len(failed)} of {len(startable)} failed, the first of them {cell}: "
            f"{error} What was finished is kept."
        ) from error
    return folder


def _experiment(name: str) -> type[Experiment]:
    try:
        module = import_module(f"ipfast.experiments.{name}")
    except ImportError as error:
        raise UnavailableError(
            f"experiment: expected scikit-learn and matplotlib; {error.name} is not installed. Install: pip install "
            "'ipfast[experiments]'."
        ) from error
    found: type[Experiment] = module.EXPERIMENT
    return found


def _seeds(asked: Sequence[int] | None, default: Sequence[int]) -> list[int]:
    if asked is None:
        return list(default)
    for seed in asked:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputTypeError(f"experiment: expected --seeds to be whole numbers; got {seed!r}.")
        if not 0 <= seed < 2**31:
            raise InputError(f"experiment: expected --seeds to be in 0 .. 2^31-1; got {seed}. Choose other ones.")
    return sorted(set(asked))


def _minutes(value: float | None) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise InputTypeError(f"experiment: expected --minutes to be a number; got {type(value).__name__}.")
    if value is not None and not value >= 0:
        raise InputError(f"experiment: expected --minutes to be 0 or more; got {value:g}.")
    return value


def _path(option: str, value: str | os.PathLike[str]) -> Path:
    try:
        return Path(value)
    except TypeError as error:
        raise InputTypeError(f"experiment: expected {option} to be a path; got {type(value).__name__}.") from error


def _listed(option: str, values: Sequence[Any] | None) -> list[Any] | None:
    """What was asked for, which must be something."""
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputTypeError(f"experiment: expected {option} to be a list; got {type(values).__name__}. Put it into a list.")
    found = list(values)
    if not found:
        raise InputError(f"experiment: expected {option} to name something; got an empty list. Leave it out to run all.")
    return found


def _of_the_library(cells: Sequence[Cell]) -> list[str]:
    """The methods of cells that are those of ipfast, and not an experiment's own, such as keeping all samples."""
    return [name for name in dict.fromkeys(cell.method.removesuffix(":all") for cell in cells) if name in METHODS]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"experiment: expected --out to be a folder that can be made and written; {str(folder.parent)!r} is not "
            f"({error.strerror}). Choose another one."
        ) from error


def _run_cells(
    experiment: Experiment,
    pending: list[Cell],
    ledger: Ledger,
    pins: Pins,
    minutes: float | None,
    echo: Callable[[str], object],
) -> dict[Cell, IpfastError]:
    """Run them in order. A cell that fails for a reason that ipfast can tell holds up no others: these reasons."""
    started = monotonic()
    failed: dict[Cell, IpfastError] = {}
    digests = cache(experiment.data_digest)
    for setting in dict.fromkeys(cell.setting for cell in pending):
        if pins.has(setting):  # before hours of cells of others
            pins.compare(setting, digests(setting))
    about = describe_machine(experiment)
    require_same_machine(experiment, pending, ledger.finished, about)
    with tqdm(
        total=len(pending), unit=" cells", disable=not (experiment.surroundings.progress and pending), smoothing=0
    ) as bar:
        for place, cell in enumerate(pending):
            if minutes is not None and monotonic() - started >= 60 * minutes:
                break
            bar.set_description(f"{cell} ({_left(pending[place:], ledger.finished)} left)")
            pins.data(cell.setting, digests(cell.setting))
            begun = monotonic()
            try:
                with exact(experiment.surroundings.device):
                    values = experiment.run(cell)
            except IpfastError as error:
                failed[cell] = error
                echo(f"Failed: {cell}: {error}")
            else:
                ledger.add(Record(cell, values, monotonic() - begun, about))
            bar.update()
    return failed


def _left(pending: Sequence[Cell], finished: Mapping[Cell, Record]) -> str:
    """The time that cells will take, if they take as long as finished ones of the same part and method, or the same part."""
    if not finished:
        return "unknown time"
    seconds: dict[tuple[str, ...], list[float]] = {}
    for cell, record in finished.items():
        for key in ((cell.part, cell.method), (cell.part,), ()):
            seconds.setdefault(key, []).append(record.seconds)
    means = {key: sum(each) / len(each) for key, each in seconds.items()}
    keys = (((cell.part, cell.method), (cell.part,), ()) for cell in pending)
    total = sum(next(means[key] for key in each if key in means) for each in keys)
    return (
        f"about {total:.0f} s"
        if total < 100
        else f"about {total / 60:.0f} min"
        if total < 6000
        else f"about {total / 3600:.1f} h"
    )


def _publish(experiment: Experiment, records: Records, folder: Path) -> list[str]:
    """Write the tables and draw the figures; what was written."""
    if not records:
        return []
    tables = folder / "tables.md"
    with written_whole(tables) as beside:
        beside.write_text("\n\n".join(experiment.tables(records)) + "\n", encoding="utf-8")
    return [f"Written: {file}" for file in (tables, *experiment.draw(records, folder))]
