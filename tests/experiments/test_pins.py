"""A folder of results belongs to one recipe and, setting by setting, to the data of its first cells."""

import hashlib
import json
import struct

import numpy as np
import pytest
from counting import Counting, count
from safetensors.torch import load_file

import ipfast
from ipfast.experiments.kept_files import kept
from ipfast.experiments.kept_scores import kept_scores
from ipfast.experiments.pins import digest
from ipfast.methods import METHODS

BINARY = b"\x93\xff\x00 no text"


@pytest.fixture(autouse=True)
def contents(monkeypatch):
    """What the data of Counting's settings are."""
    found = {"a": "one", "b": "two"}
    monkeypatch.setattr(Counting, "data_digest", lambda _, setting: found[setting])
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "synthetic-small"


def finished(folder):
    return len((folder / "results.jsonl").read_text().splitlines())


def fail(*_):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", BINARY, b"{"], ids=["empty", "the head of an archive", "binary", "the head of JSON"]
)
def test_a_kept_file_that_cannot_be_read_is_named(content, tmp_path):
    file = tmp_path / "toy.npz"
    file.write_bytes(content)
    words = r"toy\.npz'; it cannot be read \(.+\)\. Delete it"
    with pytest.raises(ipfast.InputError, match=words), kept(file), open(file, "rb") as stream:
        np.load(stream, allow_pickle=False)
    with pytest.raises(ipfast.InputError, match=words), kept(file):
        json.loads(file.read_text(encoding="utf-8"))
    with pytest.raises(ipfast.InputError, match=words), kept(file):
        load_file(file)
    file.unlink()
    with pytest.raises(ipfast.InputError, match=words), kept(file):
        load_file(file)


def test_a_digest_is_that_of_all_bytes_types_and_bounds():
    """By hand, so that folders of today are known tomorrow."""
    numbers = struct.pack("<2d", 0.5, -1)
    truth = hashlib.sha256(b'json 10\n["a", "b"]' + b"<f8 (2,) 16\n" + numbers + b"json 4\nnull").hexdigest()
    assert digest(["a", "b"], np.array([0.5, -1]), None) == truth
    x = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert digest(x) == digest(x.astype(">i8")) == digest(np.asfortranarray(x))
    others = [x.T, x.reshape(3, 2), x.astype(np.uint64), x + 1, x.tolist(), [x.tolist()]]
    assert len({digest(each) for each in (x, *others)}) == 7
    texts = [["ab"], ["a", "b"], [["a"], ["b"]], [["a", "b"]], ["a", "b", ""], ["b", "a"]]
    assert len({digest(each) for each in texts}) == 6
    assert digest("a", "b") != digest(["a", "b"])
    assert digest([("a", "b")]) == digest([["a", "b"]])


def test_the_options_of_methods_are_pinned_when_they_are_run(folder, monkeypatch):
    count(folder.parent, seeds=[0], methods=["ip"], minutes=0)
    assert not (folder / "methods.json").exists()
    count(folder.parent, seeds=[0], methods=["ip"])
    found = json.loads((folder / "methods.json").read_text())
    assert found == {"ip": repr(METHODS.get("test", "ip"))}
    found["ip"] = found["ip"].replace("Final()", "Final(other=1)")
    (folder / "methods.json").write_text(json.dumps(found))
    count(folder.parent, seeds=[0], methods=["loss"])  # of other methods one can go on
    with pytest.raises(ipfast.InputError, match=r"'ip' .*Final\(other=1\).* here .*Final\(\).*another --out"):
        count(folder.parent, methods=["ip", "loss"])
    assert finished(folder) == 4
    (folder / "methods.json").write_text("[]")
    with pytest.raises(ipfast.InputError, match=r"the options of each method .* changed"):
        count(folder.parent)
    (folder / "methods.json").unlink()  # of a version that did not write it
    count(folder.parent)


def test_data_are_pinned_by_setting_when_its_first_cell_runs(folder, contents):
    count(folder.parent, seeds=[0], minutes=0)
    assert not (folder / "data.json").exists()
    count(folder.parent, seeds=[0], settings=["a"])
    assert json.loads((folder / "data.json").read_text()) == {"a": "one"}
    contents["b"] = "three"  # of which nothing is there
    count(folder.parent, seeds=[0])
    assert json.loads((folder / "data.json").read_text()) == {"a": "one", "b": "three"}
    assert finished(folder) == 6
    recipe = {"version": Counting.version}
    assert json.loads((folder / "recipe.json").read_text()) == recipe


