"""--method with the options of its points or its curvature: a method of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import ipfast

from .named import named_values


def chosen_method(where: str, name: str, options: Sequence[str] | None) -> Any:
    """The method of that name, with options as "rate=0.1"; those that it has are of where it is taken, or of its curvature."""
    if not options:
        return name
    method = ipfast.methods.METHODS.get(where, name)
    if isinstance(method, ipfast.methods.Control):
        known = {"seed": method.seed} if name == "random" else {}
        return replace(method, **named_values(where, "--method-option", name, options, known))
    holders: dict[str, Any] = {"points": method.points, "curvature": method.curvature}
    place = {
        field.name: holder
        for holder, each in holders.items()
        for field in fields(each)
        if isinstance(getattr(each, field.name), (bool, int, float, str, type(None)))
    }
    known = {option: getattr(holders[holder], option) for option, holder in place.items()}
    given = named_values(where, "--method-option", name, options, known)
    for option, value in given.items():
        holders[place[option]] = replace(holders[place[option]], **{option: value})
    return replace(method, points=holders["points"], curvature=holders["curvature"])
