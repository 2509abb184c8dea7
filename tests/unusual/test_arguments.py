"""Arguments of other kinds than documented: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, seeded
from scipy.sparse import csr_matrix
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


def strings(*names):
    return (
        np.array(names, dtype=np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else np.array(names, dtype=object)
    )


def test_strings_of_any_kind_are_names(tmp_path):
    groups = strings(*("ab" * M)[:M])
    model, data, val = seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL)
    for of in (lambda kind: {"impact": ipfast.DemographicParity(kind, positive=1)}, lambda kind: {"val_groups": kind}):
        found, expected = (ipfast.score(model, data, val, progress=False, **of(kind)) for kind in (groups, groups.tolist()))
        assert torch.equal(found.values, expected.values)
    found = ipfast.score(model, data, val, ids=strings(*map(str, range(N))), progress=False)
    assert found.ids.tolist() == [*map(str, range(N))]
    labels = strings(*("ab" * N)[:N])
    ipfast.curate.apply(found, "trim", 2, labels=labels).save(tmp_path / "kept.npz", (X, labels))
    assert np.load(tmp_path / "kept.npz")["labels"].tolist() == [labels[i] for i in ipfast.curate.trim(found, 2).tolist()]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ipfast.Control("random", seed="x"), "Control: expected seed to be an integer; got str"),
        (lambda: ipfast.Control("random", seed=1.5), "Control: expected seed to be an integer; got float"),
        (lambda: ipfast.DemographicParity([[0], [1, 2]]), "expected groups to be an array"),
        (lambda: ipfast.Scores.load(None), "expected path to be the path of a file; got NoneType"),
        (
            lambda: ipfast.score(nn.Linear(D, C), (X, Y), (X_VAL, Y_VAL), val_groups=[[0], [1, 2]], progress=False),
            "expected val_groups to be an array",
        ),
        (
            lambda: ipfast.score(
                nn.Linear(D, C), (X, Y), (X_VAL, Y_VAL), impact=ipfast.Counterfactual(csr_matrix(X_VAL.numpy())), progress=False
            ),
            "expected pairs features to be a dense array; got a sparse csr_matrix",
        ),
    ],
)
def test_arguments_of_no_use_are_named(call, words):
    with pytest.raises(ipfast.InputTypeError, match=words):
        call()


def test_seeds_are_those_of_torch():
    with pytest.raises(ipfast.InputError, match=r"seed to be in 0 \.\. 2\^64-1"):
        ipfast.Control("random", seed=2**70)


def test_groups_of_val_in_fractions_are_refused():
    with pytest.raises(ipfast.InputError, match="val_groups to be 6 integers or strings"):
        ipfast.score(nn.Linear(D, C), (X, Y), (X_VAL, Y_VAL), val_groups=torch.ones(M).bfloat16(), progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": None}, "label_smoothing to be a number; got NoneType"),
        ({"ignore_index": "a"}, "ignore_index to be a whole number; got str"),
        ({"scale": "2"}, "scale to be a number; got str"),
        ({"class_weight": torch.ones(C, dtype=torch.complex64)}, "class_weight to be real numbers"),
    ],
)
def test_options_of_operations_are_checked(options, words):
    w = torch.ones(C, D, dtype=torch.float64)
    with pytest.raises(ipfast.InputTypeError, match=words):
        ipfast.ops.head_dot(X, Y, w, None, w, None, **options)


def test_masks_and_weights_of_operations_may_be_of_any_kind():
    w = torch.ones(C, D, dtype=torch.float64)
    masks = [torch.tensor([0, 3])]
    one, other = (ipfast.ops.head_dot(X, Y, w, None, w[None], None, dropped=each) for each in (masks, iter(masks)))
    assert torch.equal(one, other)
    weight = torch.ones(C, dtype=torch.float64, requires_grad=True)
    found = ipfast.ops.head_dot(X, Y, w, None, w, None, class_weight=weight, backend="reference")
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ipfast.EKFAC(), r"got EKFAC\. Pass ipfast\.Method\(curvature=ipfast\.EKFAC"),
        (ipfast.Dropout(3, 0.1), r"got Dropout\. Pass ipfast\.Method\(points=ipfast\.Dropout"),
    ],
)
def test_a_part_of_a_method_is_no_method(method, words):
    linear, x = torch.nn.Linear(2, 2), torch.zeros(3, 2)
    with pytest.raises(ipfast.InputTypeError, match=words):
        ipfast.score(linear, (x, torch.zeros(3, dtype=torch.long)), (x, torch.zeros(3, dtype=torch.long)), method=method)


def test_a_class_is_no_model():
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ipfast.InputTypeError, match=r"expected model to be an nn\.Module"):
        ipfast.score(torch.nn.Linear, (x, y), (x, y))
