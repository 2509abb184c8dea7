"""Comments of Wikipedia's talk pages: are they toxic?"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .files import Place

JIGSAW = Place(
    "the comments of the Jigsaw Toxic Comment Classification",
    ("jigsaw/train.csv", "jigsaw-toxic-comment-classification-challenge/train.csv"),
    "Download 'train.csv' from kaggle.com/c/jigsaw-toxic-comment-classification-challenge.",
)
COLUMNS = ("id", "comment_text", "toxic")
SAMPLE = 30_000
"""Comments of the paper; of a longer file as many are drawn."""
SAMPLE_SEED = 0
LEAST = 100
SENSITIVE = re.compile(r"\b(blacks?|africans?|afro[- ]?americans?|negro(es)?|nigg(er|a)s?)\b", re.IGNORECASE)
"""Whether a comment speaks of Black people, the sensitive attribute: the paper has one of ethnicity and does not say how it is
found."""


def read_jigsaw(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(comments, sensitive attribute [N], labels [N], 1 = toxic), in the order of the file."""
    file = JIGSAW.find(folder)
    rows = JIGSAW.rows(file, COLUMNS, ",")
    if len(rows) < LEAST:
        JIGSAW.refuse(file, f"{LEAST} comments or more", f"got {len(rows)}")
    labels = [row[2] for row in rows]
    if set(labels) != {"0", "1"}:
        foreign = sorted(set(labels) - {"0", "1"}) or sorted(set(labels))
        JIGSAW.refuse(file, "0 and 1 in the column 'toxic'", f"got {foreign[0][:60]!r}")
    chosen = np.arange(len(rows))
    if len(rows) > SAMPLE:
        chosen = np.sort(np.random.default_rng(SAMPLE_SEED).choice(len(rows), SAMPLE, replace=False))
    texts = [rows[row][1] for row in chosen]
    sensitive = np.array([SENSITIVE.search(text) is not None for text in texts], dtype=np.float64)
    return texts, sensitive, np.array(labels)[chosen].astype(np.int64)
