"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .cells import Records, by_seed
from .intervals import Difference, Spread, paired, spread

MINUS = "−"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their names, numbers to the right; rows that say nothing are left out."""
    lines = [f"| {' | '.join(head)} |", f"| --- {'| ---: ' * (len(head) - 1)}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows if any(row[1:])])


def spread_text(of: Spread | None, factor: float = 1.0, digits: int = 2) -> str:
    """ "92.1 ± 0.3", without a deviation where there is one value."""
    if of is None:
        return ""
    text = f"{factor * of.mean:.{digits}f}"
    return _signs(text if of.deviation is None else f"{text} ± {factor * of.deviation:.{digits}f}")


def difference_text(of: Difference | None, factor: float = 1.0, digits: int = 2) -> str:
    """ "+0.4 [−0.1, +0.9]", without an interval where there is one pair."""
    if of is None:
        return ""
    text = f"{factor * of.mean:+.{digits}f}"
    if of.low is not None and of.high is not None:
        text += f" [{factor * of.low:+.{digits}f}, {factor * of.high:+.{digits}f}]"
    return _signs(text)


def spread_table(
    records: Records,
    part: str,
    settings: Sequence[str],
    methods: Sequence[str],
    name: str,
    factor: float = 1.0,
    digits: int = 2,
    *,
    counted: bool = True,
) -> str:
    """Methods by settings: mean ± standard deviation over the seeds; `counted`: what has fewer of them is marked."""

    def cell(method: str, setting: str) -> tuple[str, int]:
        of = spread(by_seed(records, part, setting, method, name).values())
        return spread_text(of, factor, digits), of.count if of and counted else 0

    return _by_setting("", settings, methods, cell)


def difference_table(
    records: Records,
    part: str,
    settings: Sequence[str],
    methods: Sequence[str],
    name: str,
    control: str,
    factor: float = 1.0,
    digits: int = 2,
) -> str:
    """Methods by settings: mean difference from the control over the seeds that both have, with its interval."""

    def cell(method: str, setting: str) -> tuple[str, int]:
        values, others = (by_seed(records, part, setting, each, name) for each in (method, control))
        of = paired(values, others)
        return difference_text(of, factor, digits), of.count if of else 0

    return _by_setting(f"minus {control}", settings, [method for method in methods if method != control], cell)


def _by_setting(
    corner: str, settings: Sequence[str], methods: Sequence[str], cell: Callable[[str, str], tuple[str, int]]
) -> str:
    """A table of methods by those settings of which there is something to say.

    Args:
        cell: gives a text and of how many seeds it is, which is said where others of the setting have more; 0: never.
    """
    found = {setting: [cell(method, setting) for method in methods] for setting in settings}
    told = [setting for setting in settings if any(text for text, _ in found[setting])] or settings
    columns, fewer = [], False
    for setting in told:
        most = max((count for _, count in found[setting]), default=0)
        columns.append([text if count in (0, most) else f"{text} ({count} of {most})" for text, count in found[setting]])
        fewer |= any(0 < count < most for _, count in found[setting])
    made = table([corner, *told], zip(methods, *columns, strict=True))
    return f"{made}\n\n(k of n): so far of k of the n seeds, and not to be compared with the others." if fewer else made


def _signs(text: str) -> str:
    return text.replace("-", MINUS)
