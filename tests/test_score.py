"""score: against one autograd gradient a sample through the whole model, however the data comes and however it is batched."""

import threading
import time
from dataclasses import replace
from inspect import isfunction

import numpy as np
import oracles
import pandas
import pytest
import torch
from cases import LOSSES, HeadCase
from problems import LONG, ROWS, VALIDATION_ROWS, Problem, Recorded, SmallNet, linear_problem, network_problem
from safetensors.torch import save_file
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_same_rounding
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import ipfast


def expected(problem: Problem, loss: str = "cross_entropy", method: str = "ip", bias: bool = True) -> torch.Tensor:
    """Eq. (2), or the negated self-influence, from per-sample autograd."""
    train = oracles.model_gradients(problem.model, problem.head, list(zip(*problem.train, strict=True)), loss, bias)
    if method == "self_tracin":
        return -train.square().sum(dim=1)
    val = oracles.model_gradients(problem.model, problem.head, list(zip(*problem.val, strict=True)), loss, bias)
    return train @ val.mean(dim=0)


def val_of(problem: Problem, method: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    return problem.val if method == "ip" else None


# Values


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["ip", "self_tracin"])
@pytest.mark.parametrize("loss", LOSSES)
def test_float64_equals_per_sample_autograd_at_a_linear_head(loss, method, bias):
    problem = linear_problem(loss)
    got = ipfast.score(problem.model, problem.train, val_of(problem, method), method=method, loss=loss, include_bias=bias)
    assert got.values.dtype == torch.float64
    assert_relative(got.values, expected(problem, loss, method, bias), FLOAT64_RELATIVE)


@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_float64_equals_per_sample_autograd_through_a_network(method):
    problem = network_problem()
    got = ipfast.score(problem.model, problem.train, val_of(problem, method), method=method)
    assert_relative(got.values, expected(problem, method=method), FLOAT64_RELATIVE)
    assert got.stats["head"] == "fc"


@pytest.mark.parametrize("loss", ["bce_with_logits", "mse"])
def test_one_output_with_targets_without_a_column(loss):
    problem = linear_problem(loss, case=HeadCase("one_output", 23, 7, 1))
    got = ipfast.score(problem.model, (problem.x, problem.y[:, 0]), (problem.x_val, problem.y_val[:, 0]), loss=loss)
    assert_relative(got.values, expected(problem, loss), FLOAT64_RELATIVE)


def test_a_head_without_bias():
    problem = linear_problem()
    head = nn.Linear(problem.head.in_features, problem.head.out_features, bias=False, dtype=torch.float64)
    head.load_state_dict({"weight": problem.head.weight})
    problem = replace(problem, model=head, head=head)
    assert_relative(ipfast.score(head, problem.train, problem.val).values, expected(problem), FLOAT64_RELATIVE)


def test_a_sample_equal_to_the_validation_set_is_beneficial_and_its_flip_is_not():
    """The sign: removing a copy of the only validation sample raises the validation loss."""
    head = nn.Linear(3, 2)
    h, y = torch.ones(2, 3), torch.tensor([0, 1])
    same, flipped = ipfast.score(head, (h, y), (h[:1], y[:1])).values
    assert flipped < 0 < same


def test_the_loss_may_be_an_object_with_another_reduction():
    problem = linear_problem("bce_with_logits")
    total = ipfast.score(problem.model, problem.train, problem.val, loss="bce_with_logits").values
    mean = ipfast.score(problem.model, problem.train, problem.val, loss=ipfast.losses.BCEWithLogits("mean")).values
    assert_relative(mean * problem.head.out_features**2, total, FLOAT64_RELATIVE)


def test_control_loss_is_the_negated_loss_of_each_sample():
    problem = network_problem()
    got = ipfast.score(problem.model, problem.train, method="loss")
    with torch.no_grad():
        pairs = zip(*problem.train, strict=True)
        losses = torch.stack([oracles.sample_loss(problem.model(x[None])[0], y, "cross_entropy") for x, y in pairs])
    assert_relative(got.values, -losses, FLOAT64_RELATIVE)


def test_control_random_is_seeded_and_looks_at_nothing():
    problem = linear_problem()
    features = torch.full_like(problem.x, torch.nan)
    one = ipfast.score(problem.model, (features, problem.y), method="random")
    assert torch.equal(one.values, ipfast.score(problem.model, problem.train, method="random").values)
    other = ipfast.score(problem.model, problem.train, method=ipfast.Control("random", seed=1))
    assert not torch.equal(one.values, other.values)
    assert len(one) == ROWS


def test_control_random_counts_a_stream():
    problem = linear_problem()
    loader = DataLoader(Stream(problem), batch_size=4)
    whole = ipfast.score(problem.model, problem.train, method="random")
    assert torch.equal(ipfast.score(problem.model, loader, method="random").values, whole.values)


