"""Unusual names and files: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from definition import X_VAL, Y_VAL, C, D, X, Y, seeded
from torch import nn

import ipfast
from ipfast import Method


def test_queries_whose_columns_look_like_parts_of_others_are_not_written(tmp_path):
    several = {"cats": (X_VAL, Y_VAL), "cats, dogs": (X_VAL, Y_VAL)}
    scores = ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), several, progress=False)
    with pytest.raises(ipfast.InputError, match="'cats, dogs' looks like a part of 'cats'"):
        scores.save(tmp_path / "scores.csv")
    scores.save(tmp_path / "scores.safetensors")
    assert ipfast.Scores.load(tmp_path / "scores.safetensors").queries == ("cats", "cats, dogs")
    with pytest.raises(ipfast.InputError, match="validation sets of different names; got 1, '1'"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), {1: (X_VAL, Y_VAL), "1": (X_VAL, Y_VAL)}, progress=False)


@pytest.mark.parametrize("ids", [[7, 3, 12], ["007", "3", "12"], ["a", "3", "12"]])
def test_ids_of_a_table_are_those_that_were_written(ids, tmp_path):
    ipfast.Scores(torch.rand(3), "ip", "head", "reference", {}, np.asarray(ids)).save(tmp_path / "scores.csv")
    assert ipfast.Scores.load(tmp_path / "scores.csv").ids.tolist() == ids


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and more"])
def test_checkpoints_that_are_none_are_named(content, tmp_path):
    file = tmp_path / "epoch.pt"
    file.write_bytes(content)
    method = Method(points=ipfast.Checkpoints([file]))
    with pytest.raises(ipfast.InputError, match=r"files of tensors; .*epoch\.pt' cannot be read"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL), method=method, progress=False)


def test_a_checkpoint_that_was_moved_is_named(tmp_path):
    linear, file = seeded(lambda: nn.Linear(D, C)), tmp_path / "epoch.pt"
    torch.save(linear.state_dict(), file)
    ipfast.query(linear, (X_VAL, Y_VAL), method=Method(points=ipfast.Checkpoints([file])), out=tmp_path / "query.safetensors")
    file.rename(tmp_path / "moved.pt")
    with pytest.raises(ipfast.MissingFileError, match=r"states to be a file; .*epoch\.pt' does not exist"):
        ipfast.score(linear, (X, Y), ipfast.Query.load(tmp_path / "query.safetensors"), progress=False)


def test_names_that_a_table_cannot_hold_are_told_before_any_work(tmp_path, monkeypatch):
    several = {"cats": (X_VAL, Y_VAL), "cats, dogs": (X_VAL, Y_VAL)}
    monkeypatch.setattr(sys.modules["ipfast.score"], "head_scores", None)
    with pytest.raises(ipfast.InputError, match="'cats, dogs' looks like a part of 'cats'"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), several, out=tmp_path / "s.csv", progress=False)


def test_damaged_files_are_named(tmp_path):
    """Whatever bytes are changed, a file is read or refused with a message."""
    np.save(tmp_path / "x.npy", X.numpy())
    np.savez_compressed(tmp_path / "data.npz", features=X.numpy(), labels=Y.numpy())
    np.savez_compressed(tmp_path / "head.npz", weight=np.ones((C, D)), bias=np.ones(C), name=np.array("fc"))
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        for file, content in whole.items():
            broken = bytearray(content)
            for place in rng.integers(min(len(content), 700), size=3):
                broken[place] = rng.integers(256)
            file.write_bytes(broken)
        for model, data in ((tmp_path / "head.npz", (X, Y)), (nn.Linear(D, C), tmp_path / "data.npz")):
            refused += is_refused(lambda model=model, data=data: ipfast.score(model, data, method="loss", progress=False))
        refused += is_refused(lambda: ipfast.score(nn.Linear(D, C), (tmp_path / "x.npy", Y), method="loss", progress=False))
    assert refused > 150


def is_refused(call):
    try:
        call()
    except ipfast.IpfastError:
        return True
    return False


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "data.npz", features=X.numpy(), labels=Y.numpy())
    with pytest.raises(ipfast.InputError, match=r"expected groups to be an \.npy file .*an archive with 'features', 'labels'"):
        ipfast.DemographicParity(tmp_path / "data.npz")


@pytest.mark.parametrize("weight", [np.array([["a"] * D] * C), np.ones((C, D), dtype=np.longdouble)])
def test_a_head_that_is_no_numbers(weight, tmp_path):
    np.savez(tmp_path / "head.npz", weight=weight)
    with pytest.raises(ipfast.InputError, match=r"expected weight of shape .*in head; 'head\.npz' has"):
        ipfast.score(tmp_path / "head.npz", (X, Y), method="loss", progress=False)


def test_a_name_that_is_an_object_is_refused(tmp_path):
    np.savez(tmp_path / "head.npz", weight=np.ones((C, D)), name=np.array("fc", dtype=object))
    with pytest.raises(ipfast.InputError, match=r"expected head to be an \.npz file of numbers"):
        ipfast.score(tmp_path / "head.npz", (X, Y), method="loss", progress=False)


def test_what_a_link_points_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "scores.npy").symlink_to(tmp_path / "there" / "scores.npy")
    scores = ipfast.Scores(torch.rand(3), "ip", "head", "reference", {})
    scores.save(tmp_path / "scores.npy")
    assert (tmp_path / "scores.npy").is_symlink()
    assert np.load(tmp_path / "there" / "scores.npy").tolist() == scores.values.tolist()


@pytest.mark.parametrize("values", [torch.rand(3).bfloat16(), torch.rand(3).requires_grad_()])
@pytest.mark.parametrize("ending", [".npy", ".csv", ".safetensors"])
def test_scores_of_ones_own_are_written(values, ending, tmp_path):
    ipfast.Scores(values, "ip", "head", "reference", {}).save(tmp_path / f"scores{ending}")
    assert ipfast.Scores.load(tmp_path / f"scores{ending}").values.tolist() == values.tolist()
