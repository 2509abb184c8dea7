"""Trim: which samples stay, and the files they go to."""

from fractions import Fraction

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import ipfast
from ipfast import Scores
from ipfast.curate import apply, trim


def scores(values):
    return Scores(torch.tensor(values, dtype=torch.float64), "ip", "head", "cpp")


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_trim_keeps_all_but_the_lowest_in_order(values, data):
    k = data.draw(st.integers(0, len(values)))
    made = scores(values)
    kept = trim(made, k).tolist()
    assert kept == sorted(set(range(len(values))) - set(made.lowest(k).tolist()))
    dropped = sorted(set(range(len(values))) - set(kept))
    assert not dropped or not kept or max(values[i] for i in dropped) <= min(values[i] for i in kept)


@given(st.integers(1, 999), st.integers(1, 2000))
def test_trim_drops_the_floor_of_the_share(thousandths, rows):
    assert len(trim(scores([0.0] * rows), thousandths / 1000)) == rows - thousandths * rows // 1000


def test_trim_indexes_a_subset():
    data = torch.utils.data.TensorDataset(torch.arange(4))
    subset = torch.utils.data.Subset(data, trim(scores([0.1, -1, 0.2, -2]), 2).tolist())
    assert [int(x) for (x,) in subset] == [0, 2]


@pytest.mark.parametrize("ending", [".npy", ".csv", ".safetensors"])
def test_scores_may_be_an_object_an_array_or_a_file(ending, tmp_path):
    values = [0.3, -1.0, 0.2, 0.1]
    scores(values).save(tmp_path / f"s{ending}")
    arrays = (torch.tensor(values), np.array(values), values, pandas.Series(values), [3, -1, 2, 1])
    for either in (scores(values), *arrays, tmp_path / f"s{ending}", str(tmp_path / f"s{ending}")):
        assert trim(either, 2).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": 1}, ipfast.InputTypeError, "expected scores to be a Scores object, numbers .*; got dict"),
        ([[1], [1, 2]], ipfast.InputError, "trim: expected scores with as many numbers in each row; got a list"),
        (["a", "b"], ipfast.InputTypeError, "expected scores to be a Scores object, .*; got <U1"),
        (torch.tensor([0.0, torch.nan, 1.0]), ipfast.InputError, "trim: expected finite scores; row 1 has nan"),
        (torch.zeros(2, 2, 2), ipfast.InputError, r"floating-point tensor \[N\] or \[N, Q\]"),
        ("none.npy", ipfast.MissingFileError, "expected path to be a file; 'none.npy' does not exist"),
    ],
)
def test_what_are_no_scores(given, error, message):
    with pytest.raises(error, match=message):
        trim(given, 1)


def test_a_score_that_is_not_finite_is_named_with_its_query():
    values = torch.tensor([[0.5, 1.0], [0.2, torch.nan], [0.1, 2.0]])
    made = Scores(values, "ip", "head", "cpp", queries=("u", "f"))
    assert trim(made, 1, query="u").tolist() == [0, 1]
    with pytest.raises(ipfast.InputError, match="trim: expected finite scores; row 1 has nan"):
        trim(made, 1, query="f")
    with pytest.raises(ipfast.InputError, match="combine: expected finite objectives; row 1 of query 'f' has nan"):
        ipfast.curate.combine(made)
    with pytest.raises(ipfast.InputError, match="combine: expected finite objectives; row 1 of query 1 has nan"):
        ipfast.curate.combine(values)


def test_one_of_several_queries_is_named():
    several = ipfast.Scores(torch.tensor([[1.0, -2], [-1, 2], [3, 3]]), "ip", "head", "cpp", queries=("a", "b"))
    assert trim(several, 1, query="a").tolist() == [0, 2]
    assert trim(several, 1, query=1).tolist() == [1, 2]
    with pytest.raises(ipfast.InputError, match="Scores: expected query"):
        trim(several, 1)


# The same share of every class


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=40),
    st.data(),
)
def test_every_class_gives_up_the_same_share(samples, data):
    values, classes = [s for s, _ in samples], [c for _, c in samples]
    k = data.draw(st.integers(0, len(samples)))
    kept = set(trim(scores(values), k, within=classes).tolist())
    assert len(kept) == len(samples) - k
    for c in set(classes):
        rows = [i for i in range(len(samples)) if classes[i] == c]
        dropped = [i for i in rows if i not in kept]
        assert abs(Fraction(len(rows) * k, len(samples)) - len(dropped)) < 1
        assert sorted(dropped) == sorted(sorted(rows, key=lambda i: (values[i], i))[: len(dropped)])


