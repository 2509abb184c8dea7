"""Scores in files of a folder of results: computed once, and taken by every cell that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ipfast

from ..errors import InputError


def kept_scores(file: Path, count: int, make: Callable[[], ipfast.Scores]) -> ipfast.Scores:
    """Scores of `count` samples, read from the file, or made and written to it.

    Raises:
        InputError: the file cannot be read, or holds scores of other samples.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        make().save(file)
    found = ipfast.Scores.load(file)
    if found.values.shape != (count,):
        raise InputError(
            f"experiment: expected scores of {count:,} training samples in {str(file)!r}; got shape "
            f"{list(found.values.shape)}. They are of other data. Choose another --out."
        )
    return found
