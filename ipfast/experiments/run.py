"""A run of an experiment: the cells that are not finished, then tables and figures of all that are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from tqdm.auto import tqdm

import ipfast

from ..checks import usable_device
from ..data.writers import written_whole
from ..errors import InputError, InputTypeError, UnavailableError
from ..registry import check_choice
from .base import Experiment, Surroundings
from .cells import Cell, Record, Records
from .chosen import choose_methods
from .ledger import Ledger

EXPERIMENTS = ("synthetic", "vision", "nlp", "tabular")
SCALES = ("small", "paper")
OUT = Path("ipfast-experiments")


def run_experiment(
    name: str,
    *,
    data: Path | None = None,
    out: Path = OUT,
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
        out: results go to out/NAME-SCALE: results.jsonl, tables.md, figures, and what later cells use again.
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
        InputError, InputTypeError, MissingFileError: an argument or a file does not fit. UnavailableError: a package is not
        installed, or another process writes the same results.
    """
    check_choice("experiment", "NAME", name, EXPERIMENTS)
    check_choice("experiment", "--scale", scale, SCALES)
    target = usable_device("experiment", device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = _experiment(name)
    chosen, missing = choose_methods(name, kind.methods, methods)
    folder = Path(out) / f"{name}-{scale}"
    if model is not None and not kind.takes_model:
        raise InputError(f"experiment: expected no --model for {name!r}, which starts from no pretrained one. Leave it out.")
    experiment = kind(Surroundings(folder, data, scale, target, progress, model))
    cells = _select(list(dict.fromkeys(experiment.cells(chosen, _seeds(seeds, kind.seeds[scale])))), settings)
    experiment.check(cells)
    _make_folder(folder)
    _pin(folder / "recipe.json", experiment.recipe)
    if missing:
        echo(f"Without {', '.join(missing)}: this version of ipfast does not have them yet.")
    with Ledger(folder / "results.jsonl", experiment=name, scale=scale) as ledger:
        pending = [cell for cell in cells if cell not in ledger.finished]
        echo(f"{len(cells) - len(pending)} of {len(cells)} cells are finished.")
        _run_cells(experiment, pending, ledger, minutes, progress)
        left = [cell for cell in pending if cell not in ledger.finished]
        if left:
            echo(f"{len(left)} cells are left. The same command goes on with them.")
        for line in _publish(experiment, ledger.finished, folder):
            echo(line)
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


def _select(cells: list[Cell], settings: Sequence[str] | None) -> list[Cell]:
    """The cells of the parts and settings that were asked for."""
    if settings is None:
        return cells
    known: dict[str, None] = {}
    for cell in cells:
        known |= dict.fromkeys([cell.part, cell.setting, f"{cell.part}/{cell.setting}"])
    for name in settings:
        check_choice("experiment", "--settings", name, known)
    asked = set(settings)
    return [cell for cell in cells if asked & {cell.part, cell.setting, f"{cell.part}/{cell.setting}"}]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"experiment: expected --out to be a folder that can be made and written; {str(folder.parent)!r} is not "
            f"({error.strerror}). Choose another one."
        ) from error


def _pin(file: Path, recipe: dict[str, Any]) -> None:
    """Write the recipe into a new folder; refuse a folder with results of another one."""
    text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    if not file.exists():
        with written_whole(file) as beside:
            beside.write_text(text, encoding="utf-8")
    elif file.read_text(encoding="utf-8") != text:
        raise InputError(
            f"experiment: expected --out with results of the recipe of this version; {str(file)!r} says another one. Choose "
            "another --out."
        )


def _run_cells(experiment: Experiment, pending: list[Cell], ledger: Ledger, minutes: float | None, progress: bool) -> None:
    started = monotonic()
    about = _about(experiment.surroundings.device)
    with tqdm(total=len(pending), unit=" cells", disable=not progress, smoothing=0) as bar:
        for place, cell in enumerate(pending):
            if minutes is not None and monotonic() - started >= 60 * minutes:
                return
            bar.set_description(f"{cell} ({_left(pending[place:], ledger.finished)} left)")
            begun = monotonic()
            values = experiment.run(cell)
            ledger.add(Record(cell, values, monotonic() - begun, about))
            bar.update()


def _left(pending: Sequence[Cell], finished: Records) -> str:
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


def _about(device: torch.device) -> dict[str, Any]:
    """What figures depend on beside the recipe; no names of hosts or paths."""
    packages = {"ipfast": ipfast.__version__, "torch": torch.__version__}
    for package in ("numpy", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "threads": torch.get_num_threads(), "versions": packages}


def _publish(experiment: Experiment, records: Records, folder: Path) -> list[str]:
    """Write the tables and draw the figures; what was written."""
    if not records:
        return []
    tables = folder / "tables.md"
    with written_whole(tables) as beside:
        beside.write_text("\n\n".join(experiment.tables(records)) + "\n", encoding="utf-8")
    return [f"Written: {file}" for file in (tables, *experiment.draw(records, folder))]
