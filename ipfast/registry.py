"""Names to objects. An unknown name is an error that offers the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from .errors import InputError, InputTypeError

T = TypeVar("T")


def check_choice(where: str, argument: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`; otherwise raise an error that offers the nearest name."""
    names = list(allowed)
    if not isinstance(value, str):
        raise InputTypeError(
            f"{where}: expected {argument} to be one of {', '.join(map(repr, names))}; got {type(value).__name__}."
        )
    if value not in names:
        near = difflib.get_close_matches(value.lower(), names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: expected {argument} to be one of {', '.join(map(repr, names))}; got {value!r}.{hint}")
    return value


class Registry(Generic[T]):
    """A small ordered table from names to objects of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`."""
        if name in self._entries:
            raise InputError(f"registry: expected a new name of a {self.kind}; {name!r} is taken. Choose another name.")
        self._entries[name] = entry
        return entry

    def get(self, where: str, name: object) -> T:
        """The entry called `name`, or an error that offers the nearest name."""
        return self._entries[check_choice(where, self.kind, name, self._entries)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
