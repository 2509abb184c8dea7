"""One step from scores to a training set: what changed, data sets for training, and files."""

import json
import tracemalloc

import numpy as np
import pandas
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_load
from scipy.sparse import csr_matrix
from scipy.stats import chisquare
from tolerances import FLOAT64_RELATIVE, MASK_P_VALUE, assert_relative
from torch.utils.data import DataLoader, TensorDataset

import ipfast
from ipfast.curate import Report, WithLabels, apply, relabel, report, reweight, sampler, subset, trim

S = [0.3, -1.0, 0.2, -0.5, 0.1, 0.0]
Y = [0, 1, 1, 1, 0, 1]
GROUPS = ["m", "f", "f", "m", "m", "f"]
X = np.arange(12, dtype=np.float32).reshape(6, 2)
Z = np.arange(18, dtype=np.float64).reshape(6, 3) % 5


def rows(lines):
    return [(row.name, row.before, row.after, row.changed) for row in lines]


def test_a_report_of_dropped_samples():
    made = apply(S, "trim", 2, labels=Y, groups=GROUPS)
    assert made.keep.tolist() == trim(S, 2).tolist() == [0, 2, 4, 5]
    assert made.changed.tolist() == [1, 3]  # worst first
    assert (made.report.action, made.report.samples, made.report.changed) == ("trim", 6, 2)
    assert rows(made.report.classes) == [("0", 2, 2, 0), ("1", 4, 2, 2)]
    assert rows(made.report.groups) == [("f", 3, 2, 1), ("m", 3, 2, 1)]
    by_class = apply(S, "trim", 3, labels=Y, within=Y)
    assert rows(by_class.report.classes) == [("0", 2, 1, 1), ("1", 4, 2, 2)]
    assert apply(S).keep.tolist() == list(range(6))  # 5 % of six are none


def test_a_report_of_new_labels():
    made = apply(S, "relabel", 2, labels=Y, groups=GROUPS)
    assert made.labels.tolist() == [0, 0, 1, 0, 0, 1]
    assert made.keep.tolist() == list(range(6))
    assert rows(made.report.classes) == [("0", 2, 4, 0), ("1", 4, 2, 2)]
    assert rows(made.report.groups) == [("f", 3, 3, 1), ("m", 3, 3, 1)]
    soft = apply(S, "relabel", 2, labels=Y, how="rdia_soft", logits=Z)
    assert [name for name, *_ in rows(soft.report.classes)] == ["0", "1", "2"]
    assert [changed for *_, changed in rows(soft.report.classes)] == [0, 2, 0]
    after = torch.tensor([row.after for row in soft.report.classes], dtype=torch.float64)
    assert_relative(after, soft.labels.sum(dim=0), FLOAT64_RELATIVE)


def test_a_report_of_weights():
    made = apply(S, "reweight", labels=Y, groups=GROUPS)
    w = made.weights
    assert torch.equal(w, reweight(S))
    assert made.report.changed == int((w < 1).sum())
    after = torch.tensor([row.after for row in made.report.classes], dtype=torch.float64)
    assert_relative(after, torch.stack([w[[0, 4]].sum(), w[[1, 2, 3, 5]].sum()]), FLOAT64_RELATIVE)
    about = torch.tensor([made.report.weights[name] for name in ("smallest", "largest", "effective")], dtype=torch.float64)
    assert_relative(about, torch.stack([w.min(), w.max(), w.sum() ** 2 / (w**2).sum()]), FLOAT64_RELATIVE)