@pytest.mark.parametrize("problem", [linear_problem(), network_problem()], ids=["linear", "network"])
def test_a_callable_impact_is_differentiated(problem):
    """f = the largest margin in V, which is no mean over samples."""

    def margin(z, y):
        return (z.logsumexp(dim=1) - z.gather(1, y[:, None])[:, 0]).logsumexp(dim=0)

    got = ipfast.score(problem.model, problem.train, problem.val, impact=margin)
    parameters = [problem.head.weight, problem.head.bias]
    query = torch.autograd.grad(margin(problem.model(problem.x_val), problem.y_val), parameters)
    train = oracles.model_gradients(problem.model, problem.head, list(zip(*problem.train, strict=True)), "cross_entropy")
    assert_relative(got.values, train @ torch.cat([g.flatten() for g in query]), FLOAT64_RELATIVE)


def test_a_callable_impact_over_several_blocks_is_one_function_of_all_of_val():
    problem = linear_problem(case=LONG)
    train = (problem.x[:50], problem.y[:50])
    mean = ipfast.score(problem.model, train, problem.train, impact=nn.functional.cross_entropy)
    assert_relative(mean.values, ipfast.score(problem.model, train, problem.train).values, FLOAT64_RELATIVE)


# Bits


@pytest.mark.parametrize("size", [1, 7, 128])
def test_batch_sizes_agree(size):
    exact = network_problem(rows=130)
    whole = ipfast.score(exact.model, exact.train, exact.val, batch_size=130).values
    assert_relative(ipfast.score(exact.model, exact.train, exact.val, batch_size=size).values, whole, BATCH_RELATIVE)
    problem = network_problem(torch.float32, rows=130)
    whole = ipfast.score(problem.model, problem.train, problem.val, batch_size=130).values
    got = ipfast.score(problem.model, problem.train, problem.val, batch_size=size).values
    assert_same_rounding(got, whole)  # the convolution rounds, so small scores may differ by more of their own size
    loader, val_loader = (DataLoader(TensorDataset(*data), batch_size=size) for data in (problem.train, problem.val))
    assert torch.equal(ipfast.score(problem.model, loader, val_loader).values, got)


@pytest.mark.parametrize("problem", [linear_problem(dtype=torch.float32, case=LONG), network_problem(torch.float32)])
@pytest.mark.parametrize("method", ["ip", "self_tracin", "loss"])
def test_two_runs_give_the_same_bits(method, problem):
    one, other = (ipfast.score(problem.model, problem.train, val_of(problem, method), method=method).values for _ in range(2))
    assert torch.equal(one, other)


