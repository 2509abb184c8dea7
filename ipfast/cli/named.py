"""Options as NAME=VALUE, of an impact or a method of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipfast


def named_values(where: str, option: str, owner: str, texts: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name: true and false, numbers, or words. Whether they fit is said by what they are given to.

    Args:
        option: of the command line, for messages. owner: what has them.
        known: their names, with the defaults that a message shows.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known or name in found:
            has = ", ".join(f"{each}={_shown(default)}" for each, default in known.items()) or "none"
            raise ipfast.InputError(f"{where}: expected {option} NAME=VALUE, each name once; {owner} has {has}; got {text!r}.")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