def test_a_report_is_a_table_and_json(tmp_path):
    about = apply(S, "trim", 2, labels=Y, groups=GROUPS).report
    lines = str(about).splitlines()
    assert lines[0] == "trim: 2 of 6 samples dropped (33.3 %)"
    assert [line.split() for line in lines[2:4]] == [
        ["0", "2", "33.3", "%", "2", "50.0", "%", "0", "0.0", "%"],
        ["1", "4", "66.7", "%", "2", "50.0", "%", "2", "50.0", "%"],
    ]
    assert len(lines) == 7
    assert len({len(line) for line in lines[2:4] + lines[5:]}) == 1
    about.save(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == json.loads(json.dumps(about.as_dict()))
    assert found["classes"][1] == {"name": "1", "before": 4, "after": 2.0, "changed": 2}
    assert "as many as" in str(apply(S, "reweight").report)
    assert str(Report("trim", 0, 0)) == "trim: 0 of 0 samples dropped"


def test_names_that_are_not_numbers_and_new_ones():
    made = report(["b", "a", "a"], new_labels=np.array(["b", "c", "a"]))
    assert rows(made.classes) == [("a", 2, 1, 1), ("b", 1, 1, 0), ("c", 0, 1, 0)]
    many = report(list(range(11)), keep=[0, 10])
    assert [row.name for row in many.classes][-2:] == ["9", "10"]
    assert rows(report(torch.tensor([[1.0], [0.0]]), keep=torch.tensor([1])).classes) == [("0", 1, 1, 0), ("1", 1, 0, 1)]
    assert rows(report(pandas.Series(["x", "y"]), keep=np.array([0])).classes) == [("x", 1, 1, 0), ("y", 1, 0, 1)]


def test_a_report_of_many_classes_shows_those_that_changed_most():
    names, keep = [f"n{n:03}" for n in range(300) for _ in range(2)], [row for row in range(600) if row not in (401, 598, 599)]
    made = report(groups=names, keep=keep)
    assert len(made.groups) == 300
    lines = str(made).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["n299", "n200", "n000"]
    assert lines[-1] == "… and 280 groups of which fewer changed; the report as JSON has all"
    assert len(lines) == 2 + 20 + 1


def test_a_report_of_as_many_groups_as_samples_takes_no_square_of_memory():
    """With a row of N for each of N groups this would take 40 GB."""
    rows = 200_000
    made = report(groups=np.arange(rows) / 7, labels=np.arange(rows), new_labels=np.arange(rows)[::-1].copy())
    assert (len(made.groups), made.changed) == (rows, rows)


def test_a_report_stays_in_line_where_all_of_a_class_goes():
    header, *lines = str(report(["a", "a", "b"], keep=[0, 1])).splitlines()[1:]
    assert [line[-7:] for line in lines] == ["  0.0 %", "100.0 %"]
    assert {len(line) for line in lines} == {len(lines[0])}
    ends = [header.index(word) + len(word) for word in ("before", "after", "dropped")]
    assert [[line[end - 2 : end].strip() for end in ends] for line in lines] == [["2", "2", "0"], ["1", "0", "1"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of keep, new_labels and weights; got none"),
        ({"keep": [0], "weights": [1.0]}, "expected one of .*; got keep and weights"),
        ({"keep": [0]}, "expected labels, groups or rows beside indices to keep"),
        ({"labels": Y, "keep": [0, 6]}, "expected keep to hold indices of the 6 samples; got 6"),
        ({"labels": Y, "keep": [-1]}, "expected keep to hold indices of the 6 samples; got -1"),
        ({"labels": Y, "weights": [1.0]}, "expected weights of the 6 samples; got 1"),
        ({"new_labels": Y}, "expected labels, those before, beside new_labels"),
        ({"labels": Y, "keep": [0], "groups": ["a"]}, r"expected groups to be 6 numbers or strings"),
        ({"labels": Y, "keep": [[0]]}, r"expected keep to be indices .* in one dimension; got \[1, 1\]"),
        ({"labels": Y, "keep": torch.tensor([True])}, "expected keep to be a mask of the 6 samples; got 1"),
        ({"labels": Y, "weights": [1.0, 1, np.nan, 1, 1, 1]}, "expected finite weights .*; got nan at row 2"),
        ({"labels": Y, "weights": [1.0, -1, 1, 1, 1, 1]}, "expected finite weights .*; got -1 at row 1"),
        ({"labels": Y, "weights": [[1.0] * 6]}, r"expected weights .* shape \[1, 6\]"),
        (
            {"labels": Y, "groups": iter(GROUPS), "keep": [0]},
            "expected groups to be 6 numbers or strings, .*; got list_iterator",
        ),
        ({"labels": ["a", "b"], "new_labels": np.eye(2)}, r"expected labels in 0\.\.1, the columns of soft .*; got 'a'"),
        ({"labels": [0, 1], "new_labels": np.full((2, 2), np.inf)}, "expected finite new_labels; row 0 has NaN or infinity"),
        ({"labels": [0, 1], "new_labels": np.eye(3)}, "expected new_labels of the 2 samples; got 3"),
    ],
)
def test_what_cannot_be_reported(arguments, message):
    with pytest.raises(ipfast.InputError, match=f"report: {message}"):
        report(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": Y, "keep": ["a"]}, "expected keep to be indices .*; got <U1"),
        ({"labels": Y, "keep": torch.tensor([0.5])}, "expected keep .* as integers or bool; got torch.float32"),
        ({"labels": Y, "weights": ["a"] * 6}, "expected weights to be numbers .*; got <U1"),
        ({"weights": 1.0}, "expected weights to be an array, one entry for each sample; got float"),
        ({"labels": 5, "keep": [0]}, "expected labels to be an array, one entry for each sample; got int"),
        ({"groups": iter(GROUPS), "keep": [0]}, "expected groups to be an array, .*; got list_iterator"),
        ({"labels": [0, 1], "new_labels": [["a", "b"], ["a", "b"]]}, "expected new_labels to be .* soft targets .*; got <U1"),
    ],
)
def test_what_is_of_no_type_to_report(arguments, message):
    with pytest.raises(ipfast.InputTypeError, match=f"report: {message}"):
        report(**arguments)


