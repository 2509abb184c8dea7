"""The backends of the head operations that can run in this process, each under a name that says which code computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

from ipfast import dispatch

CPP = tuple(f"cpp:{name}" for name in dispatch.instruction_sets())
BACKENDS = ("reference", *CPP)


@contextmanager
def computing_with(name: str) -> Iterator[str]:
    """Gives the `backend` argument for a name of BACKENDS; the C++ code is held to that instruction set meanwhile."""
    backend, _, isa = name.partition(":")
    if not isa:
        yield backend
        return
    extension = dispatch.extension()
    calls: list[str] = []

    def held(operation: str, *arguments: object, **options: object) -> None:
        calls.append(operation)
        getattr(extension, operation)(*arguments, **options, isa=isa)

    stand_in = SimpleNamespace(head_dot=partial(held, "head_dot"), head_norm=partial(held, "head_norm"))
    with mock.patch.object(dispatch, "extension", lambda: stand_in):
        yield backend
    assert calls, f"the C++ extension was never called, so nothing was tested on {isa}"
