"""Results as JSON lines: a cell counts as finished when its whole line is in the file.

A line is written by one call and flushed to the disk. A process that is killed in the middle leaves at most the head of a last
line, which the next one cuts off. The file is locked while it is open, so that two processes cannot run the same cell.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError, UnavailableError
from .cells import Cell, Record

try:
    import fcntl
except ImportError:  # not on Windows, where one has to take care oneself
    fcntl = None  # type: ignore[assignment]


class Ledger:
    """The finished cells of one run, read when it is entered.

    Args:
        file: .jsonl; made when it is not there.
        header: names of the experiment and its scale, repeated on each line and expected of those that are there.
    """

    def __init__(self, file: Path, **header: str) -> None:
        self.file = file
        self.header = header
        self.finished: dict[Cell, Record] = {}
        self._descriptor = -1

    def __enter__(self) -> Ledger:
        try:
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(
                f"experiment: expected {str(self.file)!r} to be a file that can be written; it is not ({error.strerror}). "
                "Choose another --out."
            ) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def add(self, record: Record) -> None:
        """Write the line of a cell that is finished."""
        assert record.cell not in self.finished, f"{record.cell} was run twice"
        entry = {
            **self.header,
            **record.cell._asdict(),
            "values": _finite(record.values),
            "seconds": round(record.seconds, 3),
            **record.about,
        }
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        while line:  # a full disk may take a part; the rest raises
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)
        self.finished[record.cell] = Record(record.cell, entry["values"], entry["seconds"], record.about)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(
                f"experiment: expected to be the only process that writes {str(self.file)!r}; another one does. Wait for it, "
                "or choose another --out."
            ) from error

    def _read(self) -> None:
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines, last = content[:whole].splitlines(), content[whole:]
        cut = bool(last) and not _is_json(last)
        if last and not cut:
            lines.append(last)  # of which an editor has dropped the line break alone
        elif cut and not self._begins_a_line(last):
            raise InputError(
                f"experiment: expected finished cells in {str(self.file)!r}; its end is none. Choose another --out."
            )
        for number, line in enumerate(lines, start=1):
            record = self._record(number, line)
            if record.cell in self.finished:
                raise InputError(
                    f"experiment: expected one line a cell in {str(self.file)!r}; line {number} is a second one of "
                    f"{record.cell}. Delete one of them."
                )
            self.finished[record.cell] = record
        if cut:  # only now that it is known to be a file of this run
            os.ftruncate(self._descriptor, whole)
        elif last:
            os.write(self._descriptor, b"\n")

    def _begins_a_line(self, head: bytes) -> bool:
        """Whether it is how a line of these cells begins."""
        start = json.dumps(self.header, ensure_ascii=False).encode()[:-1]
        return head[: len(start)] == start[: len(head)]

    def _record(self, number: int, line: bytes) -> Record:
        try:
            entry = dict(json.loads(line, parse_constant=_no_number))
            header = {name: entry.pop(name) for name in self.header}
            cell = Cell(*(entry.pop(name) for name in Cell._fields))
            values, seconds = entry.pop("values"), entry.pop("seconds")
            reason = "" if header != self.header else _wrong(cell, values, seconds)
        except (TypeError, ValueError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else "it is no object of JSON"
        if reason:
            raise InputError(
                f"experiment: expected a finished cell on line {number} of {str(self.file)!r}; it is none: {reason}. Delete "
                "the line, or choose another --out."
            )
        if header != self.header:
            raise InputError(
                f"experiment: expected cells of {self.header} in {str(self.file)!r}; line {number} is of {header}. Choose "
                "another --out."
            )
        return Record(cell, values, float(seconds), entry)


def _wrong(cell: Cell, values: object, seconds: object) -> str:
    """What a line has that no run has written, or nothing."""
    for name, value in zip(Cell._fields, cell, strict=True):
        kind: type = int if name == "seed" else str
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"its {name} is {value!r}"
    if not isinstance(values, dict):
        return f"its values are {values!r}"
    for name, value in values.items():
        if not _numeric(value):
            return f"its value {name!r} is {value!r}"
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return f"its seconds are {seconds!r}"
    return ""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _numeric(value: object) -> bool:
    """Whether it is what `_finite` gives."""
    if isinstance(value, dict):
        return all(map(_numeric, value.values()))
    if isinstance(value, list):
        return all(map(_numeric, value))
    return value is None or isinstance(value, (int, float))


def _no_number(name: str) -> float:
    """NaN and infinity, which are null in these files."""
    raise ValueError(f"experiment: expected null where a value is not finite; got {name}.")


def _finite(value: Any) -> Any:
    """The value as JSON has it; what is not a number is null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, (bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
