"""The figures of `python -m bench head`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ..cases import head
from ..record import Row
from ..tables import markdown, number, text

QUIET = 1.25
"""Largest p80 / p20 of a plain read on a machine that does nothing else."""


def terminal(rows: Sequence[Row]) -> str:
    """Every contender of one number of classes, and the bounds."""
    by_name = {row.contender: row for row in rows}
    first, base = rows[0], head.base_product(by_name)
    references = [by_name[head.SUM], by_name[head.BLOCKED], base]
    header = [
        "",
        "ms p20",
        "p50",
        "p80",
        *(f"/ {row.contender}" for row in references),
        "GF/s",
        "GB/s",
        "of copy",
        "of product",
        "extra MiB",
    ]
    lines = [
        [
            row.contender + ("" if row.share == 1 else " *"),
            *(number(1e3 * value) for value in (row.seconds.p20, row.seconds.p50, row.seconds.p80)),
            *(number(row.seconds.p50 / reference.seconds.p50) for reference in references),
            "" if row.contender == head.SUM else number(flops_per_second(row) / 1e9),
            number(bytes_per_second(row) / 1e9),
            f"{bytes_per_second(row) / row.roofline.copy_bytes_per_second:.0%}",
            "" if row.contender == head.SUM else f"{flops_per_second(row) / row.roofline.product_flops_per_second:.0%}",
            mebibytes(row),
        ]
        for row in rows
    ]
    roofline = first.roofline
    out = [
        f"C={first.sizes['classes']}, d={first.sizes['width']}, N={first.sizes['rows']:,}, {first.sizes['dtype']}, "
        f"{first.device}, {first.threads} threads, {first.seconds.repeats} interleaved repeats",
        text(header, lines),
        "GF/s: 4NCd floating-point operations; GB/s: the bytes of H; / X: median over the median of X.",
        f"In the same run: copy {number(roofline.copy_bytes_per_second / 1e9)} GB/s (read + written), square product "
        f"{number(roofline.product_flops_per_second / 1e9)} GF/s.",
    ]
    out += [
        f"* timed on {round(row.share * row.sizes['rows']):,} of {row.sizes['rows']:,} rows and scaled."
        for row in rows
        if row.share < 1
    ]
    spread = first.seconds.p80 / first.seconds.p20
    if spread > QUIET:
        out.append(
            f"The machine was busy: p80 / p20 of {first.contender} is {number(spread)}. Do not trust or keep these figures."
        )
    for bound in head.bounds(by_name):
        out.append(
            f"{'met   ' if bound.met else 'MISSED'}  {bound.what}: {number(bound.value)} ({bound.direction} {bound.limit:g})"
        )
    return "\n".join(out)


def readme(rows: Iterable[Row]) -> str:
    """Markdown: one table for each machine, of its newest recording at the standard sizes."""
    latest: dict[tuple[str, int], tuple[str, dict[str, Row]]] = {}
    for row in rows:
        classes, about = row.sizes["classes"], _machine(row)
        if head.STANDARD_ROWS[row.device].get(classes) != row.sizes["rows"]:
            continue
        where = json.dumps((row.device, row.threads, row.machine), sort_keys=True)
        if latest.get((where, classes), ("",))[0] != about:
            latest[where, classes] = about, {}
        latest[where, classes][1][row.contender] = row
    groups: dict[str, dict[int, dict[str, Row]]] = {}
    for (_, classes), (about, found) in latest.items():
        groups.setdefault(about, {})[classes] = found
    if not groups:
        return "Nothing is recorded yet: `python -m bench head` measures and `python -m bench table` fills this in."
    return "\n\n".join(_machine_table(about, cases) for about, cases in groups.items())


def _machine_table(about: str, cases: dict[int, dict[str, Row]]) -> str:
    header = [
        "C × d, N",
        "score, ms",
        f"score / {head.SUM}",
        "score / bare product",
        f"{head.BLOCKED} / score",
        f"{head.MATERIALISED} / score",
        "GF/s",
        "GB/s",
        "extra MiB",
    ]
    lines = []
    for classes, found in sorted(cases.items()):
        score, base = found[head.SCORE], head.base_product(found)
        time = score.seconds.p50
        lines.append(
            [
                f"{classes} × {score.sizes['width']}, {score.sizes['rows']:,}",
                number(1e3 * time),
                number(time / found[head.SUM].seconds.p50),
                number(time / base.seconds.p50),
                f"{number(found[head.BLOCKED].seconds.p50 / time)}×",
                f"{number(found[head.MATERIALISED].seconds.p50 / time)}×",
                number(flops_per_second(score) / 1e9),
                number(bytes_per_second(score) / 1e9),
                mebibytes(score),
            ]
        )
    return f"{about}\n\n{markdown(header, lines)}"


def _machine(row: Row) -> str:
    """One line that says on what the figures were measured."""
    m, v = row.machine, row.versions
    where = (
        m["gpu"] if row.device == "cuda" else f"{m['cpu']}, {row.threads} threads on {m['cores']} cores, {m['isa'] or 'no C++'}"
    )
    with_ = ", ".join(
        f"{name} {v[name]}" for name in ("torch", "triton") if v.get(name) and (name == "torch" or row.device == "cuda")
    )
    return (
        f"**{where}**; {row.sizes['dtype']}; {with_}, Python {v['python']}, ipfast {v['ipfast']}, commit {row.commit}; "
        f"medians of {row.seconds.repeats} interleaved repeats."
    )


def flops_per_second(row: Row) -> float:
    """4NCd a second: two products with the features."""
    sizes = row.sizes
    return 4 * float(sizes["rows"] * sizes["classes"] * sizes["width"]) / row.seconds.p50


def bytes_per_second(row: Row) -> float:
    """Bytes of the features a second, each read once."""
    return 4 * float(row.sizes["rows"] * row.sizes["width"]) / row.seconds.p50


def mebibytes(row: Row) -> str:
    """Extra peak memory in MiB; the kernel's own count of pages is no finer than about one."""
    if row.extra_bytes is None:
        return ""
    return "< 1" if row.extra_bytes < 2**20 else number(row.extra_bytes / 2**20)
