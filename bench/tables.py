"""Tables: aligned text for the terminal, Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Cells = Sequence[Sequence[str]]


def text(header: Sequence[str], rows: Cells) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    lines = (header, tuple("-" * width for width in widths), *rows)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown(header: Sequence[str], rows: Cells) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def number(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def replace_block(file: Path, name: str, content: str, *, dry: bool = False) -> bool:
    """Put `content` between the markers of a generated block; whether the file differed. `dry` leaves it as it is.

    The markers are the lines `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.
    """
    start, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    before = file.read_text(encoding="utf-8")
    if before.count(start) != 1 or before.count(end) != 1 or before.index(start) > before.index(end):
        raise ValueError(f"{file.name}: expected one pair of markers {start.strip()} and {end}.")
    head, rest = before.split(start)
    after = head + start + content.strip() + "\n" + end + rest.split(end)[1]
    if dry or after == before:
        return after != before
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(after, encoding="utf-8")
    beside.replace(file)
    return True
