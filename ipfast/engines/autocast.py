"""The caller's torch.autocast: of use to the backbone that is run, and of none to the arithmetic of scores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
KINDS = ("cpu", "cuda")

_callers: ContextVar[dict[str, torch.dtype]] = ContextVar("callers", default={})  # noqa: B039  never changed, only exchanged


def _active() -> dict[str, torch.dtype]:
    return {kind: torch.get_autocast_dtype(kind) for kind in KINDS if torch.is_autocast_enabled(kind)}


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function outside of the caller's autocast, which would narrow the products that scores are made of."""

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        found = _active()
        if not found:
            return function(*args, **kwargs)
        token = _callers.set(found)
        try:
            with ExitStack() as stack:
                for kind in found:
                    stack.enter_context(torch.autocast(kind, enabled=False))
                return function(*args, **kwargs)
        finally:
            _callers.reset(token)

    return plain


def callers_autocast() -> AbstractContextManager[object]:
    """Within such a function what its caller had, for a model that counts on it."""
    stack = ExitStack()
    for kind, dtype in _callers.get().items():
        stack.enter_context(torch.autocast(kind, dtype=dtype))
    return stack
