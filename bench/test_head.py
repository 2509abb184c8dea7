"""Micro-benchmarks of the head operations, small enough for every day: pytest bench/"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ipfast

from .cases import head

ROWS = 8192
Benchmark = Any  # pytest-benchmark's fixture has no public type


def run(benchmark: Benchmark, call: Callable[[], object]) -> None:
    benchmark.pedantic(call, rounds=9, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("name", [head.HEAD_DOT, head.SCORE, head.BLOCKED])
def test_scores_at_a_head(benchmark: Benchmark, name: str, classes: int) -> None:
    problem = head.make_problem(classes, ROWS, torch.device("cpu"))
    contender = next(c for c in head.make_contenders(problem) if c.name == name)
    head.check_scores(problem, contender)
    benchmark.group = f"ip, C={classes}"
    run(benchmark, contender.call)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_self_influence_at_a_head(benchmark: Benchmark, classes: int) -> None:
    p = head.make_problem(classes, ROWS, torch.device("cpu"))
    benchmark.group = f"self_tracin, C={classes}"
    run(benchmark, lambda: ipfast.ops.head_norm(p.h, p.y, p.w, p.b))


@pytest.mark.parametrize("classes", [2, 100])
def test_query_of_validation_data(benchmark: Benchmark, classes: int) -> None:
    p = head.make_problem(classes, ROWS, torch.device("cpu"))
    benchmark.group = f"query, C={classes}"
    run(benchmark, lambda: ipfast.query(p.linear, (p.h, p.y)))


def test_scorer_of_one_batch(benchmark: Benchmark) -> None:
    """What a call costs when a worker scores batch by batch."""
    p = head.make_problem(10, 256, torch.device("cpu"))
    scorer = ipfast.Scorer(p.linear, p.query)
    run(benchmark, lambda: scorer((p.h, p.y)))
