"""What was found, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cells import Records
from ..checkpoints import BASE_SEED
from ..tables import difference_table, spread_table, table
from .problem import SETTINGS
from .training import Recipe

BASELINES = ("none", "random")
MEASURES = (
    # (name, what a table of it says, the same of differences)
    ("accuracy", "Accuracy in %", "Points of accuracy"),
    ("fair score", "Fair score in % of all test texts, lower is fairer", "Points of the fair score, less is fairer,"),
    ("fair score of changed", "The same in % of the texts with a counterpart", ""),
    ("predicted 1", "Predictions of the class 1, in %; a classifier that always says the same is the fairest", ""),
)


def report(records: Records, methods: Sequence[str], training: Recipe, model: str) -> Iterator[str]:
    """Tables of all that is finished."""
    settings = [setting for setting in SETTINGS if any(cell.setting == setting for cell in records)]
    yield "# nlp: texts about other people"
    sampled = f" Of more than {training.most or 0:,} training texts as many are used, the same share of each class."
    yield (
        f"{model}, {training.epochs} epochs. The labelled validation set of each task is cut in halves, V and test."
        f"{sampled if training.most else ''} Scores are of the last layer of the base model, for utility and for fairness on "
        "V, and the lowest 5 % by their mean rank are removed. `none` keeps all texts; `loss` (highest loss removed) and "
        "`random` are the controls. Texts about other people are made by rules from lists of words, in place of PANDA's "
        "perturber, and logged in rewrites/ of the folder of a run, with the texts of the data."
    )
    if "QNLI-dev" in settings:
        yield "QNLI-dev is not the paper's QNLI: its validation set alone, 80 % to train on, 10 % V, 10 % test."
    yield from _base(records, settings)
    yield from _removal(records, settings, methods)
    yield from _scores(records, settings, methods)


def _base(records: Records, settings: Sequence[str]) -> Iterator[str]:
    found = {cell.setting: record.values for cell, record in records.items() if cell.part == "base" and cell.seed == BASE_SEED}
    if not found:
        return
    yield "## The classifiers that are scored"
    rows = []
    for setting in settings:
        if setting in found:
            of = found[setting]
            sizes = [f"{of[name]:,}" for name in ("train", "V", "V changed", "test", "test changed")]
            shares = [
                "" if of[name] is None else f"{100 * of[name]:.1f}"
                for name in ("accuracy", "fair score", "fair score of changed")
            ]
            rows.append([setting, *sizes, *shares])
    head = ["", "train", "V", "with counterpart", "test", "with counterpart", "accuracy", "fair score", "of changed"]
    yield table(head, rows)


def _removal(records: Records, settings: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    if not any(cell.part == "removal" for cell in records):
        return
    yield "## Fine-tuned again without the lowest 5 %"
    yield "After the last epoch, on the test half, mean ± standard deviation over the seeds."
    for name, title, _ in MEASURES:
        yield f"{title}:\n\n" + spread_table(records, "removal", settings, methods, name, factor=100)
    if "CoLA" in settings:
        yield "Matthews correlation × 100:\n\n" + spread_table(records, "removal", ["CoLA"], methods, "matthews", factor=100)
    for control in BASELINES:
        for name, _, title in MEASURES:
            if title:
                yield f"{title} above `{control}`, paired by seed, with the 95 % interval (Student's t):\n\n" + (
                    difference_table(records, "removal", settings, methods, name, control, factor=100)
                )
    if "CoLA" in settings:
        for control in BASELINES:
            yield f"Matthews correlation × 100 above `{control}`, likewise:\n\n" + (
                difference_table(records, "removal", ["CoLA"], methods, "matthews", control, factor=100)
            )


def _scores(records: Records, settings: Sequence[str], methods: Sequence[str]) -> Iterator[str]:
    if not any(cell.part == "scores" for cell in records):
        return
    yield "## What methods would remove"
    for name, title, factor, digits in (
        ("of ip", "Percentage of the lowest 5 % that are among ip's", 100.0, 0),
        (
            "largest class",
            "Percentage of the lowest 5 % with the label that is the commonest among them, whichever that is",
            100.0,
            0,
        ),
        ("agreement", "Spearman correlation of the scores for utility and for fairness", 1.0, 2),
    ):
        yield f"{title}:\n\n" + spread_table(records, "scores", settings, methods, name, factor, digits, counted=False)
