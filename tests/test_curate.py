"""curate: which samples stay, and the files they go to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import ipfast
from ipfast import Scores
from ipfast.curate import trim, write_kept


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


def test_trim_takes_scores_only():
    with pytest.raises(ipfast.InputTypeError, match=r"expected scores to be a Scores object; got Tensor.*Scores\.load"):
        trim(torch.zeros(3), 1)


MADE = [0.3, -1.0, 0.2, 0.1]
H, Y = np.arange(8, dtype=np.float32).reshape(4, 2), np.array([3, 2, 1, 0])


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_indices_are_written(ending, tmp_path):
    file = tmp_path / f"keep{ending}"
    assert write_kept(scores(MADE), 0.25, file) == (3, 4)
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
    assert write_kept(scores(MADE), 1, file, data=data(tmp_path)) == (3, 4)
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
        ("keep.npz", (H[:3], Y), "expected features of the 4 scored samples; got 3"),
        ("keep.npz", (H, Y[:3]), "expected labels of the 4 scored samples; got 3"),
        ("keep.txt", None, r"expected out to end in one of .*; got 'keep\.txt'"),
    ],
)
def test_what_cannot_be_written_is_refused(out, data, message, tmp_path):
    with pytest.raises(ipfast.InputError, match=message):
        write_kept(scores(MADE), 1, tmp_path / out, data=data)
    assert list(tmp_path.iterdir()) == []
