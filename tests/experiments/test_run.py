"""A run goes on where the last one ended, and what it is told is checked before any work."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from counting import Counting, count
from typer.testing import CliRunner

import ipfast
from ipfast.cli import app
from ipfast.experiments import EXPERIMENTS, run_experiment
from ipfast.experiments.cells import Cell, Record
from ipfast.experiments.chosen import WITH_CHANCE, choose_methods, seed_of_scores, seeded
from ipfast.experiments.run import _left

ALL = [str(cell) for cell in Counting.cells(None, Counting.methods, (0, 1))]


def started(out):
    return (out / "synthetic-small" / "started").read_text().splitlines()


def cells(out):
    lines = (out / "synthetic-small" / "results.jsonl").read_text().splitlines()
    return [f"{r['part']}, {r['setting']}, {r['method']}, seed {r['seed']}" for r in map(json.loads, lines)]


def test_a_second_run_does_nothing_and_new_seeds_are_added(tmp_path):
    count(tmp_path, seeds=[0])
    count(tmp_path, seeds=[0])
    assert started(tmp_path) == ALL[:6]
    count(tmp_path)
    assert started(tmp_path) == cells(tmp_path) == ALL
    assert (tmp_path / "synthetic-small" / "tables.md").read_text() == "12 cells\n"


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_killed_run_goes_on_and_runs_no_cell_twice(place, tmp_path):
    script = str(Path(__file__).parents[1] / "counting.py")
    killed = subprocess.run([sys.executable, script, str(tmp_path), ALL[place]], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert cells(tmp_path) == ALL[:place]
    count(tmp_path)
    assert cells(tmp_path) == ALL
    assert Counter(started(tmp_path)) == Counter([*ALL, ALL[place]])  # only the one that was killed began twice


def test_an_error_in_a_cell_keeps_what_is_finished(tmp_path, monkeypatch):
    def broken(self, cell):
        if cell.seed == 1:
            raise RuntimeError("broken")
        return {"value": 1}

    monkeypatch.setattr(Counting, "run", broken)
    with pytest.raises(RuntimeError, match="broken"):
        count(tmp_path)
    assert cells(tmp_path) == ALL[:6]


def test_parts_settings_methods_and_time_limit_what_is_run(tmp_path):
    count(tmp_path, settings=["count/b"], methods=["loss", "ip"], seeds=[1])
    assert cells(tmp_path) == ["count, b, ip, seed 1", "count, b, loss, seed 1"]
    count(tmp_path, minutes=0)
    assert len(cells(tmp_path)) == 2


OTHERS = [("device", "NVIDIA H100"), ("arithmetic", "float64"), ("threads", 1000)]


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_a_setting_is_not_gone_on_with_on_another_machine(name, value, tmp_path, monkeypatch):
    """Networks that are trained there differ, and methods are compared by pairs. Other settings may be run there."""
    count(tmp_path, seeds=[0], settings=["a"])
    before = cells(tmp_path)
    file = tmp_path / "synthetic-small" / "results.jsonl"
    lines = [json.loads(line) | {name: value} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        rf"count/a on the {name} of the finished cells .*, {value!r}; here .*{'OMP_NUM_THREADS' if name == 'threads' else '--'}"
    )
    with pytest.raises(ipfast.InputError, match=words):
        count(tmp_path, seeds=[0, 1], settings=["a"])
    assert cells(tmp_path) == before
    count(tmp_path, seeds=[0], settings=["a"])  # nothing is left to run, and tables may be made anywhere
    count(tmp_path, seeds=[0], settings=["b"])
    monkeypatch.setattr(Counting, "compared", lambda *_: "all")  # of other settings too
    with pytest.raises(ipfast.InputError, match=rf"count/b on the {name}"):
        count(tmp_path, seeds=[1], settings=["b"])
    monkeypatch.setattr(Counting, "compared", lambda *_: None)
    count(tmp_path, seeds=[1], settings=["b"])
    monkeypatch.undo()
    file.write_text("".join(json.dumps({key: each for key, each in line.items() if key != name}) + "\n" for line in lines))
    count(tmp_path, seeds=[0, 1], settings=["a"])  # of a version that did not note it


def test_where_nothing_is_trained_machines_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "trains_networks", False)
    file = count(tmp_path, seeds=[0]) / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["device"], line["arithmetic"]) for line in lines} == {("cpu", "float64")}
    file.write_text("".join(json.dumps(line | dict(OTHERS)) + "\n" for line in lines))
    count(tmp_path)
    assert cells(tmp_path) == ALL


def test_a_cell_that_fails_for_a_known_reason_holds_up_no_others(tmp_path, monkeypatch):
    run, told = Counting.run, []

    def failing(self, cell):
        if str(cell) in (ALL[1], ALL[4]):
            raise ipfast.InputError(f"score: expected LiSSA to converge; {cell.setting} grows.")
        return run(self, cell)

    monkeypatch.setattr(Counting, "run", failing)
    with pytest.raises(ipfast.InputError, match=rf"2 of 12 failed, the first of them {ALL[1]}: score: .* a grows. What was"):
        count(tmp_path, echo=told.append)
    assert cells(tmp_path) == [cell for place, cell in enumerate(ALL) if place not in (1, 4)]
    assert f"Failed: {ALL[4]}: score: expected LiSSA to converge; b grows." in told
    assert "2 cells are left. The same command goes on with them." in told
    assert (tmp_path / "synthetic-small" / "tables.md").read_text() == "10 cells\n"
    monkeypatch.undo()
    count(tmp_path)
    assert sorted(cells(tmp_path)) == sorted(ALL)


def test_only_what_is_run_needs_its_data(tmp_path, monkeypatch):
    """Tables of finished cells can be made without them."""
    checked = []
    monkeypatch.setattr(Counting, "check", lambda _, found: checked.append([str(cell) for cell in found]))
    count(tmp_path, seeds=[0])
    count(tmp_path, seeds=[0])
    count(tmp_path, minutes=0)
    assert checked == [ALL[:6]]
    count(tmp_path)
    assert checked == [ALL[:6], ALL[6:]]


def test_optional_data_that_are_not_there_are_told_or_missed_by_name(tmp_path, monkeypatch):
    def every(self, methods, seeds):
        yield from self.cells(methods, seeds)
        yield from (Cell("count", "c", method, 0) for method in methods)

    def check(self, found):
        if any(cell.setting == "c" for cell in found):
            raise ipfast.MissingFileError("experiment: expected c.bin; it does not exist. Download it.")

    monkeypatch.setattr(Counting, "every_cell", every)
    monkeypatch.setattr(Counting, "left_out", lambda _: ["Without c: 'c.bin' is not there."])
    monkeypatch.setattr(Counting, "check", check)
    told = []
    for name in ("c", "count/c"):
        with pytest.raises(ipfast.MissingFileError, match=r"c\.bin"):
            count(tmp_path, settings=[name], echo=told.append)
    assert not list(tmp_path.iterdir())
    count(tmp_path, settings=["count"], echo=told.append)
    assert cells(tmp_path) == ALL
    assert not any("c.bin" in line for line in told)
    count(tmp_path, echo=told.append)
    assert "Without c: 'c.bin' is not there." in told


def test_methods_without_a_cell_are_told(tmp_path, monkeypatch):
    whole, told = Counting.cells, []
    monkeypatch.setattr(
        Counting, "cells", lambda self, methods, seeds: (c for c in whole(self, methods, seeds) if c.method != "loss")
    )
    count(tmp_path, methods=["ip", "loss"], echo=told.append)
    assert told[0] == "Without loss: no cell of what was asked for has them at this scale."
    count(tmp_path, echo=told.append)
    assert sum("Without" in line for line in told) == 1  # of those that were asked for by name


def test_results_of_another_recipe_are_refused(tmp_path, monkeypatch):
    count(tmp_path, seeds=[0])
    monkeypatch.setattr(Counting, "version", 2)
    with pytest.raises(ipfast.InputError, match="another --out"):
        count(tmp_path)
    assert cells(tmp_path) == ALL[:6]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "synthetix"}, ipfast.InputError, "Did you mean 'synthetic'"),
        ({"scale": "large"}, ipfast.InputError, "--scale"),
        ({"methods": ["ipp"]}, ipfast.InputError, "Did you mean 'ip'"),
        ({"seeds": [-1]}, ipfast.InputError, "--seeds"),
        ({"seeds": [0.5]}, ipfast.InputTypeError, "--seeds"),
        ({"seeds": []}, ipfast.InputError, "--seeds to name something"),
        ({"methods": []}, ipfast.InputError, "--methods to name something"),
        ({"settings": []}, ipfast.InputError, "--settings to name something"),
        ({"methods": "ip"}, ipfast.InputTypeError, "--methods to be a list; got str"),
        ({"minutes": "5"}, ipfast.InputTypeError, "--minutes to be a number; got str"),
        ({"minutes": -1}, ipfast.InputError, "--minutes to be 0 or more; got -1"),
        ({"seeds": 1}, ipfast.InputTypeError, "--seeds to be a list; got int"),
        ({"data": 1}, ipfast.InputTypeError, "--data to be a path; got int"),
        ({"name": "vision", "data": "nowhere"}, ipfast.MissingFileError, "'nowhere' is not a folder"),
        ({"name": "tabular", "data": "nowhere"}, ipfast.MissingFileError, "'nowhere' is not a folder"),
        ({"name": "nlp", "data": "nowhere"}, ipfast.MissingFileError, "'nowhere' is not a folder"),
        ({"settings": ["utility/mons"]}, ipfast.InputError, "Did you mean 'utility/moons'"),
        ({"device": "abacus"}, ipfast.InputError, "device"),
        ({"name": "vision"}, ipfast.MissingFileError, "--data to be the folder with cifar-10-batches-bin"),
        ({"name": "tabular"}, ipfast.MissingFileError, "--data to be the folder with bank/"),
        ({"name": "vision", "data": Path("nowhere")}, ipfast.MissingFileError, "'nowhere' is not a folder"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, error, words, tmp_path):
    with pytest.raises(error, match=words):
        run_experiment(**{"name": "synthetic", "out": tmp_path / "out", **arguments}, echo=pytest.fail)
    assert not (tmp_path / "out").exists()


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ipfast.InputError, match="--out"):
        count(tmp_path / "out")


def test_folders_are_paths_or_their_names(tmp_path):
    assert count(str(tmp_path), seeds=[0], data=str(tmp_path)) == count(tmp_path, seeds=[0]) == tmp_path / "synthetic-small"
    with pytest.raises(ipfast.InputTypeError, match="--out to be a path; got NoneType"):
        count(None)


def test_a_selection_without_a_cell_is_refused_before_any_work(tmp_path, monkeypatch):
    whole = Counting.cells
    monkeypatch.setattr(
        Counting, "cells", lambda self, methods, seeds: (c for c in whole(self, methods, seeds) if c[1:3] != ("a", "loss"))
    )
    with pytest.raises(ipfast.InputError, match="synthetic has none of a with loss"):
        count(tmp_path / "out", methods=["loss"], settings=["a"])
    monkeypatch.setattr(Counting, "cells", lambda *_: iter(()))
    with pytest.raises(ipfast.InputError, match="synthetic has none with loss, random"):
        count(tmp_path / "out", methods=["loss", "random"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--seeds", "--methods", "--settings"])
def test_a_comma_alone_runs_nothing_and_says_so(option, tmp_path):
    done = CliRunner().invoke(app, ["experiment", "synthetic", "--out", str(tmp_path / "out"), option, ","])
    assert f"{option} to name something" in f"{done.output}{done.exception}"
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_methods_come_in_the_order_of_the_tables():
    known = ("none", "ip", "ip:all", "random")
    assert choose_methods("vision", known, None) == list(known)
    assert choose_methods("vision", known, ["random", "ip"]) == ["ip", "random"]


def test_the_time_left_is_that_of_like_cells():
    def cell(part, method, seed=0):
        return Cell(part, "a", method, seed)

    took = {cell("one", "ip"): 10.0, cell("one", "loss"): 30.0, cell("two", "ip"): 50.0}
    finished = {each: Record(each, {}, seconds) for each, seconds in took.items()}
    assert _left([cell("one", "ip", 1), cell("one", "loss", 1)], finished) == "about 40 s"  # of the same method
    assert _left([cell("one", "ekfac")], finished) == "about 20 s"  # of the same part
    assert _left([cell("three", "ip")], finished) == "about 30 s"  # of all
    assert _left([cell("one", "ip", seed) for seed in range(60)], finished) == "about 10 min"
    assert _left([cell("one", "ip")], {}) == "unknown time"


def test_only_chance_depends_on_the_seed():
    assert seeded("ip_ensemble", 3).points.seed == seeded("random", 3).seed == 3
    assert [seed_of_scores(method, 3) for method in (*WITH_CHANCE, "ip")] == [3, 3, 0]
    assert seeded("ip:all", 3) == "ip"


def test_the_command_line_takes_lists_with_commas(monkeypatch):
    found = {}
    monkeypatch.setattr("ipfast.experiments.run_experiment", lambda name, **options: found.update(name=name, **options))
    words = [
        "experiment",
        "vision",
        "--methods",
        "ip, loss",
        "--methods",
        "random",
        "--seeds",
        "0,2",
        "--settings",
        "removal/worst",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert found["methods"] == ["ip", "loss", "random"]
    assert (found["seeds"], found["settings"], found["scale"], found["device"]) == ([0, 2], ["removal/worst"], "small", None)
    assert "whole numbers" in CliRunner().invoke(app, ["experiment", "vision", "--seeds", "0,x"]).output
    CliRunner().invoke(app, ["experiment", "vision", "--seeds=-1"])
    assert found["seeds"] == [-1]  # which is refused with the seeds that there are
    assert set(EXPERIMENTS) == {"synthetic", "vision", "nlp", "tabular"}
