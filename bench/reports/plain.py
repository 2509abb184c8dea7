"""The figures of a case as one table: every contender, its time against one of them, and the bounds."""

from __future__ import annotations

from collections.abc import Sequence

from ..bounds import Bound
from ..record import Row
from ..tables import number, text
from .head import QUIET, mebibytes


def terminal(
    rows: Sequence[Row], *, title: str, base: str, bounds: Sequence[Bound], rate: tuple[str, float] | None = None
) -> str:
    """`base`: the contender that times are divided by. `rate`: (name, amount) of work a case does, shown a nanosecond."""
    by_name = {row.contender: row for row in rows}
    first = rows[0]
    header = ["", "ms p20", "p50", "p80", f"/ {base}", *([f"{rate[0]}/ns"] if rate else []), "extra MiB"]
    lines = [
        [
            row.contender + ("" if row.share == 1 else " *"),
            *(number(1e3 * value) for value in (row.seconds.p20, row.seconds.p50, row.seconds.p80)),
            number(row.seconds.p50 / by_name[base].seconds.p50),
            *([number(rate[1] / row.seconds.p50 / 1e9)] if rate else []),
            mebibytes(row),
        ]
        for row in rows
    ]
    out = [
        f"{title}, {first.device}, {first.threads} threads, {first.seconds.repeats} interleaved repeats",
        text(header, lines),
    ]
    out += [f"* timed on {row.share:.3g} of the work and scaled." for row in rows if row.share < 1]
    spread = first.seconds.p80 / first.seconds.p20
    if spread > QUIET:
        out.append(
            f"The machine was busy: p80 / p20 of {first.contender} is {number(spread)}. Do not trust or keep these figures."
        )
    for bound in bounds:
        out.append(
            f"{'met   ' if bound.met else 'MISSED'}  {bound.what}: {number(bound.value)} ({bound.direction} {bound.limit:g})"
        )
    return "\n".join(out)