MASK = [True, False, True, True, False, True]


@pytest.mark.parametrize("mask", [torch.tensor(MASK), np.array(MASK), MASK, pandas.Series(MASK)])
def test_a_mask_keeps_the_samples_where_it_is_true(mask):
    made = report(Y, keep=mask)
    assert report(keep=mask).samples == len(MASK)  # unlike indices, a mask tells
    assert made == report(Y, keep=[0, 2, 3, 5])
    assert made.changed == 2
    data = TensorDataset(torch.from_numpy(X), torch.tensor(Y))
    assert subset(data, mask).indices == [0, 2, 3, 5]


def test_the_report_of_a_file_is_that_of_its_array(tmp_path):
    np.save(tmp_path / "y.npy", Y)
    np.save(tmp_path / "keep.npy", [0, 5])
    assert report(tmp_path / "y.npy", keep=tmp_path / "keep.npy") == report(Y, keep=[0, 5])


# Training


def test_a_subset_with_new_labels_trains_as_it_is():
    data = TensorDataset(torch.from_numpy(X), torch.tensor(Y))
    kept = apply(S, "trim", 2).dataset(data)
    assert [int(y) for _, y in kept] == [Y[i] for i in (0, 2, 4, 5)]
    flipped = apply(S, "relabel", 2, labels=Y).dataset(data)
    x, y = next(iter(DataLoader(flipped, batch_size=6)))
    assert y.tolist() == [0, 0, 1, 0, 0, 1]
    assert y.dtype == torch.int64
    assert torch.equal(x, torch.from_numpy(X))
    soft = apply(S, "relabel", 2, labels=Y, how="rdia_soft", logits=Z)
    _, targets = next(iter(DataLoader(soft.dataset(data), batch_size=6)))
    assert torch.equal(targets, soft.labels)
    both = subset(data, trim(S, 2), relabel(S, 3, Y))
    assert [int(y) for _, y in both] == [0, 1, 0, 0]


