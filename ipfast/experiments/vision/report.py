"""What was found, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import ipfast

from ..cells import Records, by_seed
from ..intervals import paired, spread
from ..tables import difference_table, difference_text, spread_table, spread_text, table
from . import paper
from .architectures import ARCHITECTURE_LEVELS
from .detection import SHARES
from .problem import ANIMAL, CIFAR_N, LEVELS
from .training import Recipe

BASELINES = ("none", "loss", "random")
IP_ENSEMBLE = (ipfast.Dropout().members, ipfast.Dropout().rate)
"""(size, rate) of the method, whose cells are those of the parts "detection" and "removal"."""


def report(
    records: Records,
    methods: Sequence[str],
    training: Recipe,
    rates_level: str,
    rates: Sequence[float],
    rates_methods: Sequence[str],
    ensembles: Sequence[tuple[int, float]],
    architectures: Mapping[str, Recipe],
) -> Iterator[str]:
    """Tables of all that is finished."""
    levels = [level for level in LEVELS if any(cell.setting.split()[0] == level for cell in records)]
    yield "# vision: labels that people gave"
    yield (
        f"{training.network}, {training.epochs} epochs; CIFAR-N labels, a tenth of the training images under their clean "
        "labels as hold-out. Scores are of the last layer; `:all` is over the whole network. `none` keeps all samples; `loss` "
        "(highest loss removed) and `random` are the controls."
    )
    if any(ANIMAL in cell.setting.split() for cell in records):
        yield (
            f"`{ANIMAL}` is Animal-10N, whose true labels nobody knows: its hold-out, a tenth of the training images too, is "
            "under the labels that people gave, wrong ones among them, and how well scores find wrong labels cannot be said."
        )
    known = [level for level in levels if level in CIFAR_N]
    yield from _detection(records, known, methods)
    yield from _removal(records, levels, methods)
    yield from _rates(records, rates_level, sorted(rates), rates_methods)
    yield from _ensembles(records, known, ensembles)
    yield from _architectures(records, methods, architectures)


def _detection(records: Records, levels: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    if not any(cell.part == "detection" for cell in records):
        return
    yield "## Which scores find wrong labels?"
    yield "AUC, the chance that a wrong label scores below a right one; ± over seeds of methods that have any chance:\n\n" + (
        spread_table(records, "detection", levels, methods, "AUC", digits=3, counted=False)
    )
    for share in SHARES:
        yield (
            f"Percentage of wrong labels among the lowest {share:.0%}, with its 95 % bootstrap interval, or ± over seeds of "
            "methods that have any chance; in the last line that of all labels:\n\n"
        ) + table(["", *levels], _precision_rows(records, levels, methods, share))
    yield (
        "Percentage of the lowest 5 % with the label that is the commonest among them, whichever that is: high where a method "
        "would empty a class:\n\n"
        + spread_table(records, "detection", levels, methods, "largest class 0.05", factor=100, digits=0, counted=False)
    )


def _precision_rows(records: Records, levels: Sequence[str], methods: Sequence[str], share: float) -> Iterator[list[str]]:
    for method in methods:
        row = [method]
        for level in levels:
            of_level = records.alike("detection", level, method)
            text = spread_text(spread(by_seed(records, "detection", level, method, f"precision {share}").values()), 100, 1)
            if len(of_level) == 1:
                low, high = of_level[0].values[f"interval {share}"]
                text += f" [{100 * low:.1f}, {100 * high:.1f}]"
            row.append(text)
        yield row
    rates = {cell.setting: record.values["base rate"] for cell, record in records.items() if cell.part == "detection"}
    yield ["all labels", *(f"{100 * rates[level]:.1f}" if level in rates else "" for level in levels)]


def _removal(records: Records, levels: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    if not any(cell.part == "removal" for cell in records):
        return
    yield "## Training again without the lowest 5 %"
    for name, text in (("last", "the last epoch"), ("best", "the best epoch on the test set, which no one could choose")):
        yield f"Test accuracy in %, {text}:\n\n" + spread_table(records, "removal", levels, methods, name, factor=100)
    for control in BASELINES:
        yield (
            f"Points of accuracy above `{control}` in the last epoch, paired by seed, with the 95 % interval (Student's t):\n\n"
            + difference_table(records, "removal", levels, methods, "last", control, factor=100)
        )


def _rates(records: Records, level: str, rates: Sequence[float], methods: Sequence[str]) -> Iterator[str]:
    if not any(cell.part == "rates" for cell in records):
        return
    none = by_seed(records, "removal", level, "none", "last")
    places = {rate: ("rates", f"{level} {rate:.1%}") if rate != 0.05 else ("removal", level) for rate in rates}
    yield f"## Rates of removal ({level}, Table 4)"
    rows = [["none", spread_text(spread(none.values()), 100), *[""] * len(rates)]]
    for method in methods:
        found = {rate: by_seed(records, *place, method, "last") for rate, place in places.items()}
        few = [f" ({len(values)} of {len(none)})" if 0 < len(values) < len(none) else "" for values in found.values()]
        texts = [spread_text(spread(values.values()), 100) for values in found.values()]
        rows.append([method, "", *(text + mark for text, mark in zip(texts, few, strict=True))])
        rows.append([f"{method} minus none", "", *(difference_text(paired(values, none), 100) for values in found.values())])
    yield table(["test accuracy in %, last epoch", "0 %", *(f"{100 * rate:g} %" for rate in rates)], rows)


def _ensembles(records: Records, levels: Sequence[str], ensembles: Sequence[tuple[int, float]]) -> Iterator[str]:
    if not any(cell.part == "ensembles" for cell in records):
        return
    yield "## Sizes and rates of the ensemble (Table 5)"
    for name, text, factor, digits in (
        ("AUC", "AUC", 1.0, 4),
        ("precision 0.05", "Percentage of wrong labels among the lowest 5 %", 100.0, 2),
        ("last", "Test accuracy in %, last epoch", 100.0, 2),
    ):
        part = "removal" if name == "last" else "detection"
        places = {
            f"T = {size}, p = {rate:g}": ("ensembles", f" T={size} p={rate:g}") if (size, rate) != IP_ENSEMBLE else (part, "")
            for size, rate in ensembles
        }
        rows, varied = [], False
        for row, (where, ending) in places.items():
            found = [by_seed(records, where, f"{level}{ending}", "ip_ensemble", name) for level in levels]
            varied |= where == "ensembles" and any(found)
            rows.append([row, *(spread_text(spread(each.values()), factor, digits) for each in found)])
        for method in ("ip", "loss", "random"):
            single = (by_seed(records, part, level, method, name) for level in levels)
            rows.append([method, *(spread_text(spread(each.values()), factor, digits) for each in single)])
        if varied:
            yield f"{text}, ± over seeds of the masks:\n\n" + table(["", *levels], rows)


def _architectures(records: Records, methods: Sequence[str], architectures: Mapping[str, Recipe]) -> Iterator[str]:
    settings = [setting for setting in architectures if any(cell[:2] == ("architectures", setting) for cell in records)]
    if not settings:
        return
    recipes: dict[str, list[str]] = {}
    for setting in settings:
        recipes.setdefault(_recipe(architectures[setting]), []).append(setting)
    yield "## Other networks, without the lowest 5 % (Table 6)"
    yield (
        "Each network at each level is scored by a base model of its own. `tda` unrolls SGD and is not among the methods, "
        "since these are trained with AdamW. Recipes: "
        + "; ".join(f"{recipe} ({', '.join(of)})" for recipe, of in recipes.items())
        + ". The paper does not say how large its networks are, nor how fast they learn."
    )
    for name in paper.TABLE_6:
        if any(setting.split()[0] == name for setting in settings):
            yield f"{name}: test accuracy in %, the last epoch, and what the paper has:\n\n" + _table_6(records, methods, name)
    yield (
        "Test accuracy in %, the best epoch on the test set, which no one could choose:\n\n"
        + spread_table(records, "architectures", settings, methods, "best", factor=100)
    )
    for control in BASELINES:
        yield (
            f"Points of accuracy above `{control}` in the last epoch, paired by seed, with the 95 % interval (Student's t):\n\n"
            + difference_table(records, "architectures", settings, methods, "last", control, factor=100)
        )


def _recipe(of: Recipe) -> str:
    return f"{of.network}, {of.epochs} epochs, batches of {of.batch_size}, AdamW up to {of.rate:g}"


def _table_6(records: Records, methods: Sequence[str], name: str) -> str:
    """Methods by data, and means over all three; of the paper's numbers by data only those of the ensemble are known."""
    rows = []
    for method in methods:
        values = [by_seed(records, "architectures", f"{name} {level}", method, "last") for level in ARCHITECTURE_LEVELS]
        found = [spread(each.values()) for each in values]
        means = [of.mean for of in found if of is not None]
        mean = f"{100 * sum(means) / len(means):.2f}" if len(means) == len(found) else ""
        if means:
            number = paper.TABLE_6[name].get(method)
            rows.append([method, *(spread_text(of, 100) for of in found), mean, "" if number is None else f"{number:.2f}"])
    of_paper = [f"{paper.ENSEMBLE[name][level]:.2f}" for level in ARCHITECTURE_LEVELS]
    rows.append(["ip_ensemble, the paper", *of_paper, "", f"{paper.TABLE_6[name]['ip_ensemble']:.2f}"])
    return table(["", *ARCHITECTURE_LEVELS, "mean of the three", "mean, the paper"], rows)
