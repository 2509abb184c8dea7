"""Arguments of other kinds than documented: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, X, Y, seeded
from torch import nn

import ipfast


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params": None}, "expected params to be one of 'last', .*got NoneType"),
        ({"params": 3}, "got int"),
        ({"params": "all", "loss": nn.CrossEntropyLoss()}, "got the module CrossEntropyLoss, which takes logits"),
        ({"params": "all", "loss": F.cross_entropy}, "got torch's cross_entropy, which takes logits"),
        ({"loss": F.cross_entropy}, r"got function\. A function \(model, batch\) -> \[B\] goes with params="),
    ],
)
def test_arguments_of_another_kind_are_refused(options, words):
    with pytest.raises(ipfast.InputTypeError, match=words):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL), progress=False, **options)


def test_patterns_may_be_a_tuple():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Linear(4, C)))
    found, expected = (
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params=params, progress=False) for params in (("^1",), ["^1"])
    )
    assert torch.equal(found.values, expected.values)
