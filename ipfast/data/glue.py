"""Tasks of GLUE in the files that gluebenchmark.com gives: tab separated, one sample a line, no quotes (arXiv 1804.07461)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks import existing_file
from ..errors import InputError, MissingFileError

PLACES = ("glue", "glue_data", ".")
"""Folders of the data where a task's folder may lie."""


@dataclass(frozen=True)
class Task:
    """How one task lies in files.

    Attributes:
        header: names of the columns; CoLA has no such line, these are what its columns are.
        sentences: the columns that are read. labels: their spellings, the first one being 0.
        rows: samples of train.tsv and of dev.tsv, the labelled validation set.
    """

    name: str
    header: tuple[str, ...]
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    rows: dict[str, int]
    titled: bool = True

    @property
    def source(self) -> str:
        return f"Download {self.name} from gluebenchmark.com/tasks and unpack it to {PLACES[0]}/{self.name}/."


ENTAILS = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        Task(
            "RTE",
            ("index", "sentence1", "sentence2", "label"),
            ("sentence1", "sentence2"),
            ENTAILS,
            {"train": 2490, "dev": 277},
        ),
        Task("CoLA", ("source", "label", "mark", "sentence"), ("sentence",), ("0", "1"), {"train": 8551, "dev": 1043}, False),
        Task("SST-2", ("sentence", "label"), ("sentence",), ("0", "1"), {"train": 67349, "dev": 872}),
        Task(
            "QNLI",
            ("index", "question", "sentence", "label"),
            ("question", "sentence"),
            ENTAILS,
            {"train": 104743, "dev": 5463},
        ),
    )
}


def task_file(folder: Path, task: Task, part: str) -> Path:
    """Where `part` of the task lies, or would lie."""
    found = [folder / place / task.name / f"{part}.tsv" for place in PLACES]
    return next((file for file in found if file.exists()), found[0])


def read_task(where: str, folder: Path, task: Task, part: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """(one or two sentences of each sample, labels [N] int64) of "train" or "dev"."""
    file = task_file(folder, task, part)
    if not file.exists():
        raise MissingFileError(f"{where}: expected {task.name} of GLUE in {str(file)!r}; it does not exist. {task.source}")
    existing_file(where, f"{task.name} of GLUE", file)
    try:
        lines = file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text in {str(file)!r}; byte {error.start} is none. It is another file. {task.source}"
        ) from error
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if task.titled and rows[0] != list(task.header):
        raise InputError(
            f"{where}: expected columns {', '.join(task.header)} on the first line of {str(file)!r}; got "
            f"{', '.join(rows[0])[:80]!r}. It is another file. {task.source}"
        )
    places = [task.header.index(name) for name in task.sentences]
    label = task.header.index("label")
    sentences: list[tuple[str, ...]] = []
    labels: list[int] = []
    for number, row in enumerate(rows[task.titled :], start=1 + task.titled):
        if len(row) != len(task.header) or row[label] not in task.labels:
            raise InputError(
                f"{where}: expected {len(task.header)} columns on each line of {str(file)!r}, the label one of "
                f"{', '.join(task.labels)}; line {number} has other ones. It is cut off or another file. {task.source}"
            )
        sentences.append(tuple(row[place] for place in places))
        labels.append(task.labels.index(row[label]))
    if len(labels) != task.rows[part]:
        raise InputError(
            f"{where}: expected {task.rows[part]:,} samples in {str(file)!r}; got {len(labels):,}. It is cut off or another "
            f"version. {task.source}"
        )
    return sentences, np.asarray(labels, dtype=np.int64)