class Samples(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __init__(self, problem):
        self.problem = problem

    def __iter__(self):
        return iter(zip(*self.problem.train, strict=True))


def mapped_pair(x, y, folder):
    np.save(folder / "h.npy", x.numpy())
    np.save(folder / "y.npy", y.numpy())
    return np.load(folder / "h.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def path_pair(x, y, folder):
    mapped_pair(x, y, folder)
    return str(folder / "h.npy"), folder / "y.npy"


def npz(x, y, folder):
    np.savez(folder / "data.npz", features=x.numpy(), labels=y.numpy())
    return folder / "data.npz"


def safetensors(x, y, folder):
    save_file({"features": x, "labels": y, "extra": torch.zeros(3)}, folder / "data.safetensors")
    return str(folder / "data.safetensors")


ARRIVALS = {
    "numpy": lambda x, y, _: (x.numpy(), y.numpy()),
    "fortran_order": lambda x, y, _: (np.asfortranarray(x.numpy()), y.numpy()),
    "big_endian": lambda x, y, _: (x.numpy().astype(">f4"), y.numpy().astype(">i8")),
    "every_other_row": lambda x, y, _: (x.repeat_interleave(2, dim=0)[::2], y),
    "list_of_labels": lambda x, y, _: (x, y.tolist()),
    "narrow_labels": lambda x, y, _: (x.numpy(), y.numpy().astype(np.uint8)),
    "pandas": lambda x, y, _: (pandas.DataFrame(x.numpy()), pandas.Series(y.numpy())),
    "mapped": mapped_pair,
    "path_pair": path_pair,
    "npz": npz,
    "safetensors": safetensors,
    "data_set": lambda x, y, _: Samples(x, y),
    "tensor_data_set": lambda x, y, _: TensorDataset(x, y),
    "numpy_data_set": lambda x, y, _: Samples(x.numpy(), y.numpy()),
    "loader": lambda x, y, _: DataLoader(TensorDataset(x, y), batch_size=333),
    "loader_with_workers": lambda x, y, _: DataLoader(TensorDataset(x, y), batch_size=1000, num_workers=2),
    "loader_of_batches": lambda x, y, _: DataLoader(
        [(x[:4000], y[:4000]), (x[4000:], y[4000:])], batch_size=None, shuffle=False
    ),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_the_same_data_gives_the_same_bits_however_it_arrives(method, arrival, tmp_path, monkeypatch):
    """For train and val both: work is cut at fixed row numbers. Blocks that hold less are cut at some more of them."""
    problem = linear_problem(dtype=torch.float32, case=LONG)
    # Validation data that is long too; with train reversed the two are not the same samples.
    train, val = problem.train, (problem.x.flip(0), problem.y.flip(0))
    folders = [tmp_path / "train", tmp_path / "val"]
    for folder in folders:
        folder.mkdir()
    true = ipfast.score(problem.model, train, val if method == "ip" else None, method=method)
    arrived = [ARRIVALS[arrival](*data, folder) for data, folder in zip((train, val), folders, strict=True)]
    monkeypatch.setattr("ipfast.engines.head.BLOCK_BYTES", 1)
    got = ipfast.score(problem.model, arrived[0], arrived[1] if method == "ip" else None, method=method)
    assert got.values.dtype == torch.float32
    assert torch.equal(got.values, true.values)


@pytest.mark.parametrize("arrival", ["numpy", "mapped", "data_set", "tensor_data_set", "loader"])
def test_a_network_gives_the_same_bits_however_images_arrive(arrival, tmp_path):
    problem = network_problem(torch.float32, rows=300)
    true = ipfast.score(problem.model, problem.train, problem.val).values
    got = ipfast.score(problem.model, ARRIVALS[arrival](*problem.train, tmp_path), problem.val).values
    assert torch.equal(got, true)


def test_a_stream_of_unknown_length():
    problem = linear_problem()
    got = ipfast.score(problem.model, DataLoader(Stream(problem), batch_size=4), problem.val)
    assert torch.equal(got.values, ipfast.score(problem.model, problem.train, problem.val).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_features_are_computed_in_float32(dtype):
    problem = linear_problem()
    narrow = replace(problem, x=problem.x.to(dtype), x_val=problem.x_val.to(dtype))
    got = ipfast.score(problem.model, narrow.train, narrow.val).values
    wide = ipfast.score(problem.model, (narrow.x.float(), narrow.y), (narrow.x_val.float(), narrow.y_val)).values
    assert got.dtype == torch.float32
    assert_relative(got, wide, BATCH_RELATIVE)


def test_integer_features_are_taken_as_numbers():
    problem = linear_problem(dtype=torch.float32)
    h = (10 * problem.x).round()
    got = ipfast.score(problem.model, (h.to(torch.int32), problem.y), problem.val).values
    assert torch.equal(got, ipfast.score(problem.model, (h, problem.y), problem.val).values)


# The model


def test_each_training_batch_passes_through_the_model_once():
    problem = network_problem(rows=20)
    model = recorded(problem)
    # check=True runs a few samples more, before.
    ipfast.score(model, problem.train, problem.val, batch_size=8, head="inner.fc", check=False)
    assert model.calls == [8, 3, 8, 8, 4]  # 11 validation samples, 20 training samples


def test_the_head_is_found_with_one_batch_of_val():
    problem = network_problem(rows=20)
    model = recorded(problem)
    got = ipfast.score(model, problem.train, problem.val, batch_size=8, check=False)
    assert got.stats["head"] == "inner.fc"
    assert model.calls == [8, 8, 3, 8, 8, 4]


def recorded(problem):
    return Recorded(problem.model).eval()


def test_the_model_is_left_as_it_was():
    problem = network_problem()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    ipfast.score(problem.model, problem.train, problem.val)
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in problem.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in problem.model.modules())


def test_hooks_are_removed_when_the_model_fails():
    problem = network_problem()
    with pytest.raises(RuntimeError):
        ipfast.score(problem.model, (problem.x[:, :1], problem.y), problem.val, head="fc")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in problem.model.modules())


def test_a_model_with_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5, dtype=torch.float64)

        def forward(self, one, two):
            return self.fc(one + two)

    problem = linear_problem()
    model = Sum()
    model.fc.load_state_dict(problem.head.state_dict())
    train = TensorDataset(problem.x / 4, 3 * problem.x / 4, problem.y)
    got = ipfast.score(model, train, TensorDataset(problem.x_val / 4, 3 * problem.x_val / 4, problem.y_val))
    assert_relative(got.values, expected(problem), FLOAT64_RELATIVE)


# Files


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet", ".safetensors"])
def test_out_receives_the_scores_and_ids(ending, tmp_path):
    problem = linear_problem()
    ids = [f"sample-{i}" for i in range(ROWS)]
    file = tmp_path / f"scores{ending}"
    got = ipfast.score(problem.model, problem.train, problem.val, out=file, ids=ids)
    again = ipfast.Scores.load(file)
    assert torch.equal(again.values, got.values)
    assert got.ids.tolist() == ids
    if ending != ".npy":
        assert again.ids.tolist() == ids
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["head", "train", "val"])
def test_out_is_no_file_that_is_read(name, tmp_path):
    problem = linear_problem()
    head = {key: value.detach() for key, value in problem.head.state_dict().items()}
    pairs = {"train": problem.train, "val": problem.val}
    parts = {"head": head, **{key: {"features": x, "labels": y} for key, (x, y) in pairs.items()}}
    for key, tensors in parts.items():
        save_file(tensors, tmp_path / f"{key}.safetensors")
    files = {key: tmp_path / f"{key}.safetensors" for key in parts}
    before = files[name].read_bytes()
    argument = "model" if name == "head" else name
    sets = {"a": files["val"], "b": problem.val}
    with pytest.raises(ipfast.InputError, match=f"score: expected out to be another file than {argument}; both are"):
        ipfast.score(files["head"], str(files["train"]), sets, out=files[name])
    if name != "val":
        with pytest.raises(ipfast.InputError, match=f"fit: expected out to be another file than {argument}; both are"):
            ipfast.fit(files["head"], files["train"], method="exact", out=str(files[name]))
    assert files[name].read_bytes() == before


