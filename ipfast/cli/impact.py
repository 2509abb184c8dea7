"""--impact with the data and the options it takes: an impact of the library."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import ipfast

TAKES = {
    # the data of each impact that has any, what it cannot do without first
    "demographic_parity": ("groups", "positive"),
    "equal_opportunity": ("groups", "positive"),
    "counterfactual": ("pairs",),
}
SWITCHES = {"true": True, "false": False}


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
    return kind(**data, **_read(where, name, kind, options or ()))


def _read(where: str, name: str, kind: Any, options: Sequence[str]) -> dict[str, Any]:
    """Options by name, each of the type of its default."""
    known = {option: each.default for option, each in signature(kind).parameters.items() if option not in TAKES.get(name, ())}
    found: dict[str, Any] = {}
    for text in options:
        option, equals, value = text.partition("=")
        if not equals or option not in known or option in found:
            has = ", ".join(f"{each}={_shown(default)}" for each, default in known.items()) or "none"
            raise ipfast.InputError(
                f"{where}: expected --impact-option NAME=VALUE, each name once; {name} has {has}; got {text!r}."
            )
        found[option] = _value(where, text, value, known[option])
    return found


def _value(where: str, text: str, value: str, default: Any) -> Any:
    """As the default is: a switch, a number or a word."""
    try:
        if isinstance(default, bool):
            return SWITCHES[value.lower()]
        return float(value) if isinstance(default, float) else value
    except (KeyError, ValueError) as error:
        expected = "true or false" if isinstance(default, bool) else "a number"
        raise ipfast.InputError(f"{where}: expected {expected} in --impact-option {text!r}; got {value!r}.") from error


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
