"""The figures of `python -m bench mask`."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import mask
from ..record import Row
from ..tables import number, text
from .head import QUIET, mebibytes


def terminal(rows: Sequence[Row]) -> str:
    """Every contender, and the bounds."""
    by_name = {row.contender: row for row in rows}
    first, sizes = by_name[mask.MASK], rows[0].sizes
    header = ["", "ms p20", "p50", "p80", f"/ {mask.MASK}", "elements/ns", "extra MiB"]
    lines = [
        [
            row.contender,
            *(number(1e3 * value) for value in (row.seconds.p20, row.seconds.p50, row.seconds.p80)),
            number(row.seconds.p50 / first.seconds.p50),
            number(sizes["elements"] / row.seconds.p50 / 1e9),
            mebibytes(row),
        ]
        for row in rows
    ]
    out = [
        f"{sizes['elements']:,} elements, rate {sizes['rate']:g}, {first.device}, {first.threads} threads, "
        f"{first.seconds.repeats} interleaved repeats",
        text(header, lines),
    ]
    spread = first.seconds.p80 / first.seconds.p20
    if spread > QUIET:
        out.append(
            f"The machine was busy: p80 / p20 of {first.contender} is {number(spread)}. Do not trust or keep these figures."
        )
    for bound in mask.bounds(by_name):
        out.append(
            f"{'met   ' if bound.met else 'MISSED'}  {bound.what}: {number(bound.value)} ({bound.direction} {bound.limit:g})"
        )
    return "\n".join(out)