@pytest.mark.parametrize("ids", [pandas.Series(["a", "b", "c"]), np.array(["a", "b", "c"], dtype=object), ("a", "b", "c")])
def test_ids_as_pandas_and_numpy_have_them(ids):
    problem = linear_problem()
    got = ipfast.score(problem.model, (problem.x[:3], problem.y[:3]), problem.val, ids=ids)
    assert got.ids.tolist() == ["a", "b", "c"]


BAD_ROW = 17


def poisoned(problem: Problem, value: float) -> torch.Tensor:
    x = problem.x.clone()
    x[BAD_ROW, 3] = value
    return x


@pytest.mark.parametrize("old", [None, b"the scores of last week"])
@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet", ".safetensors"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named_and_nothing_is_written(value, ending, old, tmp_path):
    problem = linear_problem()
    file = tmp_path / f"scores{ending}"
    if old is not None:
        file.write_bytes(old)
    with pytest.raises(
        ipfast.NonFiniteError, match=rf"score: expected finite train features; got .* at row {BAD_ROW}, column 3"
    ):
        ipfast.score(problem.model, (poisoned(problem, value), problem.y), problem.val, out=file)
    assert list(tmp_path.iterdir()) == ([] if old is None else [file])
    if old is not None:
        assert file.read_bytes() == old


@pytest.mark.parametrize("method", ["ip", "self_tracin", "loss"])
@pytest.mark.parametrize("rows", [(0,), (6198,), (2047, 5000)])
def test_the_first_bad_row_is_found_by_every_method_in_every_block(rows, method, tmp_path, monkeypatch):
    monkeypatch.setattr("ipfast.engines.head.BLOCK_BYTES", 1)
    problem = linear_problem(dtype=torch.float32, case=LONG)
    x = problem.x.clone()
    x[list(rows), 1] = torch.nan
    for data in ((x, problem.y), mapped_pair(x, problem.y, tmp_path), DataLoader(TensorDataset(x, problem.y), batch_size=500)):
        with pytest.raises(ipfast.NonFiniteError, match=f"row {rows[0]}, column 1"):
            ipfast.score(problem.model, data, val_of(problem, method), method=method)


def test_a_bad_validation_row_is_named():
    problem = linear_problem()
    x_val = problem.x_val.clone()
    x_val[4, 2] = torch.nan
    with pytest.raises(ipfast.NonFiniteError, match="val features; got nan at row 4, column 2"):
        ipfast.score(problem.model, problem.train, (x_val, problem.y_val))


def test_overflow_is_not_blamed_on_the_features():
    problem = linear_problem(dtype=torch.float32)
    x = problem.x.clone()
    x[5] = 3e38
    with pytest.raises(ipfast.NonFiniteError, match=r"row 5 of train gives .* features are finite"):
        ipfast.score(problem.model, (x, problem.y), problem.val)


class Interrupted(Samples):
    def __getitem__(self, i):
        if i == BAD_ROW:
            raise OSError("the disk is gone")
        return super().__getitem__(i)


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet", ".safetensors"])
def test_a_failure_in_the_middle_leaves_nothing(ending, tmp_path):
    problem = linear_problem()
    with pytest.raises(OSError, match="the disk is gone"):
        ipfast.score(problem.model, Interrupted(*problem.train), problem.val, out=tmp_path / f"scores{ending}", batch_size=4)
    assert list(tmp_path.iterdir()) == []


