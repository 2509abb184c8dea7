"""The attributes of CelebA, without images: does somebody smile?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import Place
from .raw import Raw

CELEBA = Place(
    "the attributes of CelebA",
    ("celeba/list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.txt"),
    "Download 'list_attr_celeba.txt' (Anno) from mmlab.ie.cuhk.edu.hk/projects/CelebA.html.",
)
ROWS = 202_599
ATTRIBUTES = 40
SAMPLE = 104_163
"""Rows of the paper, whose choice it does not tell."""
SAMPLE_SEED = 0
TARGET = "Smiling"
"""The paper names no target. With this one, a usual choice, the accuracy before the attack is near the paper's; with
High_Cheekbones it is as near. Male, the sensitive attribute, is a feature."""


def read_celeba(folder: Path) -> Raw:
    """A seeded sample of the rows: 39 attributes of −1 and 1, label 1 = smiling."""
    file = CELEBA.find(folder)
    with file.open(encoding="utf-8", errors="replace") as lines:
        count, names = lines.readline().strip(), lines.readline().split()
    if count != str(ROWS):
        CELEBA.refuse(file, f"the number of rows, {ROWS}, on the first line", f"it is {count[:60]!r}")
    if len(names) != ATTRIBUTES or TARGET not in names:
        CELEBA.refuse(file, f"{ATTRIBUTES} names with {TARGET!r} on the second line", f"got {len(names)} names")
    try:
        values = np.loadtxt(file, dtype=np.int8, skiprows=2, usecols=range(1, ATTRIBUTES + 1), encoding="utf-8", ndmin=2)
    except ValueError as error:
        CELEBA.refuse(file, f"{ATTRIBUTES} attributes in each row", f"one has others ({error})")
    CELEBA.require_rows(file, ROWS, len(values))
    if not np.isin(values, (-1, 1)).all():
        CELEBA.refuse(file, "attributes of -1 and 1", "there are others")
    rows = np.sort(np.random.default_rng(SAMPLE_SEED).choice(ROWS, min(SAMPLE, ROWS), replace=False))
    place = names.index(TARGET)
    features = np.delete(values[rows], place, axis=1).astype(np.float64)
    return Raw(features, (values[rows, place] == 1).astype(np.int64))
