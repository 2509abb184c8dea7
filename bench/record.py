"""Results on disk: one JSON object a line, one line for each (case, contender, machine, versions); a re-run replaces it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .measure import Timing
from .roofline import Roofline

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """The figures of one contender in one case."""

    case: str
    sizes: dict[str, Any]  # rows, width, classes, … and dtype
    contender: str
    device: str  # "cpu" or "cuda"
    threads: int
    seconds: Timing  # for all rows of the case
    share: float  # of the rows that were timed; below 1, `seconds` are extrapolated
    extra_bytes: int | None  # peak memory beyond the inputs; None: not measured
    roofline: Roofline
    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str
    date: str

    @property
    def key(self) -> str:
        """Equal for rows of which the later replaces the earlier."""
        parts = (self.case, self.sizes, self.contender, self.device, self.threads, self.machine, self.versions)
        return json.dumps(parts, sort_keys=True)

    @classmethod
    def parse(cls, line: str) -> Row:
        fields = json.loads(line)
        return cls(**{**fields, "seconds": Timing(**fields["seconds"]), "roofline": Roofline(**fields["roofline"])})


def load(case: str, folder: Path = RESULTS) -> list[Row]:
    """Recorded rows of a case, oldest first; none if nothing was recorded."""
    file = folder / f"{case}.jsonl"
    return [Row.parse(line) for line in file.read_text().splitlines() if line] if file.exists() else []


def record(rows: Iterable[Row], folder: Path = RESULTS) -> None:
    """Add rows to the files of their cases; the files are replaced whole."""
    new: dict[str, list[Row]] = {}
    for row in rows:
        new.setdefault(row.case, []).append(row)
    folder.mkdir(exist_ok=True)
    for case, added in new.items():
        merged = {row.key: row for row in load(case, folder)}
        for row in added:
            merged.pop(row.key, None)  # so that the newest rows come last
            merged[row.key] = row
        beside = folder / f".{case}.jsonl.{os.getpid()}"
        beside.write_text("".join(json.dumps(asdict(row), sort_keys=True) + "\n" for row in merged.values()))
        beside.replace(folder / f"{case}.jsonl")
