"""The benchmark of whole networks on tiny ones: every contender and every peer is right, wrong ones are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import gate
from .bounds import Bound
from .cases import model, model_job
from .contender import Contender
from .measure import Timing
from .networks import PACKAGES
from .peers import PEERS, Peer, missing
from .record import Row
from .reports import model as report
from .roofline import Roofline

CPU = torch.device("cpu")
TINY: dict[str, dict[str, Any]] = {
    "resnet": {"widths": (4, 8), "blocks": 1},
    "gpt2": {"layers": 1, "width": 16, "vocabulary": 50},
}


@pytest.mark.parametrize("name", TINY)
def test_every_contender_is_right(name: str) -> None:
    if missing(PACKAGES[name]):
        pytest.skip(f"needs {PACKAGES[name]}")
    problem = model.Problem(name, 3, CPU, **TINY[name])
    truth = model.Truth(problem.model, problem.batch, problem.queries)
    for contender in model.make_contenders(problem):
        if contender.scores:
            model.check_scores(problem, truth, contender)


def test_a_wrong_query_does_not_pass_the_gate() -> None:
    problem = model.Problem("resnet", 3, CPU, **TINY["resnet"])
    truth = model.Truth(problem.model, problem.batch, problem.queries)
    by_name = {contender.name: contender for contender in model.make_contenders(problem)}
    right = by_name[model.GHOST_8].call()
    for spoilt in (right.roll(1, dims=1), right.roll(1, dims=0), right * 1.001):
        with pytest.raises(gate.GateError, match="ghost, 8 queries, query"):
            model.check_scores(problem, truth, Contender(model.GHOST_8, lambda spoilt=spoilt: spoilt))  # type: ignore[misc]
    with pytest.raises(gate.GateError, match="ghost norm"):
        model.check_scores(problem, truth, Contender(model.GHOST_NORM, by_name[model.GHOST].call))


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_right_by_the_parameters_that_it_takes(peer: Peer) -> None:
    pytest.importorskip(peer.name)
    problem = model_job.Problem("resnet", 3, 4, **TINY["resnet"])
    contenders = model_job.make_contenders(problem, [peer])
    for contender in contenders:
        if contender.scores:
            model_job.check_scores(problem, problem.truth(), contender)
    spoilt = Contender(peer.name, lambda: contenders[-1].call() * 1.01)
    with pytest.raises(gate.GateError, match=peer.name):
        model_job.check_scores(problem, problem.truth(), spoilt)


def rows(sizes: dict[str, Any], seconds: dict[str, float]) -> list[Row]:
    about: dict[str, Any] = {"device": "cpu", "threads": 2, "share": 1.0, "extra_bytes": 2**20, "roofline": Roofline(1.0, 1.0)}
    return [
        Row(
            case=model.NAME,
            sizes=sizes,
            contender=name,
            seconds=Timing(value, value, value, 9),
            machine={},
            versions={},
            commit="one",
            date="2026-01-01",
            **about,
        )
        for name, value in seconds.items()
    ]


def test_bounds_are_in_units_of_inference_at_standard_sizes() -> None:
    sizes: dict[str, Any] = {"network": "resnet", "rows": 64, "parameters": 10}
    seconds = dict.fromkeys(model.MEANING, 2.0) | {model.INFERENCE: 0.5}
    printed = report.terminal(rows(sizes, seconds))
    assert "MISSED  forward / inference: 4.00 (at most 3.6)" in printed
    assert "MISSED  explicit / forward: 1.00 (at least 3)" in printed
    assert "met     extra memory of forward / inference: 1.00 (at most 3)" in printed
    small: list[Bound] = model.bounds({row.contender: row for row in rows(sizes | {"rows": 3}, seconds)})
    assert small == []


def test_the_bound_on_a_peer_is_left_out_with_it() -> None:
    sizes: dict[str, Any] = {"network": "resnet", "val": 64, "train": 128}
    seconds = {model_job.INFERENCE: 1.0, model_job.SCORE: 2.0}
    assert "MISSED" not in report.job_terminal(rows(sizes, seconds))
    assert "MISSED  kronfluence / ipfast.score: 1.50" in report.job_terminal(rows(sizes, seconds | {"kronfluence": 3.0}))
