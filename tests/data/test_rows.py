"""Rows: blocks of an array, and memory that does not grow with the file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import MAPPED_MEMORY

import ipfast
from ipfast.data import Rows


def saved(array, folder):
    np.save(folder / "a.npy", array)
    return np.load(folder / "a.npy", mmap_mode="r")


ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)


@given(st.integers(1, 25))
def test_blocks_are_the_rows_in_order(size):
    starts = [start for start, _ in Rows("f", "x", ARRAY).blocks(size)]
    assert starts == list(range(0, 20, size))
    assert torch.equal(torch.cat([block for _, block in Rows("f", "x", ARRAY).blocks(size)]), torch.from_numpy(ARRAY))


@pytest.mark.parametrize("size", [1, 3, 7, 10, 20, 50])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i8", "|u1"])
def test_mapped_blocks_are_the_rows_in_order(dtype, size, tmp_path):
    mapped = saved(ARRAY.astype(dtype), tmp_path)
    rows = Rows("f", "x", mapped)
    assert not rows.resident
    # A block is valid until the next is asked for.
    found = [(start, block.clone()) for start, block in rows.blocks(size)]
    assert [start for start, _ in found] == list(range(0, 20, size))
    assert torch.equal(torch.cat([block for _, block in found]).double(), torch.from_numpy(ARRAY).double())


def test_a_slice_of_a_map_is_a_map(tmp_path):
    rows = Rows("f", "x", saved(ARRAY, tmp_path)[5:, 1:])
    assert not rows.resident
    assert torch.equal(torch.cat([block.clone() for _, block in rows.blocks(4)]), torch.from_numpy(ARRAY[5:, 1:].copy()))


def test_changes_to_a_copy_on_write_map_are_seen_and_kept(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped[19, 2] = -1
    for _ in range(2):
        assert [block.clone() for _, block in Rows("f", "x", mapped).blocks(8)][-1][-1, -1] == -1


def test_resident_rows_are_not_copied():
    tensor = torch.from_numpy(ARRAY)
    for array in (tensor, ARRAY):
        ((_, block),) = Rows("f", "x", array).blocks(100)
        assert block.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (3, ipfast.InputTypeError, "f: expected x to be an array or tensor; got int"),
        (np.array(["a"]), ipfast.InputTypeError, "f: expected x to hold numbers; got dtype <U1"),
        (np.array([None]), ipfast.InputTypeError, "f: expected x to hold numbers; got dtype object"),
        (np.zeros(2, dtype=np.complex64), ipfast.InputTypeError, "f: expected x to hold numbers; got dtype complex64"),
    ],
)
def test_what_is_not_an_array_of_numbers_is_refused(array, error, message):
    with pytest.raises(error, match=message):
        Rows("f", "x", array)


PROGRAM = """
import sys
import numpy as np, torch
import ipfast

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

head = torch.nn.Linear(512, 10)
features = np.load(sys.argv[1], mmap_mode="r")
labels = np.zeros(len(features), dtype=np.int64)
h = torch.zeros(100, 512)
val = (h, torch.zeros(100, dtype=torch.int64))
ipfast.score(head, (h + 1, val[1]), val)  # whatever the first call loads belongs to the baseline
before = peak()
scores = ipfast.score(head, (features, labels), val)
assert len(scores) == len(features)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_scoring_a_mapped_file_keeps_memory_bounded(tmp_path):
    """Touched pages of a map count as resident until the system needs them, so they must be given back."""
    file = tmp_path / "features.npy"
    block = np.random.default_rng(0).standard_normal((8192, 512)).astype(np.float32)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(24 * len(block), 512))
    for start in range(0, len(array), len(block)):
        array[start : start + len(block)] = block
    assert array.nbytes > 2 * MAPPED_MEMORY, "the file must be larger than the bound, or the test cannot fail"
    array.flush()
    del array
    done = subprocess.run([sys.executable, "-c", PROGRAM, file], capture_output=True, text=True, check=True)
    file.unlink()
    assert int(done.stdout) < MAPPED_MEMORY, f"{int(done.stdout) / 2**20:.0f} MiB"
