"""GLUE's QNLI, its development split: does the sentence answer the question? Not a data set of the paper's section 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...data.glue import TASKS, read_task

ANSWERED = TASKS["QNLI"].labels.index("entailment")


def read_qnli(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(questions, sentences, labels [N], 1 = entailment)

    As elsewhere in this experiment 1 is what is looked for, and so it was when the recorded results were computed; GLUE's own
    order, which `read_task` keeps, has entailment first.
    """
    texts, labels = read_task("experiment", folder, TASKS["QNLI"], "dev")
    questions, sentences = zip(*texts, strict=True)
    return list(questions), list(sentences), (labels == ANSWERED).astype(np.int64)
