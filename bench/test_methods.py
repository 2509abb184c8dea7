"""The benchmark of methods on a small problem: every method is its loop, a wrong one is found."""

from __future__ import annotations

import pytest
import torch

from . import gate
from .cases import methods

CPU = torch.device("cpu")


def test_every_method_is_its_loop_in_float64() -> None:
    methods.check(methods.Problem(methods.CHECKED_ROWS, 5, CPU))


def test_a_wrong_method_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.LOOP_CALLS, methods.DATAINF, methods.loop_ip)
    with pytest.raises(gate.GateError, match="datainf: scores differ from the loop"):
        methods.check(methods.Problem(methods.CHECKED_ROWS, 5, CPU))


def test_every_contender_runs() -> None:
    problem = methods.Problem(methods.LOOP_ROWS, 3, CPU)
    for contender in methods.make_contenders(problem):
        assert bool(torch.isfinite(contender.call()).all())
    assert set(methods.COMPLEXITY) == set(methods.METHODS)
