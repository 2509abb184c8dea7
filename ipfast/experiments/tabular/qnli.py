"""GLUE's QNLI, its development split: does the sentence answer the question? Not a data set of the paper's section 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import Place

QNLI = Place(
    "the development split of QNLI",
    ("glue/QNLI/dev.tsv", "QNLI/dev.tsv"),
    "Download 'QNLI' (QNLIv2.zip) from gluebenchmark.com/tasks.",
)
COLUMNS = ("index", "question", "sentence", "label")
LABELS = ("not_entailment", "entailment")
ROWS = 5_463


def read_qnli(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(questions, sentences, labels [N], 1 = entailment)"""
    file = QNLI.find(folder)
    rows = QNLI.rows(file, COLUMNS, "\t", quoted=False)
    QNLI.require_rows(file, ROWS, len(rows))
    labels = [row[3] for row in rows]
    if set(labels) != set(LABELS):
        foreign = sorted(set(labels) - set(LABELS)) or sorted(set(labels))
        QNLI.refuse(file, f"{' and '.join(LABELS)} in the column 'label'", f"got {foreign[0][:60]!r}")
    return [row[1] for row in rows], [row[2] for row in rows], np.array([LABELS.index(label) for label in labels])
