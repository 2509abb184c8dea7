"""Unusual names and files: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

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
