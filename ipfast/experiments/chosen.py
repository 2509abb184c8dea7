"""Methods by their names in tables."""

from __future__ import annotations

from collections.abc import Sequence

import ipfast

from ..errors import InputError
from ..methods import METHODS
from ..registry import check_choice

WITH_CHANCE = ("ip_ensemble", "random")
"""Methods whose scores depend on a seed. All others are scored once, however many seeds train again."""


OWN = ("none", "oracle", "leave_one_out")
"""What experiments do themselves: keep all samples, Eq. (1) by plain autograd, and training without each sample."""


def available(name: str) -> bool:
    """Whether this version can run it; "NAME:all" is a method over all parameters of a network."""
    return name in OWN or name.removesuffix(":all") in METHODS


def choose_methods(experiment: str, known: Sequence[str], asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(methods to run, in the order of the tables; methods of the experiment that this version lacks).

    Raises:
        InputError: a method that was asked for by name is not one of the experiment's, or this version lacks it.
    """
    if asked is None:
        return [name for name in known if available(name)], [name for name in known if not available(name)]
    for name in asked:
        check_choice("experiment", f"--methods of {experiment}", name, known)
        if not available(name):
            raise InputError(
                f"experiment: expected --methods of those that this version of ipfast has, "
                f"{', '.join(each for each in known if available(each))}; {name!r} is not there yet. Leave it out."
            )
    return [name for name in known if name in asked], []


def seed_of_scores(method: str, seed: int) -> int:
    """The seed that a method's scores depend on: 0 for all that do not."""
    return seed if method in WITH_CHANCE else 0


def seeded(method: str, seed: int) -> str | ipfast.Method | ipfast.Control:
    """The method, with `seed` for its chance where it has any."""
    name = method.removesuffix(":all")
    if name == "ip_ensemble":
        return ipfast.Method(points=ipfast.Dropout(seed=seed), name=name)
    return ipfast.Control("random", seed) if name == "random" else name
