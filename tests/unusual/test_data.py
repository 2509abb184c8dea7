"""Data that comes in unusual ways: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import random

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, gradients, numbers, seeded
from scipy.sparse import csr_matrix
from tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import ipfast
from ipfast import Method
from ipfast.data import open_source


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


class Order:
    """A sampler, or a batch sampler, of the user's own, without a length."""

    def __init__(self, order, draw=None):
        self.order, self.draw = order, draw
        self.generator = torch.Generator().manual_seed(3)
        self.numbers, self.old, self.python = np.random.default_rng(3), np.random.RandomState(3), random.Random(3)

    def __iter__(self):
        if self.draw is not None:
            self.draw(self)
        yield from self.order


def batches_of(order):
    return [list(order)[start : start + 4] for start in range(0, len(order), 4)]


OUT_OF_ORDER = {
    "sampler": lambda data: {"sampler": Order(reversed(range(N))), "batch_size": 4},
    "list": lambda data: {"sampler": [1, 0, *range(2, N)], "batch_size": 4},
    "batch sampler": lambda data: {"batch_sampler": Order(reversed(batches_of(range(N))))},
    "tensors": lambda data: {"batch_sampler": Order(torch.randperm(N, generator=torch.Generator()).split(4))},
    "batch sampler over it": lambda data: {"batch_sampler": BatchSampler(Order([*range(1, N), 0]), 4, drop_last=False)},
    "sequential, as a subclass": lambda data: {"sampler": type("Own", (SequentialSampler,), {"__iter__": backwards})(data)},
    "replicas": lambda data: {"sampler": DistributedSampler(data, num_replicas=2, rank=0, shuffle=False), "batch_size": 4},
    "lengths": lambda data: {"sampler": grouped_by_length(), "batch_size": 4},
    "later part": lambda data: {"sampler": range(1, N), "batch_size": 4},
    "sequential over more": lambda data: {"sampler": SequentialSampler(range(N + 1)), "batch_size": 4},
    "twice": lambda data: {"sampler": [*range(N), 0], "batch_size": 4},
    "once": lambda data: {"sampler": iter([1, 0, *range(2, N)]), "batch_size": 4},
    "whole batches": lambda data: {"sampler": Order([[4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10, 11]]), "batch_size": None},
    "slices": lambda data: {"sampler": Order([slice(6, 12), slice(0, 6)]), "batch_size": None},
}


def grouped_by_length():
    transformers = pytest.importorskip("transformers.trainer_pt_utils")
    return transformers.LengthGroupedSampler(4, lengths=list(range(N)), generator=torch.Generator())


def backwards(self):
    return iter(range(N - 1, -1, -1))


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_a_loader_with_another_order_than_its_data_is_refused(name):
    data = TensorDataset(X, Y)
    linear = seeded(lambda: nn.Linear(D, C))
    for train, val in [(DataLoader(data, **OUT_OF_ORDER[name](data)), (X_VAL, Y_VAL)), ((X, Y), None)]:
        val = DataLoader(data, **OUT_OF_ORDER[name](data)) if val is None else val
        with pytest.raises(
            ipfast.InputError,
            match=r"keeps the order of its data, 0, 1, 2, …; its \w+ gives number \d+ at .*Subset\(dataset,",
        ):
            ipfast.score(linear, train, val, progress=False)