def test_samples_may_be_mappings_and_tuples_of_several_inputs():
    mappings = [{"ids": i, "target": y} for i, y in enumerate(Y)]
    made = apply(S, "relabel", 2, labels=Y).dataset(mappings, labels_key="target")
    assert [int(sample["target"]) for sample in made] == [0, 0, 1, 0, 0, 1]
    assert [sample["ids"] for sample in made] == list(range(6))
    assert mappings[1]["target"] == 1
    assert WithLabels([(1, 2, 0)], torch.tensor([5]))[0] == (1, 2, torch.tensor(5))
    with pytest.raises(ipfast.InputError, match="expected samples with the label under 'labels'; got ids, target"):
        WithLabels(mappings, torch.tensor(Y))[0]
    with pytest.raises(ipfast.InputTypeError, match=r"expected samples .* or mappings; got int"):
        WithLabels([1], torch.tensor([1]))[0]


def test_a_sampler_draws_by_weight_and_repeats_with_its_seed():
    made = apply(S, "reweight", temperature=0.4)
    counts = torch.bincount(torch.tensor(list(sampler(made.weights, samples=60_000, seed=0))), minlength=6)
    assert chisquare(counts.numpy(), (10_000 * made.weights).numpy()).pvalue > MASK_P_VALUE
    assert list(made.sampler(seed=3)) == list(made.sampler(seed=3))
    assert len(made.sampler()) == 6
    DataLoader(TensorDataset(torch.from_numpy(X)), sampler=made.sampler())


def test_what_cannot_be_trained_on():
    data = TensorDataset(torch.from_numpy(X), torch.tensor(Y))
    with pytest.raises(ipfast.InputError, match="expected data of the 6 scored samples; got 3"):
        apply(S, "trim", 2).dataset([1, 2, 3])
    with pytest.raises(ipfast.InputTypeError, match=r"expected data with a length .*; got generator"):
        subset((i for i in range(6)), torch.tensor([0]))
    with pytest.raises(ipfast.InputError, match="expected keep to hold indices of the 6 samples; got 6"):
        subset(data, torch.tensor([6]))
    with pytest.raises(ipfast.InputError, match="expected labels of the 6 samples of data; got 5"):
        subset(data, torch.tensor([0]), torch.tensor(Y[1:]))
    with pytest.raises(ipfast.InputError, match="expected weights, which 'reweight' gives; this is of 'trim'"):
        apply(S, "trim", 2).sampler()
    for keep in ([6, -1], [-1, 6]):
        with pytest.raises(ipfast.InputError, match=f"subset: expected keep to hold indices .*; got {keep[0]} at place 0"):
            subset(data, keep)
    with pytest.raises(ipfast.InputError, match=r"subset: expected keep .* in one dimension; got \[1, 2\]"):
        subset(data, torch.tensor([[0, 1]]))
    for keep in (torch.tensor([0.5]), ["a"], 3, None):
        with pytest.raises(ipfast.InputTypeError, match="subset: expected keep to be indices of the 6 samples"):
            subset(data, keep)
    assert subset(data, []).indices == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": torch.zeros(3)}, ipfast.InputError, "expected weights of which one is positive"),
        ({"weights": torch.zeros(0)}, ipfast.InputError, "expected weights of which one is positive"),
        ({"weights": torch.tensor([-1.0, 2.0])}, ipfast.InputError, "expected finite weights .*; got -1 at row 0"),
        ({"weights": [1.0, torch.inf]}, ipfast.InputError, "expected finite weights .*; got inf at row 1"),
        ({"weights": torch.ones(2, 2)}, ipfast.InputError, r"expected weights to be numbers \[N\].*; got shape \[2, 2\]"),
        ({"weights": ["a"]}, ipfast.InputTypeError, "expected weights to be numbers .*; got <U1"),
        ({"samples": 0}, ipfast.InputError, "expected samples to be a positive integer; got 0"),
        ({"samples": -1}, ipfast.InputError, "expected samples to be a positive integer; got -1"),
        ({"samples": 2.5}, ipfast.InputTypeError, "expected samples to be a positive integer; got float"),
        ({"seed": "a"}, ipfast.InputTypeError, "expected seed to be an integer; got str"),
        ({"seed": -1}, ipfast.InputError, r"expected seed to be in 0 \.\. 2\^64-1; got -1"),
    ],
)
def test_what_cannot_be_drawn(arguments, error, message):
    with pytest.raises(error, match=f"sampler: {message}"):
        sampler(**{"weights": [1.0, 2.0], **arguments})


