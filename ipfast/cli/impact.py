"""--impact with the data it needs: an impact of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipfast


def chosen_impact(where: str, name: str, groups: Path | None, positive: int | None, pairs: Path | None) -> Any:
    """The impact of that name with its data."""
    given = {"groups": groups, "positive": positive, "pairs": pairs}
    takes = {
        "demographic_parity": ("groups", "positive"),
        "equal_opportunity": ("groups", "positive"),
        "counterfactual": ("pairs",),
    }
    for option, value in given.items():
        if value is not None and option not in takes.get(name, ()):
            users = " or ".join(impact for impact, options in takes.items() if option in options)
            raise ipfast.InputError(f"{where}: expected --{option} with --impact {users} only; got {name!r}. Leave it out.")
    if name not in takes:
        return name
    needed = takes[name][0]
    if given[needed] is None:
        raise ipfast.InputError(f"{where}: expected --{needed} with --impact {name}; got none.")
    return ipfast.impacts.IMPACTS.get(where, name)(**{option: given[option] for option in takes[name]})