def test_the_largest_remainders_are_rounded_up_and_ties_go_to_the_first_class():
    # shares of 5 from classes of 3, 5 and 2 samples: 1.5, 2.5 and 1
    kept = trim(scores([float(i) for i in range(10)]), 0.5, within=["x"] * 3 + ["y"] * 5 + ["z"] * 2)
    assert kept.tolist() == [2, 5, 6, 7, 9]


@pytest.mark.parametrize(
    ("within", "message"),
    [
        ([0, 1], r"expected within to be 4 numbers or strings, .*; got int64 \[2\]"),
        ([[0, 1]] * 4, r"expected within to be 4 numbers .*; got int64 \[4, 2\]"),
        ([0.0, np.nan, 1.0, 1.0], "expected finite within; got nan at row 1"),
        ([None] * 4, "expected within of every sample; got a missing value at row 0"),
        (["a", "b", None, None], "expected within of every sample; got a missing value at row 2"),
        (["a", float("nan"), "b", "b"], "expected within of every sample; got a missing value at row 1"),
        (pandas.Series(["a", "b", "b", pandas.NA]), "expected within of every sample; got a missing value at row 3"),
        (
            pandas.Series(["a", None, "b", "b"], dtype="category"),
            "expected within of every sample; got a missing value at row 1",
        ),
        ([object()] * 4, "expected within to be 4 numbers or strings"),
    ],
)
def test_classes_of_other_samples_are_refused(within, message):
    with pytest.raises(ipfast.InputError, match=f"trim: {message}"):
        trim(scores(MADE), 1, within=within)


MADE = [0.3, -1.0, 0.2, 0.1]
H, Y = np.arange(8, dtype=np.float32).reshape(4, 2), np.array([3, 2, 1, 0])


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_indices_are_written(ending, tmp_path):
    file = tmp_path / f"keep{ending}"
    apply(scores(MADE), "trim", 0.25).save(file)
    if ending == ".npy":
        assert np.load(file).tolist() == [0, 2, 3]
    elif ending == ".csv":
        assert file.read_text() == "index\n0\n2\n3\n"
    else:
        from pyarrow import parquet

        assert parquet.read_table(file)["index"].to_pylist() == [0, 2, 3]
    assert list(tmp_path.iterdir()) == [file]


def arrays(_):
    return H, Y


def paths(folder):
    np.save(folder / "h.npy", H)
    np.save(folder / "y.npy", Y)
    return folder / "h.npy", str(folder / "y.npy")


def archive(folder):
    np.savez(folder / "data.npz", features=H, labels=Y)
    return folder / "data.npz"


@pytest.mark.parametrize("data", [arrays, paths, archive])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_the_curated_data_can_be_scored_again(ending, data, tmp_path):
    file = tmp_path / f"curated{ending}"
    apply(scores(MADE), "trim", 1).save(file, data(tmp_path))
    found = dict(np.load(file)) if ending == ".npz" else load_file(file)
    assert found["index"].tolist() == [0, 2, 3]
    assert np.array_equal(found["features"], H[[0, 2, 3]])
    assert np.array_equal(found["labels"], Y[[0, 2, 3]])
    assert len(ipfast.score(torch.nn.Linear(2, 4), file, (H, Y))) == 3


@pytest.mark.parametrize(
    ("out", "data", "message"),
    [
        ("keep.npz", None, r"expected the training data to write 'keep\.npz'; got none"),
        ("keep.npy", (H, Y), r"expected out to end in \.npz or \.safetensors to hold the data; got 'keep\.npy'"),
        ("keep.npz", (H[:3], Y[:3]), "expected features of the 4 scored samples; got 3"),
        ("keep.npz", (H, Y[:3]), "expected features and labels of the same samples in data; got 4 and 3"),
        ("keep.txt", None, r"expected out to end in one of .*; got 'keep\.txt'"),
    ],
)
def test_what_cannot_be_written_is_refused(out, data, message, tmp_path):
    with pytest.raises(ipfast.InputError, match=message):
        apply(scores(MADE), "trim", 1).save(tmp_path / out, data)
    assert list(tmp_path.iterdir()) == []
