"""Readers of .npy, .npz and .safetensors."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ipfast
from ipfast.data import read_arrays, read_head, read_pair
from ipfast.data.files import read_named, read_npy

H = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8"])
def test_safetensors_arrays_stay_on_disk(dtype, tmp_path):
    values = torch.from_numpy(H.astype(dtype))
    save_file({"first": torch.zeros(3), "features": values, "empty": torch.zeros(0, 3)}, tmp_path / "a.safetensors")
    found = read_named("f", "train", tmp_path / "a.safetensors", ("features", "first", "empty"))
    assert isinstance(found["features"], np.memmap)
    assert np.array_equal(found["features"], values.numpy())
    assert found["empty"].shape == (0, 3)


def test_safetensors_of_a_dtype_that_numpy_lacks(tmp_path):
    values = torch.from_numpy(H).bfloat16()
    save_file({"features": values, "labels": torch.from_numpy(Y)}, tmp_path / "a.safetensors")
    features, labels = read_arrays("f", "train", tmp_path / "a.safetensors")
    assert torch.equal(features, values)
    assert np.array_equal(labels, Y)


def test_a_pair_of_arrays_or_paths(tmp_path):
    np.save(tmp_path / "h.npy", H)
    np.savez(tmp_path / "a.npz", features=H, labels=Y)
    for data in ((H, Y), (tmp_path / "h.npy", Y), tmp_path / "a.npz", str(tmp_path / "a.npz")):
        features, labels = read_pair("f", "train", data)
        assert np.array_equal(features, H)
        assert np.array_equal(labels, Y)
    assert isinstance(read_npy("f", "train", tmp_path / "h.npy"), np.memmap)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_head_from_a_file(dtype, bias, tmp_path):
    weight, b = torch.randn(4, 3).to(dtype), torch.randn(4).to(dtype)
    save_file({"weight": weight, **({"bias": b} if bias else {})}, tmp_path / "head.safetensors")
    head = read_head("f", tmp_path / "head.safetensors")
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, b) if bias else head.bias is None
    assert not head.weight.requires_grad


def test_a_head_from_npz_scores_like_the_layer_itself(tmp_path):
    layer = torch.nn.Linear(3, 2)
    file = tmp_path / "head.npz"
    np.savez(file, weight=layer.weight.detach().numpy(), bias=layer.bias.detach().numpy())
    val = (H[:2] + 1, Y[:2])
    assert torch.equal(ipfast.score(file, (H, Y), val).values, ipfast.score(layer, (H, Y), val).values)


def save(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


HEADS = {
    "vector": ({"weight": np.zeros(3)}, r"expected weight of shape \[C, d\].*'a\.npz' has \[3\]"),
    "integers": ({"weight": np.zeros((2, 3), dtype=int)}, "expected weight .*floating-point dtype in head.* int64"),
    "bias_matrix": ({"weight": np.zeros((2, 3)), "bias": np.zeros((2, 1))}, r"expected bias of shape \[C\]"),
    "bias_length": (
        {"weight": np.zeros((2, 3)), "bias": np.zeros(3)},
        "expected a bias of 2 classes like the weight in head; got 3",
    ),
    "names": ({"W": np.zeros((2, 3))}, r"expected head to hold 'weight'; 'a\.npz' holds W\. Rename the array"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_file_that_is_no_head_is_refused(case, tmp_path):
    arrays, message = HEADS[case]
    with pytest.raises(ipfast.InputError, match=f"score: {message}"):
        ipfast.score(save(tmp_path, **arrays), (H, Y), (H, Y))


def test_objects_are_never_unpickled(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (print, ("code ran",))

    np.save(tmp_path / "a.npy", np.array([Exploit()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", features=np.array([Exploit()], dtype=object), labels=Y)
    with pytest.raises(
        ipfast.InputError, match=r"expected train to be an \.npy file of numbers; .* cannot be read .*numeric dtype"
    ):
        read_npy("f", "train", tmp_path / "a.npy")
    with pytest.raises(ipfast.InputError, match=r"expected train to be an \.npz file of numbers"):
        read_arrays("f", "train", tmp_path / "a.npz")


BROKEN = {
    "text.npy": (b"hello", r"expected train to hold features and labels; 'text\.npy' is a single array\. Pass a pair"),
    "text.npz": (b"hello", r"expected train to be an \.npz file of numbers"),
    "cut.npz": (b"PK\x03\x04", r"expected train to be an \.npz file of numbers"),
    "array.npz": (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }".ljust(117) + b"\n",
        r"expected train to be an \.npz file of numbers.*single array",
    ),
    "text.safetensors": (b"hello", r"expected train to be a \.safetensors file; .* cannot be read"),
    "empty.safetensors": (b"", r"expected train to be a \.safetensors file; .* cannot be read"),
    "data.csv": (b"1,2", r"expected train to be an \.npz or \.safetensors file; got 'data\.csv'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ipfast.InputError, match=message):
        read_arrays("f", "train", tmp_path / name)


def test_a_broken_npy_is_refused(tmp_path):
    for content in (b"", b"hello", b"\x93NUMPY\x01\x00"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ipfast.InputError, match=r"expected train to be an \.npy file of numbers"):
            read_npy("f", "train", tmp_path / "a.npy")


def test_a_cut_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((100, 100)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-800])
    with pytest.raises(ipfast.InputError, match=r"expected train to be an \.npy file of numbers"):
        read_npy("f", "train", tmp_path / "a.npy")


def test_an_npy_without_rows_is_empty(tmp_path):
    np.save(tmp_path / "h.npy", np.zeros((0, 3), dtype=np.float32))
    np.save(tmp_path / "y.npy", np.zeros(0, dtype=np.int64))
    with pytest.raises(ipfast.InputError, match="expected at least one sample in train; it is empty"):
        ipfast.score(torch.nn.Linear(3, 2), (tmp_path / "h.npy", tmp_path / "y.npy"), (H, Y))


def test_a_missing_array_is_named(tmp_path):
    with pytest.raises(ipfast.InputError, match=r"expected train to hold 'labels'; 'a\.npz' holds features, target\. Rename"):
        read_arrays("f", "train", save(tmp_path, features=H, target=Y))
