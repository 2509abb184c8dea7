"""Data that comes in unusual ways: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, gradients, numbers, seeded
from scipy.sparse import csr_matrix
from tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ipfast
from ipfast import Method


class Once(IterableDataset):
    """A stream that can be read a single time."""

    def __init__(self, *pair):
        self.batches = iter(zip(*(part.split(4) for part in pair), strict=True))

    def __iter__(self):
        return self.batches


def test_a_stream_that_can_be_read_once_loses_nothing():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))

    def stream(*pair):
        return DataLoader(Once(*pair), batch_size=None)

    whole = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    found = ipfast.score(model, stream(X, Y), stream(X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, whole.values)
    selves = ipfast.score(model, stream(X, Y), method="self_tracin", progress=False)
    assert torch.equal(selves.values, ipfast.score(model, (X, Y), method="self_tracin", progress=False).values)
    with pytest.raises(ipfast.InputError, match="at least one sample in"):
        ipfast.score(model, DataLoader(Once(X[:0], Y[:0]), batch_size=None), method="self_tracin", progress=False)


class Mixed(Dataset):
    """Targets that are whole numbers in some batches."""

    def __init__(self, x, targets):
        self.x, self.targets = x, targets

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.targets[row]


def test_targets_of_later_batches_keep_their_fractions():
    linear = seeded(lambda: nn.Linear(D, 1))
    targets = [1] * 4 + [0.3 * row for row in range(4, N)]
    y, y_val = torch.tensor(targets, dtype=torch.float64), torch.rand(M, dtype=torch.float64)
    found = ipfast.score(linear, DataLoader(Mixed(X, targets), 4), (X_VAL, y_val), loss="mse", progress=False)
    expected = ipfast.score(linear, (X, y), (X_VAL, y_val), loss="mse", progress=False)
    assert_relative_to_largest(found.values, expected.values, FLOAT64_RELATIVE)


def test_labels_that_are_words_are_named_over_networks_too():
    data = DataLoader([(row, "cat") for row in X], 4)
    with pytest.raises(ipfast.InputError, match="expected labels as numbers; got"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), data, method="self_tracin", params="all", progress=False)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_pairs_of_two_precisions(kind):
    other = torch.float32 if kind == torch.float64 else torch.float64
    linear = seeded(lambda: nn.Linear(D, C))
    found = ipfast.score(linear, (X.to(kind), Y), (X_VAL.to(other), Y_VAL), aggregate=False, progress=False)
    expected = gradients(linear, X, Y) @ gradients(linear, X_VAL, Y_VAL).T
    assert_relative_to_largest(found.values.double(), expected, FLOAT32_RELATIVE)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([[1.0, 2.0], [3.0]], "with rows of one length; .*Pad them"),
        (X.to_sparse(), r"dense array; got a sparse Tensor\. Convert it with to_dense\(\)"),
        (csr_matrix(X.numpy()), r"dense array; got a sparse csr_matrix\. Convert it with toarray\(\)"),
        (X.numpy().astype(np.longdouble), "at most 64 bits a number; .*Convert it to float64"),
        (X.numpy().astype(object), "expected train features to hold numbers; got dtype object"),
    ],
    ids=["ragged", "sparse", "scipy", "longdouble", "object"],
)
@pytest.mark.parametrize("params", ["last", "all"])
def test_arrays_that_are_no_plain_numbers_are_refused(features, words, params):
    if np.dtype(np.longdouble).itemsize == 8 and "64 bits" in words:
        pytest.skip("long double is float64 here")
    with pytest.raises(ipfast.InputTypeError, match=words):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (features, Y[: len(Y)]), (X_VAL, Y_VAL), params=params, progress=False)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


@pytest.mark.parametrize("params", ["last", "all"])
def test_what_extra_training_reads(params):
    """Foreign byte order, and dictionaries with labels under another key, train as plain arrays do."""

    def scored(train, **options):
        method = Method(points=ipfast.ExtraSGD(train, sgd, members=2, **options))
        return ipfast.score(
            seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL), method=method, params=params, progress=False
        ).values

    expected = scored((X, Y))
    assert torch.equal(scored((X.numpy().astype(">f8"), Y.numpy().astype(">i8"))), expected)
    named = DataLoader([{"input": x, "target": y} for x, y in zip(X, Y, strict=True)], N)
    pairs = DataLoader([*zip(X, Y, strict=True)], N)
    if params == "all":  # whose model is called with the entries
        assert torch.equal(scored(named, labels_key="target"), scored(pairs))
    with pytest.raises(ipfast.InputError, match=r"labels under 'labels' .*got input, target"):
        scored(named)


def test_extra_training_gives_a_loss_of_ones_own_the_batch_as_the_data_gives_it():
    model, seen = seeded(lambda: nn.Linear(D, C)), set()

    def loss(model, batch):
        seen.add(len(batch))
        x, weights, y = batch
        return weights * F.cross_entropy(model(x), y, reduction="none")

    data = [*zip(X, numbers(N, seed=6).abs(), Y, strict=True)]
    method = Method(points=ipfast.ExtraSGD(DataLoader(data, 4), sgd, members=2))
    ipfast.score(model, DataLoader(data, 4), DataLoader(data[:M], 4), method=method, params="all", loss=loss, progress=False)
    assert seen == {3}


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_narrow_integers_are_their_classes(params, kind):
    """Of uint8, 156 is equal to the label −100 of tokens that do not count."""
    wide = 160
    model = seeded(lambda: nn.Linear(D, wide))
    x, y = numbers(4, 3, D), torch.full((4, 3), 156 if kind is torch.uint8 else 30)
    val = numbers(2, 3, D, seed=1), torch.randint(0, wide, (2, 3))
    found, expected = (ipfast.score(model, (x, y.to(to)), val, params=params, progress=False) for to in (kind, torch.int64))
    assert torch.equal(found.values, expected.values)
    loss = ipfast.losses.CrossEntropy(ignore_index=-100)
    found, expected = (
        ipfast.score(model, (x[:, 0], y[:, 0].to(to)), (val[0][:, 0], val[1][:, 0]), loss=loss, params=params, progress=False)
        for to in (kind, torch.int64)
    )
    assert torch.equal(found.values, expected.values)
    assert bool((found.values != 0).all())


def test_complex_features_are_refused():
    with pytest.raises(ipfast.InputTypeError, match=r"hold real numbers; got torch\.complex128"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (torch.complex(X, X), Y), (X_VAL, Y_VAL), progress=False)
    data = DataLoader([*zip(torch.complex(X, X), Y, strict=True)], 4)
    with pytest.raises(ipfast.InputTypeError, match=r"expected real features; got torch\.complex128"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), data, (X_VAL, Y_VAL), check=False, progress=False)


@pytest.mark.parametrize("tokens", [False, True])
def test_features_of_later_batches_keep_their_digits(tokens):
    linear = seeded(lambda: nn.Linear(D, C))
    x, y = (numbers(N, 3, D), torch.stack([Y, Y, Y], dim=1)) if tokens else (X, Y)
    narrow = x[:4].half().double()

    class Batches(IterableDataset):
        def __iter__(self):
            yield narrow.half(), y[:4]
            yield x[4:], y[4:]

    val = (numbers(M, 3, D, seed=1), torch.stack([Y_VAL] * 3, dim=1)) if tokens else (X_VAL, Y_VAL)
    found = ipfast.score(linear, DataLoader(Batches(), batch_size=None), val, progress=False)
    expected = ipfast.score(linear, (torch.cat([narrow, x[4:]]), y), val, progress=False)
    assert_relative_to_largest(found.values, expected.values, FLOAT64_RELATIVE)


def test_features_of_no_width_are_refused():
    with pytest.raises(ipfast.InputError, match="at least one feature a row; got d = 0"):
        ipfast.ops.head_dot(X[:, :0], Y, torch.ones(C, 0), None, torch.ones(C, 0), None)
