"""Tables of what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..cells import Records, by_seed
from ..intervals import spread
from ..tables import difference_table, spread_table, spread_text, table
from . import paper
from .attack import GAMMA
from .defence import CLIP, CURATIONS, OF_THE_PAPER, SHARE
from .problem import DATA, ORIGIN, SETTINGS, data_of

TITLES = {
    "trim": f"Trim: without the lowest {100 * SHARE:g} % (Figure 6)",
    "relabel": f"Relabel: the labels of the lowest {100 * SHARE:g} % flipped",
    "reweight": "Reweight: weights exp(s/τ), τ the standard deviation of the scores, mean weight 1",
    "reweight-clipped": f"Reweight, no weight above {CLIP:g}",
    "reweight-softmax": "Reweight by the softmax of the scores as they are (τ = 1)",
}
BASELINES = ("none", "random", "ip")
VALUES = {
    "defence": "Accuracy in %, on the test set as it was attacked",
    "balanced": "Balanced accuracy in %, on the same",
    "re-crafted": "Accuracy in %, the same rows attacked anew against the defended model",
    "clean": "Accuracy in %, on the test set without attack",
    "clean balanced": "Balanced accuracy in %, without attack",
}


def known_settings(records: Records) -> list[str]:
    """Settings of the finished cells."""
    return [setting for setting in SETTINGS if any(cell.setting == setting for cell in records)]


def report(records: Records, methods: Sequence[str]) -> Iterator[str]:
    """Tables of all that is finished."""
    settings = known_settings(records)
    yield "# tabular: an adaptive evasion attack, and curated training data"
    yield (
        f"Each attack moves 5 % to 25 % of the test rows across the boundary of the model of all samples (γ = {GAMMA}). The "
        "defender scores the training samples against the whole validation set under the same attack, curates, and trains "
        "again. Mean ± standard deviation over attacks, which all methods share; a method without chance has one defended "
        "model, so that the spread is that of the attacks and not of training data. `none` is no defence; `loss` (highest "
        f"loss first) and `random` are the controls. Settings that end in `{ORIGIN}` have no intercept, as the group's "
        "published code; \\* marks a data set that is not of the paper's section 7. `ip_ensemble` has other masks at each "
        "attack: at rate 0.01 five of them drop d/20 of their 5d weights, two or three on bank. "
        "`self_lissa` is the limit of its series, solved."
    )
    yield from _data(records, settings)
    yield from _attack(records, settings)
    for part in CURATIONS:
        if any(cell.part == part for cell in records):
            yield from _curation(records, settings, methods, part)
    yield from _table_2(records, methods)


def _data(records: Records, settings: Sequence[str]) -> Iterator[str]:
    found: dict[str, dict[str, Any]] = {}
    for cell, record in records.items():
        if cell.part == "attack":
            found[cell.setting] = dict(record.values)
    rows = []
    for setting in settings:
        if setting in found:
            of = found[setting]
            sizes = " / ".join(f"{count:,}" for count in of["rows"])
            texts = [sizes, str(of["features"]), f"{of['penalty']:g}", "no" if setting.endswith(ORIGIN) else "yes"]
            rows.append([_mark(setting), *texts, f"{100 * of['positive']:.1f}", f"{100 * of['majority']:.2f}"])
    yield "## Data"
    head = ["", "train / validation / test", "features", "λ", "intercept", "positive, %", "always the commonest label, %"]
    yield "The last column is the accuracy on the test set of a model that always says what most of the training set is:"
    yield table(head, rows)


def _attack(records: Records, settings: Sequence[str]) -> Iterator[str]:
    yield "## The attack"
    yield (
        "Expected is a − f(2a − 1) of the accuracy a before and the attacked share f, since an attack makes right predictions "
        "wrong and wrong ones right:"
    )
    head = ["in %", "attacked", "before", "the paper", "after", "the paper", "expected", "balanced before", "balanced after"]
    rows = []
    for setting in settings:
        value = _values(records, "attack", setting, "none")
        name = data_of(setting).name
        rows.append(
            [
                _mark(setting),
                *(value("attacked"), value("pre"), paper.PRE.get(name, ""), value("post"), paper.POST.get(name, "")),
                *(value("expected post"), value("pre balanced"), value("post balanced")),
            ]
        )
    yield table(head, rows)


def _curation(records: Records, settings: Sequence[str], methods: Sequence[str], part: str) -> Iterator[str]:
    yield f"## {TITLES[part]}"
    shown = VALUES if part in OF_THE_PAPER else {name: VALUES[name] for name in ("defence", "balanced")}
    for name, text in shown.items():
        yield f"{text}:\n\n" + _marked(spread_table(records, part, settings, methods, name, factor=100))
    for control in BASELINES if part in OF_THE_PAPER else BASELINES[:1]:
        what = "no defence" if control == "none" else f"`{control}`"
        yield (
            f"Points of accuracy on the attacked test set above {what}, paired by attack, with the 95 % interval (Student's "
            "t):\n\n" + _marked(difference_table(records, part, settings, methods, "defence", control, factor=100))
        )
    if part in OF_THE_PAPER:
        yield (
            "Points of accuracy on the rows attacked anew above no defence, paired by attack, with the 95 % interval "
            "(Student's t):\n\n" + _marked(difference_table(records, part, settings, methods, "re-crafted", "none", factor=100))
        )
    if part in ("trim", "relabel"):
        text = "Percentage of the rows that were changed with the label that is the commonest among them, whichever that is"
        yield f"{text}:\n\n" + _marked(spread_table(records, part, settings, methods, "largest class", 100, 0))
    else:
        text = "Samples that the weights are worth, (Σw)²/Σw²"
        yield f"{text}:\n\n" + _marked(spread_table(records, part, settings, methods, "effective", 1, 0))


def _table_2(records: Records, methods: Sequence[str]) -> Iterator[str]:
    """The paper's numbers beside those found, with and without intercept."""
    parts = [part for part in paper.TABLE_2 if any(cell.part == part for cell in records)]
    if parts:
        yield "## Table 2 beside the paper"
    for part in parts:
        head = [f"{part}, in %"]
        for name in paper.DATA:
            head += [name, f"{name}{ORIGIN}", f"{name}, the paper"]
        rows = []
        for method in methods:
            row = [method]
            for name in paper.DATA:
                row += [_values(records, part, setting, method)("defence") for setting in (name, f"{name}{ORIGIN}")]
                number = paper.TABLE_2[part].get((method, name))
                row.append("" if number is None else f"{number:.2f}")
            rows.append(row)
        yield table(head, rows)


def _values(records: Records, part: str, setting: str, method: str) -> Callable[[str], str]:
    """Name -> mean ± deviation in % of a cell's value of that name."""
    return lambda name: spread_text(spread(by_seed(records, part, setting, method, name).values()), 100)


def _mark(setting: str) -> str:
    """The setting, with a star where its data set is not the paper's."""
    return setting if data_of(setting).paper else f"{setting}\\*"


def _marked(text: str) -> str:
    """A table whose head has the stars."""
    head, rest = text.split("\n", 1)
    for name in DATA:
        head = head.replace(f"| {name} |", f"| {_mark(name)} |")
    return f"{head}\n{rest}"
