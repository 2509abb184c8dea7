"""The figures of `python -m bench mask`."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import mask
from ..record import Row
from . import plain


def terminal(rows: Sequence[Row]) -> str:
    """Every contender, and the bounds."""
    sizes = rows[0].sizes
    return plain.terminal(
        rows,
        title=f"{sizes['elements']:,} elements, rate {sizes['rate']:g}",
        base=mask.MASK,
        bounds=mask.bounds({row.contender: row for row in rows}),
        rate=("elements", sizes["elements"]),
    )