def test_other_data_are_refused_before_any_cell_and_the_old_ones_go_on(folder, contents):
    count(folder.parent, seeds=[0])
    contents["b"] = "three"
    with pytest.raises(ipfast.InputError, match=r"results of 'b' in .*synthetic-small.*choose another --out"):
        count(folder.parent)
    assert finished(folder) == 6  # none of "a" either
    count(folder.parent, settings=["a"])
    assert finished(folder) == 9
    count(folder.parent, seeds=[0])  # nothing is left to compute from them
    contents["b"] = "two"
    count(folder.parent)
    assert finished(folder) == 12


def test_folders_from_before_get_their_pins_and_data_without_a_digest_none(folder, contents):
    count(folder.parent, seeds=[0])
    (folder / "data.json").unlink()
    contents["a"], contents["b"] = "three", None
    count(folder.parent)
    assert json.loads((folder / "data.json").read_text()) == {"a": "three"}
    assert finished(folder) == 12


def test_a_run_that_fails_in_its_first_cell_leaves_no_mark(folder, contents, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "run", fail)
        with pytest.raises(RuntimeError, match="broken"):
            count(folder.parent)
    assert (folder / "recipe.json").exists()
    assert (folder / "data.json").exists()
    monkeypatch.setattr(Counting, "version", 2)
    contents["a"] = "three"
    count(folder.parent)
    assert finished(folder) == 12
    assert json.loads((folder / "recipe.json").read_text()) == {"version": 2}
    assert json.loads((folder / "data.json").read_text()) == {"a": "three", "b": "two"}


@pytest.mark.parametrize(("file", "begun"), [("base/a/base.json", True), ("free/log", False), ("base/a/.base.x1.json", False)])
def test_what_a_failed_run_has_kept_holds_the_folder(file, begun, folder, contents, monkeypatch):
    """A base model of another recipe or of other data must not be taken; what is pinned by nothing may stay."""
    monkeypatch.setattr(Counting, "unpinned", ("free",))
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "run", fail)
        with pytest.raises(RuntimeError, match="broken"):
            count(folder.parent)
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("{}")
    monkeypatch.setattr(Counting, "version", 2)
    if not begun:
        count(folder.parent)
        return
    with pytest.raises(ipfast.InputError, match="another --out"):
        count(folder.parent)
    monkeypatch.setattr(Counting, "version", 1)
    contents["a"] = "three"
    with pytest.raises(ipfast.InputError, match="results of 'a'"):
        count(folder.parent)
    contents["a"] = "one"
    count(folder.parent)


def test_results_without_a_recipe_are_refused(folder):
    count(folder.parent, seeds=[0])
    (folder / "recipe.json").unlink()
    with pytest.raises(ipfast.InputError, match=r"expected recipe.json beside the results in .*synthetic-small.*Put it back"):
        count(folder.parent)
    assert finished(folder) == 6
    assert not (folder / "recipe.json").exists()


@pytest.mark.parametrize("name", ["recipe.json", "data.json"])
def test_pins_that_are_no_text_are_named(name, folder):
    count(folder.parent, seeds=[0])
    (folder / name).write_bytes(BINARY)
    with pytest.raises(ipfast.InputError, match=rf"{name}'; it cannot be read \(it is no text\)"):
        count(folder.parent)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ipfast.InputError, match=rf"{name}'; it cannot be read \(Is a directory\)"):
        count(folder.parent)
    assert finished(folder) == 6


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": '])
def test_changed_pins_of_data_are_named(content, folder):
    count(folder.parent, seeds=[0])
    (folder / "data.json").write_text(content)
    with pytest.raises(ipfast.InputError, match=r"data.json'; it has been changed"):
        count(folder.parent)


def test_kept_scores_are_made_once_and_those_of_other_samples_refused(tmp_path):
    made = ipfast.Scores(ipfast.checks.as_tensor(np.arange(5.0)), "ip", "head", "torch", {})
    file = tmp_path / "scores" / "a" / "ip.safetensors"
    assert kept_scores(file, 5, lambda: made).values.tolist() == made.values.tolist()
    assert kept_scores(file, 5, pytest.fail).values.tolist() == made.values.tolist()
    with pytest.raises(ipfast.InputError, match=r"scores of 6 training samples in .*ip.safetensors.*got shape \[5\]"):
        kept_scores(file, 6, pytest.fail)
