"""--impact with the data and the options it takes: an impact of the library."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import ipfast

from .named import named_values

TAKES = {
    # the data of each impact that has any, what it cannot do without first
    "demographic_parity": ("groups", "positive"),
    "equal_opportunity": ("groups", "positive"),
    "counterfactual": ("pairs",),
}


def chosen_impact(
    where: str, name: str, groups: Path | None, positive: int | None, pairs: Path | None, options: Sequence[str] | None
) -> Any:
    """The impact of that name with its data, and with options as "gamma=1.5"."""
    given = {"groups": groups, "positive": positive, "pairs": pairs}
    for option, value in given.items():
        if value is not None and option not in TAKES.get(name, ()):
            users = " or ".join(impact for impact, data in TAKES.items() if option in data)
            raise ipfast.InputError(f"{where}: expected --{option} with --impact {users} only; got {name!r}. Leave it out.")
    if name not in TAKES and not options:
        return name
    kind = ipfast.impacts.IMPACTS.get(where, name)
    needed = TAKES.get(name, (None,))[0]
    if needed is not None and given[needed] is None:
        raise ipfast.InputError(f"{where}: expected --{needed} with --impact {name}; got none.")
    data = {option: given[option] for option in TAKES.get(name, ())}
    known = {option: each.default for option, each in signature(kind).parameters.items() if option not in data}
    return kind(**data, **named_values(where, "--impact-option", name, options or (), known))