def test_weights_whose_sum_overflows_are_drawn_by_their_ratios():
    assert list(sampler([1.5e308, 0.75e308, 0.75e308], samples=50, seed=0)) == list(sampler([2.0, 1, 1], samples=50, seed=0))


# Files


def test_as_many_weights_as_torch_draws_from(monkeypatch):
    monkeypatch.setattr("ipfast.curate.training.LARGEST", 3)
    assert len(list(sampler(torch.ones(3)))) == 3
    with pytest.raises(ipfast.InputError, match="sampler: expected at most 2\\^24 weights, from which torch draws; got 4"):
        sampler(torch.ones(4))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_training_data_in_bfloat16_is_written(ending, tmp_path):
    """It stays so where the file has it, and is widened where NumPy does not; gradients may be asked of it."""
    x = torch.from_numpy(X).bfloat16().requires_grad_()
    apply(S, "trim", 2).save(tmp_path / f"o{ending}", (x, torch.tensor(Y)))
    if ending == ".npz":
        found = np.load(tmp_path / "o.npz")["features"]
        assert found.dtype == np.float32
    else:
        found = torch_load(tmp_path / "o.safetensors")["features"]
        assert found.dtype == torch.bfloat16
    assert found.tolist() == X[[0, 2, 4, 5]].tolist()
    soft = apply(S, "relabel", 2, labels=Y, how="rdia_soft", logits=torch.from_numpy(Z).bfloat16())
    for name in ("l.npy", "l.csv", "l.parquet"):
        soft.save(tmp_path / name)
    assert np.load(tmp_path / "l.npy").tolist() == soft.labels.float().tolist()


def test_labels_that_are_words_are_written_without_pickle(tmp_path):
    words = ["a", "b", "b", "a", "b", "b"]
    for labels in (np.array(words), np.array(words, dtype=object), pandas.Series(words)):
        apply(S, "trim", 2).save(tmp_path / "o.npz", (X, labels))
        assert np.load(tmp_path / "o.npz", allow_pickle=False)["labels"].tolist() == [words[row] for row in (0, 2, 4, 5)]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_have_the_ids_of_the_samples(ending, tmp_path):
    scores = ipfast.Scores(torch.tensor(S), "ip", "head", "cpp", ids=np.array(list("uvwxyz")))
    read = pandas.read_csv if ending == ".csv" else pandas.read_parquet
    for action, rows, column in (
        ("trim", [0, 2, 4, 5], "index"),
        ("relabel", range(6), "label"),
        ("reweight", range(6), "weight"),
    ):
        apply(scores, action, None if action == "reweight" else 2, labels=Y).save(tmp_path / f"o{ending}")
        table = read(tmp_path / f"o{ending}")
        assert table.columns.tolist() == ["id", column]
        assert table["id"].tolist() == ["uvwxyz"[row] for row in rows]


