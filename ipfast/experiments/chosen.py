"""Methods by their names in tables."""

from __future__ import annotations

from collections.abc import Sequence

import ipfast

from ..registry import check_choice

WITH_CHANCE = ("ip_ensemble", "random")
"""Methods whose scores depend on a seed. All others are scored once, however many seeds train again."""


def choose_methods(experiment: str, known: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Methods to run, in the order of the tables.

    Raises:
        InputError: a method that was asked for by name is not one of the experiment's.
    """
    if asked is None:
        return list(known)
    for name in asked:
        check_choice("experiment", f"--methods of {experiment}", name, known)
    return [name for name in known if name in asked]


def seed_of_scores(method: str, seed: int) -> int:
    """The seed that a method's scores depend on: 0 for all that do not."""
    return seed if method in WITH_CHANCE else 0


def seeded(method: str, seed: int) -> str | ipfast.Method | ipfast.Control:
    """The method, with `seed` for its chance where it has any."""
    name = method.removesuffix(":all")
    if name == "ip_ensemble":
        return ipfast.Method(points=ipfast.Dropout(seed=seed), name=name)
    return ipfast.Control("random", seed) if name == "random" else name
