"""A cell counts as finished when its whole line is in the file, wherever the process that wrote it was killed."""

import json
import os

import pytest

import ipfast
from ipfast.experiments.cells import Cell, Record
from ipfast.experiments.ledger import Ledger

CELLS = [Cell("part", "größe", "ip", seed) for seed in range(3)]


def ledger(file):
    return Ledger(file, experiment="counting", scale="small")


def write(file, cells=CELLS):
    with ledger(file) as opened:
        for cell in cells:
            opened.add(Record(cell, {"value": cell.seed / 3, "list": [1, float("inf")]}, 0.5, {"device": "cpu"}))
    return file


def finished(file):
    with ledger(file) as opened:
        return dict(opened.finished)


def test_what_is_written_is_read(tmp_path):
    found = finished(write(tmp_path / "results.jsonl"))
    assert list(found) == CELLS
    assert found[CELLS[2]].values == {"value": 2 / 3, "list": [1, None]}
    assert found[CELLS[2]].seconds == 0.5
    assert found[CELLS[2]].about == {"device": "cpu"}


def test_a_line_cut_anywhere_is_not_finished_and_is_written_again(tmp_path):
    whole = write(tmp_path / "results.jsonl").read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == 10]  # a line that lacks its break alone is whole
    file = tmp_path / "cut.jsonl"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        complete = sum(end <= length for end in ends)
        found = finished(file)
        assert list(found) == CELLS[:complete], f"cut after {length} bytes"
        write(file, [cell for cell in CELLS if cell not in found])
        assert file.read_bytes() == whole, f"cut after {length} bytes"


def test_two_processes_cannot_write_the_same_results(tmp_path):
    file = tmp_path / "results.jsonl"
    with ledger(file), pytest.raises(ipfast.UnavailableError, match="only process"), ledger(file):
        pass
    with ledger(file):
        pass  # free again


def test_a_cell_cannot_be_added_twice(tmp_path):
    with ledger(write(tmp_path / "results.jsonl")) as opened, pytest.raises(AssertionError, match="run twice"):
        opened.add(Record(CELLS[0], {}, 0.0))


@pytest.mark.parametrize("text", ["notes", "notes\nof mine", '{"some": 1', '{"some": 1}', "{}\n{"])
def test_a_foreign_file_is_refused_and_stays_as_it_is(text, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(ipfast.InputError, match="another --out"):
        finished(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 4"),
        ("[1, 2]", "line 4"),
        ("null", "line 4"),
        ('{"experiment": "counting", "scale": "small"}', "line 4"),
        (json.dumps({"experiment": "counting", "scale": "paper"}), "line 4"),
        ({"part": ["part"]}, r"line 4 .* its part is \['part'\]"),
        ({"setting": 1}, "line 4 .* its setting is 1"),
        ({"method": None}, "line 4 .* its method is None"),
        ({"seed": "0"}, "line 4 .* its seed is '0'"),
        ({"seed": 0.5}, "line 4 .* its seed is 0.5"),
        ({"seed": True}, "line 4 .* its seed is True"),
        ({"values": [["value", 1]]}, "line 4 .* its values are"),
        ({"values": {"value": "0.5"}}, "line 4 .* its value 'value' is '0.5'"),
        ({"values": {"list": [1, "2"]}}, "line 4 .* its value 'list' is"),
        ({"values": {"value": float("nan")}}, "line 4"),
        ({"seconds": "1"}, "line 4 .* its seconds are '1'"),
        ({"experiment": ["counting"]}, "line 4 is of"),
    ],
)
def test_foreign_lines_are_refused_with_their_number(line, words, tmp_path):
    file = write(tmp_path / "results.jsonl")
    if isinstance(line, dict):
        line = json.dumps(json.loads(file.read_text().splitlines()[0]) | {"seed": 9} | line)
    with open(file, "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ipfast.InputError, match=words):
        finished(file)
    os.remove(file)  # it was closed


def test_nested_numbers_are_values(tmp_path):
    values = {"whole": 1, "none": None, "yes": True, "lists": [[1, 2.5], []], "named": {"a": 1}}
    with ledger(tmp_path / "results.jsonl") as opened:
        opened.add(Record(CELLS[0], values, 1.0))
    assert finished(tmp_path / "results.jsonl")[CELLS[0]].values == values


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(ipfast.InputError, match=r"results.jsonl' to be a file that can be written"):
        finished(tmp_path / "results.jsonl")


def test_doubled_lines_and_lines_of_other_runs_are_refused(tmp_path):
    file = write(tmp_path / "results.jsonl")
    first = file.read_text().splitlines()[0]
    file.write_text(f"{first}\n{first}\n")
    with pytest.raises(ipfast.InputError, match="line 2 is a second one of part, größe, ip, seed 0"):
        finished(file)
    file.write_text(first.replace('"small"', '"paper"') + "\n")
    with pytest.raises(ipfast.InputError, match=r"line 1 is of .*paper"):
        finished(file)
