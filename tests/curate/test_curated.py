"""One step from scores to a training set: what changed, data sets for training, and files."""

import json

import numpy as np
import pandas
import pytest
import torch
from safetensors.numpy import load_file
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of keep, new_labels and weights; got none"),
        ({"keep": [0], "weights": [1.0]}, "got keep and weights"),
        ({"keep": [0]}, "expected labels, groups or rows beside keep"),
        ({"labels": Y, "keep": [0, 6]}, "expected keep to hold indices of the 6 samples; got 6"),
        ({"labels": Y, "keep": [-1]}, "expected keep to hold indices of the 6 samples; got -1"),
        ({"labels": Y, "weights": [1.0]}, r"expected labels to be 1 numbers or strings, .*; got int64 \[6\]"),
        ({"new_labels": Y}, "expected labels, those before, beside new_labels"),
        ({"labels": Y, "keep": [0], "groups": ["a"]}, r"expected groups to be 6 numbers or strings"),
    ],
)
def test_what_cannot_be_reported(arguments, message):
    with pytest.raises(ipfast.InputError, match=message):
        report(**arguments)


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
    for weights in (torch.zeros(3), torch.tensor([-1.0, 2.0]), torch.ones(2, 2), torch.zeros(0)):
        with pytest.raises(ipfast.InputError, match="expected weights"):
            sampler(weights)


# Files


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


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x.npz", {}, "expected the training data to write 'x.npz'; got none"),
        ("x.npz", {"data": (X[1:], np.array(Y))}, "expected features of the 6 scored samples; got 5"),
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
    ],
)
def test_options_of_other_actions_are_refused(action, options, message):
    with pytest.raises(ipfast.InputError, match=message):
        apply(S, action, **options)