def test_labels_and_weights_are_written(tmp_path):
    flipped, weighted = apply(S, "relabel", 2, labels=Y), apply(S, "reweight")
    soft = apply(S, "relabel", 2, labels=Y, how="rdia_soft", logits=Z)
    for name, made in (("flip", flipped), ("soft", soft), ("weights", weighted)):
        for ending in (".npy", ".csv", ".parquet"):
            made.save(tmp_path / f"{name}{ending}")
    assert np.load(tmp_path / "flip.npy").tolist() == flipped.labels.tolist()
    assert np.load(tmp_path / "soft.npy").tolist() == soft.labels.tolist()
    assert np.load(tmp_path / "weights.npy").tolist() == weighted.weights.tolist()
    assert (tmp_path / "flip.csv").read_text().splitlines()[:3] == ["index,label", "0,0", "1,0"]
    for read, ending in ((pandas.read_csv, ".csv"), (pandas.read_parquet, ".parquet")):
        assert read(tmp_path / f"weights{ending}")["weight"].tolist() == weighted.weights.tolist()
        assert read(tmp_path / f"soft{ending}")["label 2"].tolist() == soft.labels[:, 2].tolist()


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_archives_hold_the_data_as_it_is_curated(ending, tmp_path):
    def saved(made):
        file = tmp_path / f"out{ending}"
        made.save(file, (X, np.array(Y)), report=tmp_path / "r.json")
        assert json.loads((tmp_path / "r.json").read_text())["action"] == made.action
        return dict(np.load(file)) if ending == ".npz" else load_file(file)

    found = saved(apply(S, "trim", 2))
    assert found["index"].tolist() == [0, 2, 4, 5]
    assert np.array_equal(found["features"], X[[0, 2, 4, 5]])
    found = saved(apply(S, "relabel", 2, labels=Y))
    assert found["labels"].tolist() == [0, 0, 1, 0, 0, 1]
    assert np.array_equal(found["features"], X)
    found = saved(apply(S, "reweight"))
    assert found["labels"].tolist() == Y
    assert found["weights"].tolist() == reweight(S).tolist()
    assert ipfast.score(torch.nn.Linear(2, 2), tmp_path / f"out{ending}", (X, np.array(Y))).values.shape == (6,)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("action", ["trim", "reweight"])
