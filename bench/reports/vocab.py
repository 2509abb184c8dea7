"""The figures of `python -m bench vocab`."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import vocab
from ..record import Row
from . import plain


def terminal(rows: Sequence[Row]) -> str:
    """Every contender, and the bounds."""
    sizes = rows[0].sizes
    return plain.terminal(
        rows,
        title=f"C={sizes['classes']:,}, d={sizes['width']}, {sizes['rows']:,} tokens",
        base=vocab.HEAD_DOT,
        bounds=vocab.bounds({row.contender: row for row in rows}),
        rate=("flop", 4 * sizes["rows"] * sizes["classes"] * sizes["width"]),
    )