def test_no_thread_outlives_a_failed_run(tmp_path):
    problem = linear_problem(dtype=torch.float32, case=LONG)
    x = problem.x.clone()
    x[0] = torch.nan
    with pytest.raises(ipfast.NonFiniteError):
        ipfast.score(problem.model, mapped_pair(x, problem.y, tmp_path), problem.val)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ipfast-reader")]


# Bad input: found before any work


def bad(**changes):
    """Arguments of score for the network problem, changed."""
    problem = network_problem()
    arguments = {"model": problem.model, "train": problem.train, "val": problem.val}
    return {**arguments, **{name: change(problem) if isfunction(change) else change for name, change in changes.items()}}


class Softmax(SmallNet):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


BAD = {
    # what is wrong: (changes, error, what the message says: argument, expected, came, what to do)
    "method_unknown": (
        {"method": "self_tracing"},
        ipfast.InputError,
        r"expected method .*; got 'self_tracing'\. Did you mean 'self_tracin'\?",
    ),
    "method_type": ({"method": 3}, ipfast.InputTypeError, "expected method to be one of .*; got int"),
    "loss_unknown": ({"loss": "crossentropy"}, ipfast.InputError, "expected loss .* Did you mean 'cross_entropy'"),
    "loss_type": (
        {"loss": nn.CrossEntropyLoss()},
        ipfast.InputTypeError,
        "expected loss to be a name .*; got CrossEntropyLoss",
    ),
    "impact_unknown": ({"impact": "utilty"}, ipfast.InputError, "expected impact .* Did you mean 'utility'"),
    "impact_type": (
        {"impact": lambda p: 4},
        ipfast.InputTypeError,
        r"expected impact to be a name \(.*utility\), an object of ipfast\.impacts, or a callable.*; got int",
    ),
    "params": ({"params": "most"}, ipfast.InputTypeError, "expected params to be one of 'last', 'all', 'trainable'"),
    "engine": ({"engine": "heed"}, ipfast.InputError, "expected engine .* Did you mean 'head'"),
    "backend_unknown": ({"backend": "tritn"}, ipfast.InputError, "expected backend .* Did you mean 'triton'"),
    "batch_size": ({"batch_size": 0}, ipfast.InputError, "expected batch_size to be a positive integer; got 0"),
    "batch_size_type": ({"batch_size": 2.0}, ipfast.InputTypeError, "expected batch_size to be a positive integer; got float"),
    "device_unknown": ({"device": "gpu"}, ipfast.InputError, "expected device to be one of torch, such as .*; got 'gpu'"),
    "device_type": ({"device": 1.5}, ipfast.InputError, "expected device .*; got 1.5"),
    "val_missing": ({"val": None}, ipfast.InputError, "expected val, .* 'ip' .*; got None.*self_tracin"),
    "val_superfluous": (
        {"method": "self_tracin"},
        ipfast.InputError,
        "expected no val for method 'self_tracin'.* Leave it out",
    ),
    "impact_superfluous": (
        {"method": "loss", "val": None, "impact": lambda p: nn.functional.cross_entropy},
        ipfast.InputError,
        "expected no impact for method 'loss'.* Leave it out",
    ),
    "model_type": (
        {"model": 3},
        ipfast.InputTypeError,
        "expected model to be an nn.Module that ends in an nn.Linear.*; got int",
    ),
    "model_path": (
        {"model": "missing.npz"},
        ipfast.MissingFileError,
        r"expected head to be a file; 'missing\.npz' does not exist",
    ),
    "train_mode_dropout": (
        {"model": lambda p: p.model.train() and p.model},
        ipfast.InputError,
        r"expected model in eval mode; .* is in train mode.* Call model\.eval\(\)",
    ),
    "head_unknown": ({"head": "fd"}, ipfast.InputError, "expected head to name a layer .* no 'fd'. Its linear layers are: fc"),
    "head_not_linear": (
        {"head": "conv"},
        ipfast.InputTypeError,
        "expected the head to be an nn.Linear; 'conv' is a Conv2d. Its linear layers are: fc",
    ),
    "train_type": (
        {"train": lambda p: object()},
        ipfast.InputTypeError,
        r"expected train to be a pair \(features, labels\).*; got object",
    ),
    "train_alone": (
        {"train": lambda p: p.x},
        ipfast.InputTypeError,
        r"expected train to be a pair \(features, labels\).*; got Tensor",
    ),
    "train_dictionary": (
        {"train": lambda p: {"x": p.x, "y": p.y}},
        ipfast.InputTypeError,
        "expected train to be a pair .*; got dict",
    ),
    "train_triple": ({"train": lambda p: (p.x, p.y, p.y)}, ipfast.InputError, "expected train to be a pair .*; got 3 elements"),
    "train_missing": (
        {"train": "missing.npz"},
        ipfast.MissingFileError,
        "expected train to be a file; 'missing.npz' does not exist",
    ),
    "train_folder": ({"train": "."}, ipfast.InputError, "expected train to be a file; '.' is a folder"),
    "train_strings": (
        {"train": lambda p: (np.array([["a", "b"]] * ROWS), p.y)},
        ipfast.InputTypeError,
        "expected train features to hold numbers; got dtype <U1. Encode",
    ),
    "train_empty": (
        {"train": lambda p: (p.x[:0], p.y[:0])},
        ipfast.InputError,
        "expected at least one sample in train; it is empty",
    ),
    "train_empty_data_set": (
        {"train": lambda p: TensorDataset(p.x[:0], p.y[:0])},
        ipfast.InputError,
        "expected at least one sample in train; it is empty",
    ),
    "val_empty": ({"val": lambda p: (p.x[:0], p.y[:0])}, ipfast.InputError, "expected at least one sample in val; it is empty"),
    "rows_differ": (
        {"train": lambda p: (p.x, p.y[:-1])},
        ipfast.InputError,
        f"expected as many labels as features in train; got {ROWS} rows of features and {ROWS - 1} labels. Check",
    ),
    "val_rows_differ": (
        {"val": lambda p: (p.x_val, p.y)},
        ipfast.InputError,
        f"expected as many labels as features in val; got {VALIDATION_ROWS} rows of features and {ROWS} labels. Check",
    ),
    "shuffling": (
        {"train": lambda p: DataLoader(TensorDataset(*p.train), shuffle=True)},
        ipfast.InputError,
        r"expected train to be a DataLoader that keeps the order of its data; it shuffles \(RandomSampler\).* shuffle=False",
    ),
    "val_shuffling": (
        {"val": lambda p: DataLoader(TensorDataset(*p.val), shuffle=True)},
        ipfast.InputError,
        "expected val to be a DataLoader that keeps the order",
    ),
    "drop_last": (
        {"train": lambda p: DataLoader(TensorDataset(*p.train), batch_size=8, drop_last=True)},
        ipfast.InputError,
        f"expected train .* drop_last=True leaves out {ROWS % 8} of {ROWS}. Build it with drop_last=False",
    ),
    "out_ending": ({"out": "scores.txt"}, ipfast.InputError, "expected out to end in one of .*npy.*; got 'scores.txt'"),
    "out_folder": (
        {"out": "no/such/folder/scores.npy"},
        ipfast.MissingFileError,
        "expected the folder of out to exist; .* Create it",
    ),
    "ids_count": ({"ids": ["a"]}, ipfast.InputError, rf"expected ids to be {ROWS} numbers or strings.*; got shape \[1\]"),
    "ids_type": ({"ids": lambda p: [b"a"] * ROWS}, ipfast.InputError, r"expected ids to be .* dtype \|S1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_model_runs(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, error, message = BAD[case]
    arguments = bad(**changes)
    calls = []
    if isinstance(arguments["model"], nn.Module):
        arguments["model"].register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=message) as caught:
        ipfast.score(**{"out": tmp_path / "scores.npy", **arguments})
    assert str(caught.value).startswith("score"), "the message says where"
    assert not calls
    assert list(tmp_path.iterdir()) == []


LABELS = {
    "too_large": (lambda y: y + 2, ipfast.InputError, r"expected labels in 0\.\.3 for 4 classes; got 5 at row \d+"),
    "negative": (lambda y: y - 1, ipfast.InputError, r"expected labels in 0\.\.3 for 4 classes; got -1 at row \d+"),
    "one_based": (
        lambda y: y + 1,
        ipfast.InputError,
        r"expected labels in 0\.\.3 for 4 classes; got 4 at row \d+. Are the labels one-based\?",
    ),
    "floats": (
        lambda y: y.double(),
        ipfast.InputTypeError,
        r"expected integer labels for cross_entropy; got torch.float64. .*\.long\(\)",
    ),
    "booleans": (lambda y: y > 1, ipfast.InputTypeError, "expected integer labels for cross_entropy; got torch.bool"),
    "a_column": (
        lambda y: y[:, None],
        ipfast.InputError,
        r"expected labels of shape \[\d+\], one class a row of features; got",
    ),
    "strings": (
        lambda y: np.array(["cat"] * len(y)),
        ipfast.InputError,
        "expected labels as numbers; got <U3. Encode class names",
    ),
}


@pytest.mark.parametrize("argument", ["train", "val"])
@pytest.mark.parametrize("case", LABELS)
def test_bad_labels_are_refused_before_the_pass(case, argument, tmp_path):
    """The model may have run once, on the batch with which its head is found; a named head needs not even that."""
    change, error, message = LABELS[case]
    problem = network_problem()
    data = {"train": problem.train, "val": problem.val}
    x, y = data[argument]
    data[argument] = (x, change(y))
    model = recorded(problem)
    with pytest.raises(error, match=rf"score, {argument}: {message}"):
        ipfast.score(model, **data, head="inner.fc", out=tmp_path / "scores.npy")
    assert model.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "got"),
    [(lambda h: h[:, :-1], r"\[\d+, 11\]"), (lambda h: h[:, None, None], r"\[\d+, 1, 1, 12\]. .* \[N, T, 12\]")],
)
def test_features_that_do_not_fit_the_head_are_refused(change, got, argument):
    problem = linear_problem()
    data = {"train": problem.train, "val": problem.val}
    data[argument] = (change(data[argument][0]), data[argument][1])
    with pytest.raises(
        ipfast.InputError, match=rf"expected {argument} features of shape \[N, 12\] for a head of weight \[5, 12\]; got {got}"
    ):
        ipfast.score(problem.model, **data)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("bce_with_logits", torch.full((ROWS, 5), 2.0), "expected labels between 0 and 1 .* got 2..2, first at row 0"),
        ("bce_with_logits", torch.full((ROWS, 5), torch.nan), "expected labels between 0 and 1"),
        ("mse", torch.full((ROWS, 5), torch.inf), "expected finite labels for mse; got NaN or infinity at row 0"),
        ("mse", torch.zeros(ROWS, 4), rf"expected labels of shape \[{ROWS}, 5\]"),
        ("mse", torch.zeros(ROWS), rf"expected labels of shape \[{ROWS}, 5\]"),
    ],
)
def test_bad_targets_are_refused(loss, labels, message):
    problem = linear_problem(loss)
    with pytest.raises(ipfast.InputError, match=message):
        ipfast.score(problem.model, (problem.x, labels), problem.val, loss=loss)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_head_that_is_not_finite_is_refused(name):
    problem = linear_problem()
    with torch.no_grad():
        getattr(problem.head, name).view(-1)[3] = torch.nan
    with pytest.raises(ipfast.InputError, match=f"expected a finite {name} of the head; got NaN or infinity"):
        ipfast.score(problem.model, problem.train, problem.val)


