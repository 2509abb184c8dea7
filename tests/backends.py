"""The backends of the head operations that can run in this process, each under a name that says which code computes.

Triton either interprets or compiles, for the whole life of a process. With TRITON_INTERPRET=1 the kernels alone are tested, in
the interpreter; without it they are tested where there is a GPU, and otherwise left to tests/kernels, which starts such a
process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from cases import HeadCase
from torch import Tensor

from ipfast import dispatch, ops

CPP = tuple(f"cpp:{name}" for name in dispatch.instruction_sets())
ON_GPU = dispatch.has_triton() and torch.cuda.is_available()
BACKENDS = ("triton",) if dispatch.interpreting() else ("reference", *CPP, *(("triton",) if ON_GPU else ()))
INTERPRETED_STEPS = 200
"""Tiles of one test that the interpreter gets through in less than a second."""


def skip_slow(name: str, case: HeadCase, dtype: torch.dtype, launches: int = 1, rows: int | None = None) -> None:
    """Skip what Triton's interpreter would take long for; other cases and dtypes go through the same loops."""
    if name != "triton" or not dispatch.interpreting():
        return
    config = dispatch.triton_kernels("_tune").default_config(case.width, case.classes, dtype)
    tiles = (
        math.ceil((rows or case.rows) / config.rows)
        * math.ceil(case.classes / config.classes)
        * math.ceil(case.width / config.width)
    )
    if launches * tiles > INTERPRETED_STEPS:
        pytest.skip(f"{case} in {dtype}: {launches * tiles} tiles take too long in Triton's interpreter")


@contextmanager
def computing_with(name: str) -> Iterator[str]:
    """Gives the `backend` argument for a name of BACKENDS.

    Meanwhile the C++ code is held to that instruction set, and Triton gets its arguments on the GPU where it compiles for one.
    """
    backend, _, isa = name.partition(":")
    if backend == "cpp" and isa:
        with _held_to(isa):
            yield backend
    elif backend == "triton" and not dispatch.interpreting():
        with mock.patch.multiple(ops, head_dot=_on_gpu(ops.head_dot), head_norm=_on_gpu(ops.head_norm)):
            yield backend
    else:
        yield backend


@contextmanager
def _held_to(isa: str) -> Iterator[None]:
    extension = dispatch.extension()
    calls: list[str] = []

    def held(operation: str, *arguments: object, **options: object) -> None:
        calls.append(operation)
        getattr(extension, operation)(*arguments, **options, isa=isa)

    stand_in = SimpleNamespace(head_dot=partial(held, "head_dot"), head_norm=partial(held, "head_norm"))
    with mock.patch.object(dispatch, "extension", return_value=stand_in):
        yield
    assert calls, f"the C++ extension was never called, so nothing was tested on {isa}"


def _on_gpu(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*arguments: Any, out: Tensor | None = None, **options: Any) -> Tensor:
        features, *others = (torch.as_tensor(a).cuda() if a is not None else None for a in arguments)
        result = operation(features, *others, out=None if out is None else out.cuda(), **options).cpu()
        return result if out is None else out.copy_(result)

    return call
