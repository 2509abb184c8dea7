"""Data files as people have them after downloading, and what is said of those that are missing or foreign."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...checks import existing_file
from ...errors import InputError, MissingFileError

FIELD_LIMIT = 1 << 20  # characters in a field of a table; comments can be long, and the module's own limit is 131,072


@dataclass(frozen=True)
class Place:
    """A file of a data set.

    Attributes:
        what: it holds. paths: below the folder of the data sets, where it may lie; the first one is named when it is missing.
        source: a sentence that says where people get it.
    """

    what: str
    paths: tuple[str, ...]
    source: str

    def find(self, folder: Path) -> Path:
        """The file, if it is there."""
        found = [folder / path for path in self.paths]
        file = next((each for each in found if each.exists()), None)
        if file is None:
            raise MissingFileError(f"experiment: expected {self.what} in {str(found[0])!r}; it does not exist. {self.source}")
        return existing_file("experiment", self.what, file)

    def refuse(self, file: Path, expected: str, got: str) -> NoReturn:
        """Say that the file is not the one that was expected."""
        raise InputError(
            f"experiment: expected {expected} in {str(file)!r}; {got}. It was cut off or is another file. {self.source}"
        )

    def rows(self, file: Path, columns: Sequence[str], delimiter: str, *, quoted: bool = True) -> list[list[str]]:
        """The rows below the header; every row has as many fields as the header, which begins with the columns."""
        before = csv.field_size_limit(FIELD_LIMIT)
        # Strict, so that a file that ends within quotes is an error.
        options: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                head, *rows = csv.reader(lines, delimiter=delimiter, **options)
        except (csv.Error, ValueError) as error:  # not a table, not UTF-8, or empty
            self.refuse(file, f"a table with the columns {', '.join(columns)}", f"it cannot be read ({error})")
        finally:
            csv.field_size_limit(before)
        if head[: len(columns)] != list(columns):
            line = delimiter.join(head)[:60]
            self.refuse(file, f"a table with the columns {', '.join(columns)}", f"its first line is {line!r}")
        for number, row in enumerate(rows, start=1):
            if len(row) != len(head):
                self.refuse(file, f"{len(head)} fields in each row", f"got {len(row)} in row {number:,}")
        return rows

    def require_rows(self, file: Path, expected: int, got: int) -> None:
        """Refuse a file of another length than the original."""
        if expected != got:
            self.refuse(file, f"{expected:,} rows", f"got {got:,}")
