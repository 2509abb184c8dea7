"""The benchmark's own promises: wrong scores stop it, re-runs replace rows, the README's block alone is rewritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from . import gate, record, tables
from .cases import head
from .contender import Contender
from .machine import ROOT
from .measure import Timing, interleaved
from .memory import extra_peak_bytes
from .reports import head as report
from .roofline import Roofline


def row(**changes: object) -> record.Row:
    base = record.Row(
        case="head",
        sizes={"rows": 4, "width": 2, "classes": 2, "dtype": "float32"},
        contender="score",
        device="cpu",
        threads=1,
        seconds=Timing(1.0, 2.0, 3.0, 9),
        share=1.0,
        extra_bytes=None,
        roofline=Roofline(1.0, 1.0),
        machine={"cpu": "some"},
        versions={"torch": "2"},
        commit="one",
        date="2026-01-01",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_rerun_replaces_its_row_and_leaves_the_others(tmp_path: Path) -> None:
    other = row(machine={"cpu": "other"})
    record.record([row(), other], tmp_path)
    record.record([row(commit="two")], tmp_path)
    assert record.load("head", tmp_path) == [other, row(commit="two")]
    assert [path.name for path in tmp_path.iterdir()] == ["head.jsonl"]


def test_wrong_scores_do_not_pass_the_gate() -> None:
    problem = head.make_problem(10, 2000, torch.device("cpu"))
    right = next(c for c in head.make_contenders(problem) if c.name == head.HEAD_DOT)
    head.check_scores(problem, right)
    for spoilt in (right.call() * 1.0001, right.call().roll(1), torch.full((2000,), torch.nan)):
        with pytest.raises(gate.GateError, match=r"spoilt: score .* of row \d+"):
            head.check_scores(problem, Contender("spoilt", lambda spoilt=spoilt: spoilt, scores=True))  # type: ignore[misc]


def test_every_contender_that_scores_is_right() -> None:
    problem = head.make_problem(7, 3001, torch.device("cpu"))
    for contender in head.make_contenders(problem):
        if contender.scores:
            head.check_scores(problem, contender)


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"},  # type: ignore[misc]
        repeats=9,
        device=torch.device("cpu"),
        warm_up=1,
    )
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, len(calls), 2))
    assert timings["a"].repeats == 9
    with pytest.raises(ValueError, match="at least 9"):
        interleaved({}, repeats=3, device=torch.device("cpu"))


def _allocate(megabytes: int) -> tuple[object, object]:
    return (lambda: None), (lambda: torch.ones(megabytes * 2**18).sum())


def test_memory_of_a_call_is_what_it_allocates_and_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # for the child, which imports this file by its name
    found = extra_peak_bytes(_allocate, 64)  # type: ignore[arg-type]
    if found is None:
        pytest.skip("the kernel does not tell peak memory")
    assert 64 <= found / 2**20 <= 80


def test_only_the_marked_block_of_the_readme_changes(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- bench:head -->\nold\n<!-- /bench:head -->\nafter\n")
    assert tables.replace_block(file, "head", "new", dry=True)
    assert "old" in file.read_text()
    assert tables.replace_block(file, "head", "new")
    assert not tables.replace_block(file, "head", "new")
    assert file.read_text() == "before\n<!-- bench:head -->\nnew\n<!-- /bench:head -->\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        tables.replace_block(file, "vocab", "new")


def head_rows(classes: int, rows: int, commit: str = "one") -> list[record.Row]:
    sizes = {"rows": rows, "width": 512, "classes": classes, "dtype": "float32"}
    machine = {"cpu": "some", "cores": 2, "isa": "avx2"}
    return [
        row(sizes=sizes, contender=name, threads=2, machine=machine, commit=commit, versions={"ipfast": "0", "python": "3"})
        for name in head.MEANING
    ]


def test_bounds_are_stated_with_what_is_divided_by_what() -> None:
    printed = report.terminal(head_rows(2, head.STANDARD_ROWS["cpu"][2]))
    assert "met     score / H.sum(): 1.00 (at most 1.55)" in printed
    assert "MISSED  blocked torch / score: 1.00 (at least 2.4)" in printed
    assert "MISSED" not in report.terminal(head_rows(2, 1000)), "bounds are for the standard sizes"


def test_the_readme_shows_the_newest_recording_at_standard_sizes() -> None:
    rows = [
        *head_rows(2, 400_000, "old"),
        *head_rows(2, 1000, "small"),
        *head_rows(2, 400_000, "new"),
        *head_rows(10, 400_000, "new"),
    ]
    shown = report.readme(rows)
    assert "commit new" in shown
    assert not any(word in shown for word in ("old", "small"))
    assert [line.split(" | ")[0] for line in shown.splitlines() if " × 512" in line] == [
        "| 2 × 512, 400,000",
        "| 10 × 512, 400,000",
    ]
    assert "Nothing is recorded" in report.readme([])
