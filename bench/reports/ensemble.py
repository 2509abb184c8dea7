"""The figures of `python -m bench ensemble`."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import ensemble
from ..record import Row
from . import plain


def terminal(rows: Sequence[Row]) -> str:
    """Every contender, and the bounds."""
    sizes = rows[0].sizes
    columns = sizes["classes"] * (1 + sizes["members"])
    shape = f"C={sizes['classes']}, d={sizes['width']}, N={sizes['rows']:,}"
    return plain.terminal(
        rows,
        title=f"{sizes['members']} members, rate {sizes['rate']:g}, {shape}",
        base=ensemble.SPARSE,
        bounds=ensemble.bounds({row.contender: row for row in rows}),
        rate=("flop of the bare product", 2 * sizes["rows"] * columns * sizes["width"]),
    )
