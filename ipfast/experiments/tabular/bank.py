"""UCI Bank Marketing: who takes out a deposit when called."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import Place
from .raw import Raw

BANK = Place(
    "Bank Marketing",
    ("bank/bank-additional-full.csv", "bank-additional/bank-additional-full.csv", "bank-additional-full.csv"),
    "Download 'Bank Marketing' from archive.ics.uci.edu/dataset/222 and unpack bank-additional.zip there.",
)
ROWS = 41_188
UNKNOWN = "unknown"
COLUMNS = (
    *("age", "job", "marital", "education", "default", "housing", "loan", "contact", "month", "day_of_week", "duration"),
    *("campaign", "pdays", "previous", "poutcome", "emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m"),
    *("nr.employed", "y"),
)
NUMBERS = (
    *("age", "duration", "campaign", "pdays", "previous"),
    *("emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed"),
)
YES = {"default": ("yes", "no"), "housing": ("yes", "no"), "loan": ("yes", "no"), "contact": ("cellular", "telephone")}
"""Columns of two values: (what is 1, what is 0)."""
KINDS = {
    "job": (
        *("admin.", "blue-collar", "entrepreneur", "housemaid", "management", "retired", "self-employed", "services"),
        *("student", "technician", "unemployed"),
    ),
    "education": (
        *("basic.4y", "basic.6y", "basic.9y", "high.school", "illiterate", "professional.course", "university.degree"),
    ),
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")[2:],
    "day_of_week": ("mon", "tue", "wed", "thu", "fri"),
    "poutcome": ("failure", "nonexistent", "success"),
}
"""Columns of several values, each of which becomes a feature. Nobody was called in January or February."""
MARITAL = ("married", "single", "divorced")


def read_bank(folder: Path) -> Raw:
    """The rows without an unknown value: 51 features, label 1 = yes.

    10 numbers, 4 columns of two values, 36 of one value each of five columns, and whether someone is married, the sensitive
    attribute. The paper tells the number of features alone, which this reading gives.
    """
    file = BANK.find(folder)
    rows = BANK.rows(file, COLUMNS, ";")
    BANK.require_rows(file, ROWS, len(rows))
    known = [row for row in rows if UNKNOWN not in row]
    of = {name: np.array(column) for name, column in zip(COLUMNS, zip(*known, strict=True), strict=True)}
    features = [_numbers(file, name, of[name]) for name in NUMBERS]
    for name, (one, zero) in YES.items():
        features.append(_indicator(file, name, of[name], (one, zero), one))
    for name, kinds in KINDS.items():
        features += [_indicator(file, name, of[name], kinds, kind) for kind in kinds]
    features.append(_indicator(file, "marital", of["marital"], MARITAL, "married"))
    labels = _indicator(file, "y", of["y"], ("yes", "no"), "yes")
    return Raw(np.stack(features, axis=1), labels.astype(np.int64))


def _numbers(file: Path, name: str, column: np.ndarray) -> np.ndarray:
    try:
        return column.astype(np.float64)
    except ValueError as error:
        BANK.refuse(file, f"numbers in the column {name!r}", f"got one that is none ({error})")


def _indicator(file: Path, name: str, column: np.ndarray, kinds: tuple[str, ...], kind: str) -> np.ndarray:
    """[N] whether the column has that value, of those that it may have."""
    foreign = ~np.isin(column, kinds)
    if foreign.any():
        BANK.refuse(file, f"{', '.join(kinds)} in the column {name!r}", f"got {str(column[foreign][0])!r}")
    return np.asarray(column == kind, dtype=np.float64)