IN_ORDER = {
    "sampler": lambda data: {"sampler": Order(range(N)), "batch_size": 5},
    "numpy": lambda data: {"sampler": Order(np.arange(N)), "batch_size": 5},
    "batch sampler": lambda data: {"batch_sampler": Order(torch.arange(N).split(4))},
    "uneven": lambda data: {"batch_sampler": Order([[0, 1, 2], [3], list(range(4, N))])},
    "one replica": lambda data: {"sampler": DistributedSampler(data, num_replicas=1, rank=0, shuffle=False), "batch_size": 4},
    "once": lambda data: {"sampler": iter(range(N)), "batch_size": 5},
    "batches once": lambda data: {"batch_sampler": iter(batches_of(range(N)))},
    "whole batches": lambda data: {"sampler": BatchSampler(SequentialSampler(data), 5, drop_last=False), "batch_size": None},
    "slices": lambda data: {"sampler": Order([slice(0, 6), slice(6, 12)]), "batch_size": None},
    "slices once": lambda data: {"sampler": iter([slice(0, 6), slice(6, 12)]), "batch_size": None},
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_loader_with_the_order_of_its_data_is_read(name):
    data = TensorDataset(X, Y)
    linear = seeded(lambda: nn.Linear(D, C))
    found = ipfast.score(linear, DataLoader(data, **IN_ORDER[name](data)), (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False).values)


def test_a_loader_over_a_subset_has_the_order_of_the_subset():
    order = torch.randperm(N, generator=torch.Generator()).tolist()
    linear = seeded(lambda: nn.Linear(D, C))
    loader = DataLoader(Subset(TensorDataset(X, Y), order), batch_size=5)
    found = ipfast.score(linear, loader, (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False).values[order])


def test_samples_that_are_named_are_read_as_the_sampler_says():
    names = [f"sample {row}" for row in range(N)]
    data = dict(zip(names, zip(X, Y, strict=True), strict=True))
    found = ipfast.score(
        seeded(lambda: nn.Linear(D, C)), DataLoader(data, sampler=names, batch_size=5), (X_VAL, Y_VAL), progress=False
    )
    assert found.values.shape == (N,)


def test_a_look_at_the_order_draws_no_random_numbers():
    def draw(sampler=None):
        own = [] if sampler is None else [sampler.numbers.random(), sampler.old.random_sample(), sampler.python.random()]
        generator = [] if sampler is None else [torch.rand(2, generator=sampler.generator).sum().item()]
        return [torch.rand(2).sum().item(), np.random.rand(), random.random(), *own, *generator]

    sampler = Order(range(N), draw)
    loader = DataLoader(TensorDataset(X, Y), sampler=sampler, batch_size=4)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = draw(Order([]))
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    open_source("score", "train", loader, batch_size=4)
    assert draw(sampler) == expected


def reversed_twice(array):
    """The same numbers, with negative strides."""
    back = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[back])[back]


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_arrays_with_negative_strides(params, batch_size):
    x, y, x_val, y_val = (reversed_twice(part.numpy()) for part in (X, Y, X_VAL, Y_VAL))
    assert all(stride < 0 for part in (x, y, x_val, y_val) for stride in part.strides)
    groups, ids, weight = reversed_twice(np.arange(M) % 2), reversed_twice(np.arange(N)), reversed_twice(np.arange(1.0, C + 1))

    def scored(*pairs, weight, **options):
        loss = ipfast.losses.CrossEntropy(weight=weight)
        linear = seeded(lambda: nn.Linear(D, C))
        return ipfast.score(linear, *pairs, loss=loss, params=params, batch_size=batch_size, progress=False, **options)

    found = scored((x, y), (x_val, y_val), weight=weight, val_groups=groups, ids=ids)
    expected = scored((X, Y), (X_VAL, Y_VAL), weight=weight.tolist(), val_groups=groups.tolist())
    assert torch.equal(found.values, expected.values)
    assert found.ids.tolist() == list(range(N))


def test_one_row_with_negative_strides():
    linear = seeded(lambda: nn.Linear(D, C))
    found = ipfast.score(linear, (X.numpy()[:1][::-1], Y.numpy()[:1][::-1]), (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X[:1], Y[:1]), (X_VAL, Y_VAL), progress=False).values)


def test_batches_with_negative_strides():
    linear = seeded(lambda: nn.Linear(D, C))

    def stacked(samples):
        return tuple(reversed_twice(np.stack(part)) for part in zip(*samples, strict=True))

    data = list(zip(X.numpy(), Y.numpy(), strict=True))
    found = ipfast.score(linear, DataLoader(data, 5, collate_fn=stacked), (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False).values)


MIXED = {
    "float": X[:, 0].numpy(),
    "whole": np.arange(N),
    "bool": np.arange(N) % 3 == 0,
    "half": X[:, 1].numpy().astype(np.float32),
    "small": np.arange(N, dtype=np.uint8),
}


@pytest.mark.parametrize("backend", [None, "numpy_nullable", "pyarrow"])
def test_columns_of_several_dtypes_are_float64(backend):
    if backend == "pyarrow":
        pytest.importorskip("pyarrow")
    table = pandas.DataFrame(MIXED)
    table = table if backend is None else table.convert_dtypes(dtype_backend=backend)
    assert table.to_numpy().dtype == object
    plain = np.stack([column.astype(np.float64) for column in MIXED.values()], axis=1)
    linear = seeded(lambda: nn.Linear(D, C))
    found = ipfast.score(linear, (table, Y), (table[:M], Y_VAL), progress=False)
    assert found.values.dtype == torch.float64
    assert torch.equal(found.values, ipfast.score(linear, (plain, Y), (plain[:M], Y_VAL), progress=False).values)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pandas.array(["a"] * N), r"features to hold numbers; got dtype \w+ in the column 'new'\. Encode it"),
        (pandas.Categorical([1] * N), "features to hold numbers; got dtype category in the column 'new'"),
        (pandas.array([True] * 4 + [None] * (N - 4), dtype="boolean"), "missing values; the column 'new' has one at row 4"),
    ],
)
def test_a_column_that_is_no_numbers_is_named(column, words):
    table = pandas.DataFrame({**MIXED, "new": column})
    with pytest.raises((ipfast.InputError, ipfast.InputTypeError), match=words):
        ipfast.score(seeded(lambda: nn.Linear(D + 1, C)), (table, Y), method="self_tracin", progress=False)