def test_a_model_that_does_not_end_in_a_linear_layer_is_refused():
    problem = network_problem()
    model = Softmax().double().eval()
    with pytest.raises(ipfast.InputError, match=r"ends otherwise \(linear layers that ran: fc\)\. Leave out a final softmax"):
        ipfast.score(model, problem.train, problem.val)
    assert len(ipfast.score(model, problem.train, problem.val, head="fc")) == ROWS  # the way out that the message names


def test_cpp_and_reference_agree_and_say_who_computed():
    problem = linear_problem()
    reference = ipfast.score(problem.model, problem.train, problem.val, backend="reference")
    assert reference.backend == "reference"
    chosen = ipfast.score(problem.model, problem.train, problem.val)
    assert chosen.backend == ipfast.select_backend().name
    assert chosen.stats["backend_reason"] == ipfast.select_backend().reason
    assert_relative(chosen.values, reference.values, FLOAT64_RELATIVE)


def test_a_bad_label_in_a_loader_names_its_batch(tmp_path):
    problem = linear_problem()
    y = problem.y.clone()
    y[10] = 9
    loader = DataLoader(TensorDataset(problem.x, y), batch_size=8)
    with pytest.raises(ipfast.InputError, match=r"train batch from row 8: expected labels in 0\.\.4 .* got 9 at row 2"):
        ipfast.score(problem.model, loader, problem.val, out=tmp_path / "scores.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("claimed", [ROWS - 1, ROWS + 3])
def test_a_loader_that_gives_another_number_of_samples_than_its_length_is_refused(claimed):
    """Otherwise the scores of samples that never came would be whatever was in memory."""

    class Sampler:
        def __iter__(self):
            return iter(range(ROWS))

        def __len__(self):
            return claimed

    problem = linear_problem()
    loader = DataLoader(TensorDataset(*problem.train), batch_size=8, sampler=Sampler())
    with pytest.raises(ipfast.InputError, match=f"expected {claimed} samples, the length of train"):
        ipfast.score(problem.model, loader, problem.val)


def test_a_batch_sampler_of_the_users_own():
    problem = linear_problem()
    loader = DataLoader(TensorDataset(*problem.train), batch_sampler=[[0, 1, 2], [3], [4, 5]])
    whole = ipfast.score(problem.model, problem.train, problem.val).values
    assert torch.equal(ipfast.score(problem.model, loader, problem.val).values, whole[:6])


def test_batches_with_more_than_a_bare_head_takes():
    problem = linear_problem()
    with pytest.raises(ipfast.InputError, match=r"expected batches \(features, labels\) for a linear head; got 2 inputs"):
        ipfast.score(problem.model, TensorDataset(problem.x, problem.x, problem.y), problem.val)


# Warnings


@pytest.mark.parametrize(
    "same",
    [
        lambda p, _: (p.train, p.train),
        lambda p, _: (p.train, (p.x, p.y)),
        lambda p, _: (p.train, (p.x.numpy(), p.y.numpy())),
        lambda p, folder: (npz(*p.train, folder), str(npz(*p.train, folder))),
        lambda p, folder: (path_pair(*p.train, folder), path_pair(*p.train, folder)),
        lambda p, _: (frame := pandas.DataFrame(p.x.numpy())) is not None and ((frame, p.y), (frame, p.y)),
        lambda p, _: (data := TensorDataset(*p.train), DataLoader(data, batch_size=4)),
        lambda p, _: (DataLoader(data := TensorDataset(*p.train), batch_size=3), DataLoader(data, batch_size=4)),
    ],
)
def test_val_that_is_train_warns(same, tmp_path):
    problem = linear_problem()
    train, val = same(problem, tmp_path)
    with pytest.warns(ipfast.IpfastWarning, match="val is the training data itself.*Pass clean held-out data"):
        ipfast.score(problem.model, train, val)
    ipfast.score(problem.model, train, val, check=False)  # warnings are errors here


def test_val_beside_train_does_not_warn():
    problem = linear_problem()
    data = TensorDataset(*problem.train)
    ipfast.score(problem.model, (problem.x[5:], problem.y[5:]), (problem.x[:5], problem.y[:5]))
    ipfast.score(problem.model, Subset(data, range(9)), Subset(data, range(9, ROWS)))


# A stored query in place of val


def test_a_stored_query_gives_the_same_bits():
    problem = network_problem()
    query = ipfast.query(problem.model, problem.val)
    got = ipfast.score(problem.model, problem.train, query)
    true = ipfast.score(problem.model, problem.train, problem.val)
    assert torch.equal(got.values, true.values)
    assert got.method == "ip"
    assert got.stats["M"] == VALIDATION_ROWS


@pytest.mark.parametrize(
    "options",
    [
        {"method": "self_tracin"},
        {"loss": "mse"},
        {"impact": nn.functional.cross_entropy},
        {"head": "fc"},
        {"include_bias": False},
    ],
)
def test_what_a_stored_query_carries_cannot_be_given_again(options):
    problem = linear_problem()
    query = ipfast.query(problem.model, problem.val)
    with pytest.raises(ipfast.InputError, match=f"expected no {next(iter(options))} beside a stored Query.* Leave it out"):
        ipfast.score(problem.model, problem.train, query, **options)


def test_a_query_for_another_head_is_refused():
    query = ipfast.query(linear_problem().model, linear_problem().val)
    other = linear_problem(case=HeadCase("other", 20, 12, 3))
    with pytest.raises(
        ipfast.InputError, match=r"expected a query for a head of weight \[3, 12\]; this one .* \[5, 12\]. Make it again"
    ):
        ipfast.score(other.model, other.train, query)


# What is told


def test_stats_say_what_was_done():
    problem = linear_problem()
    got = ipfast.score(problem.model, problem.train, problem.val)
    val = oracles.model_gradients(problem.model, problem.head, list(zip(*problem.val, strict=True)), "cross_entropy")
    assert got.stats["query_norm"] == pytest.approx(float(val.mean(dim=0).norm()), rel=FLOAT64_RELATIVE)
    assert got.stats["M"] == VALIDATION_ROWS
    assert got.stats["N"] == ROWS
    assert got.stats["val_class_counts"] == torch.bincount(problem.y_val, minlength=5).tolist()
    assert got.stats["loss"] == "cross_entropy"
    assert got.stats["impact"] == "utility"
    assert got.stats["query_seconds"] >= 0
    assert got.stats["score_seconds"] >= 0
    assert got.engine == "head"


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_over_a_second_shows_rate_and_remaining_time(progress, capsys):
    class Slow(Samples):
        def __getitem__(self, i):
            time.sleep(0.06)
            return super().__getitem__(i)

    problem = linear_problem()
    ipfast.score(problem.model, Slow(*problem.train), problem.val, batch_size=1, progress=progress)
    shown = capsys.readouterr().err
    assert ("samples/s" in shown and "ip:" in shown) == progress
