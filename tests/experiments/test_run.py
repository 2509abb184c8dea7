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


@pytest.mark.parametrize(("name", "value"), [("device", "NVIDIA H100"), ("arithmetic", "float64")])
def test_a_setting_is_not_gone_on_with_on_another_machine(name, value, tmp_path):
    """Networks that are trained there differ, and methods are compared by pairs. Other settings may be run there."""
    count(tmp_path, seeds=[0], settings=["a"])
    before = cells(tmp_path)
    file = tmp_path / "synthetic-small" / "results.jsonl"
    lines = [json.loads(line) | {name: value} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ipfast.InputError, match=rf"count/a on the {name} of its finished cells, '{value}'.*--device or --out"):
        count(tmp_path, seeds=[0, 1], settings=["a"])
    assert cells(tmp_path) == before
    count(tmp_path, seeds=[0], settings=["a"])  # nothing is left to run, and tables may be made anywhere
    count(tmp_path, seeds=[0], settings=["b"])
    file.write_text("".join(json.dumps({key: each for key, each in line.items() if key != name}) + "\n" for line in lines))
    count(tmp_path, seeds=[0, 1], settings=["a"])  # of a version that did not note it


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


def test_methods_that_this_version_lacks_are_left_out_or_refused_by_name():
    known = ("none", "ip", "not_yet", "ip:all", "random")
    assert choose_methods("vision", known, None) == (["none", "ip", "ip:all", "random"], ["not_yet"])
    assert choose_methods("vision", known, ["random", "ip"]) == (["ip", "random"], [])
    with pytest.raises(ipfast.InputError, match="'not_yet' is not there yet"):
        choose_methods("vision", known, ["ip", "not_yet"])


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
    assert set(EXPERIMENTS) == {"synthetic", "vision", "nlp", "tabular"}