def test_features_of_a_memory_map_do_not_come_into_memory(ending, action, tmp_path, monkeypatch):
    monkeypatch.setattr("ipfast.curate.files.BLOCK_BYTES", 2**20, raising=False)
    x = np.arange(2**23, dtype=np.float64).reshape(-1, 256)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(len(x)))
    made = apply(torch.linspace(1, 0, len(x)), action, 10 if action == "trim" else None)
    folder = {"x.npy", "y.npy", f"out{ending}"}
    tracemalloc.start()
    made.save(tmp_path / f"out{ending}", (tmp_path / "x.npy", tmp_path / "y.npy"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * x.nbytes  # NumPy writes archives in pieces of 16 MiB
    assert {file.name for file in tmp_path.iterdir()} == folder
    file = tmp_path / f"out{ending}"
    found = dict(np.load(file)) if ending == ".npz" else load_file(file)
    assert np.array_equal(found["features"], x[:-10] if action == "trim" else x)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x.npz", {}, "expected the training data to write 'x.npz'; got none"),
        ("x.npz", {"data": (X[1:], np.array(Y[1:]))}, "expected features of the 6 scored samples; got 5"),
        ("x.npz", {"data": (X[1:], np.array(Y))}, "expected features and labels of the same samples in data; got 5 and 6"),
        ("x.npz", {"data": (X, np.array(Y), 0)}, "expected data to be a pair .features, labels.*; got tuple"),
        ("x.npz", {"data": (X, np.array([{}] * 6))}, "expected labels of data to be numbers, .*; got object"),
        (
            "x.safetensors",
            {"data": (X, np.array(list("abcabc")))},
            "expected labels as numbers in 'x.safetensors', which holds no",
        ),
        ("x.npz", {"data": (np.array(list("abcabc")), np.array(Y))}, "expected features of data to be numbers, .*; got <U1"),
        ("x.npy", {"data": (X, np.array(Y))}, "expected out to end in .npz or .safetensors to hold the data"),
        ("x.txt", {}, "expected out to end in one of"),
        ("x.npy", {"report": "x.txt"}, "expected report to end in one of .json"),
        ("none/x.npy", {}, "expected the folder of out to exist"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(out, options, message, tmp_path):
    if "report" in options:
        options = {"report": tmp_path / options["report"]}
    with pytest.raises(ipfast.IpfastError, match=message):
        apply(S, "trim", 2).save(tmp_path / out, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["data.npz", "sub/../data.npz", "link.npz", "hard.npz"])
def test_the_data_is_not_written_over(out, tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, features=X, labels=Y)
    before = file.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.npz").symlink_to(file)
    (tmp_path / "hard.npz").hardlink_to(file)
    with pytest.raises(ipfast.InputError, match="curate: expected out to be another file than data; both are"):
        apply(S, "trim", 2).save(tmp_path / out, file)
    assert file.read_bytes() == (tmp_path / out).read_bytes() == before


@pytest.mark.parametrize(
    ("action", "options", "message"),
    [
        ("drop", {}, "expected action to be one of"),
        ("relabel", {}, "expected labels with 'relabel'; got None"),
        ("reweight", {"amount": 0.1}, "expected no amount with 'reweight'; it is of trim and relabel"),
        ("reweight", {"within": Y}, "expected no within with 'reweight'"),
        ("trim", {"how": "runner_up"}, "expected no how with 'trim'; it is of relabel"),
        ("trim", {"logits": Z}, "expected no logits with 'trim'"),
        ("relabel", {"labels": Y, "clip": 3.0}, "expected no clip with 'relabel'; it is of reweight"),
        ("trim", {"amount": 7}, "expected a count between 0 and 6; got 7"),
        ("trim", {"labels": Y[1:], "within": Y[1:]}, r"curate: expected labels to be 6 numbers .*; got int64 \[5\]"),
        ("trim", {"groups": ["a"]}, "curate: expected groups to be 6 numbers"),
    ],
)
def test_options_of_other_actions_are_refused(action, options, message):
    with pytest.raises(ipfast.InputError, match=message):
        apply(S, action, **options)


def test_new_labels_go_by_place_whatever_their_index():
    data = TensorDataset(torch.arange(6))
    labels = pandas.Series(range(10, 16), index=[5, 4, 3, 2, 1, 0])
    pairs = [(int(x), 0) for (x,) in data]
    assert [label for _, label in subset(pairs, [0, 2], labels)] == [10, 12]


@pytest.mark.parametrize("data", [pandas.DataFrame(np.ones((6, 3))), {"x": X, "y": Y}])
def test_data_that_is_indexed_by_name_has_no_subset(data):
    with pytest.raises(ipfast.InputTypeError, match="indexed by name: pass a list or a Dataset of its rows"):
        subset(data, [0, 1])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0, 2.0], [3.0]], "expected features of data to be an array; .*Pad its rows"),
        (torch.eye(6).to_sparse(), "dense array, a row for each sample; got a Tensor"),
        (csr_matrix(np.eye(6)), "dense array, a row for each sample; got a csr_matrix"),
        (torch.tensor(1.0), "dense array, a row for each sample; got a Tensor"),
        (X.astype(np.longdouble), "expected features of data to be numbers, .*; got float"),
    ],
)
def test_features_that_no_archive_holds(features, message, tmp_path):
    with pytest.raises(ipfast.InputTypeError, match=message):
        apply(S, "trim", 2).save(tmp_path / "o.npz", (features, np.array(Y)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [-1, "4", 2.5, True])
def test_a_report_needs_a_number_of_samples(rows):
    with pytest.raises(ipfast.InputTypeError, match="report: expected rows to be how many samples there are"):
        report(keep=[0], rows=rows)


def test_unsigned_and_infinite_labels():
    unsigned = torch.tensor(Y, dtype=torch.uint16)
    assert relabel(S, 2, unsigned).tolist() == relabel(S, 2, Y).tolist()
    assert trim(S, 2, within=unsigned).tolist() == trim(S, 2, within=Y).tolist()
    with pytest.raises(ipfast.InputError, match="trim: expected finite within; got inf at row 1"):
        trim(S, 2, within=[0, np.inf, 1, 1, 0, 0])


def test_zscores_of_scores_near_the_ends_of_float64():
    for scale in (1e-200, 1e200):
        found = ipfast.curate.combine([scale * np.array(S), scale * np.array(S)], "zsum").values
        expected = ipfast.curate.combine([np.array(S), np.array(S)], "zsum").values
        assert_relative(found, expected, FLOAT64_RELATIVE)
