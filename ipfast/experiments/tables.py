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
) -> str:
    """Methods by settings: mean ± standard deviation over the seeds."""

    def cell(method: str, setting: str) -> str:
        return spread_text(spread(by_seed(records, part, setting, method, name).values()), factor, digits)

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

    def cell(method: str, setting: str) -> str:
        values, others = (by_seed(records, part, setting, each, name) for each in (method, control))
        return difference_text(paired(values, others), factor, digits)

    return _by_setting(f"minus {control}", settings, [method for method in methods if method != control], cell)


def _by_setting(corner: str, settings: Sequence[str], methods: Sequence[str], cell: Callable[[str, str], str]) -> str:
    """A table of methods by those settings of which there is something to say."""
    cells = {setting: [cell(method, setting) for method in methods] for setting in settings}
    told = [setting for setting in settings if any(cells[setting])] or settings
    return table([corner, *told], zip(methods, *(cells[setting] for setting in told), strict=True))


def _signs(text: str) -> str:
    return text.replace("-", MINUS)
