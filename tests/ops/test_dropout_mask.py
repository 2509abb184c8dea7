"""dropout_mask: the same indices from every implementation, the golden ones, and the distribution they promise."""

import importlib
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import MASK_P_VALUE

import ipfast
from ipfast import dispatch
from ipfast.ops import _philox
from ipfast.ops.dropout_mask import BLOCK, Mask, numpy_reference, torch_reference

MODULE = importlib.import_module("ipfast.ops.dropout_mask")
EXTENSION = dispatch.has_extension()
IMPLEMENTATIONS = ("numpy", "torch", *(("cpp",) if EXTENSION else ()))
PUBLIC = ("auto", "reference", *(("cpp",) if EXTENSION else ()))
RATES = (0.0, 1e-12, 1e-6, 0.01, 0.25, 0.5, 0.7, 0.999)
SHAPES = ((1,), (7, 3), (BLOCK,), (BLOCK + 1,), (3, 5000), (16 * BLOCK,), (17, 4099), (40, 128, 5, 5))


def indices(implementation, name, shape, rate, seed, member, threads=1):
    mask = Mask(name.encode(), int(np.prod(shape, dtype=np.int64)), rate, seed, member)
    if implementation == "numpy":
        return numpy_reference(mask)
    if implementation == "torch":
        return torch_reference(mask).numpy()
    return dispatch.extension().dropout_mask(mask.name, mask.elements, rate=rate, seed=seed, member=member, threads=threads)


def words(implementation, counter, key):
    """The four words of a counter, and those of the next one of its block."""
    c0, c1, c2, c3 = counter
    seed = key[0] | key[1] << 32
    if implementation == "numpy":
        return _philox.numpy_words([c0, c0 + 1], c1, c2, c3, seed).flatten().tolist()
    if implementation == "torch":
        return _philox.torch_words(torch.tensor([c0, c0 + 1]), torch.tensor([c1]), c2, c3, seed).flatten().tolist()
    return dispatch.extension().philox4x32(counter, key)[:8]


ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("counter", "key", "known"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_its_known_answers(counter, key, known, implementation):
    got = words(implementation, counter, key)
    assert " ".join(f"{word:08x}" for word in got[:4]) == known
    if counter[0] != ONES:  # the lane beside is the counter beside
        assert got[4:] == words(implementation, (counter[0] + 1, *counter[1:]), key)[:4]


def test_name_hash():
    assert _philox.fnv1a32(b"weight") == 0x50A09EB9
    assert _philox.fnv1a32(b"") == 0x811C9DC5


GOLDEN = [  # name, shape, rate, seed, member; count, first ten, last, sum
    ("weight", (10, 512), 0.01, 0, 0, 51, "37 179 195 204 535 685 711 859 987 1054", 5020, 124921),
    ("weight", (10, 512), 0.01, 0, 1, 60, "17 147 167 184 366 425 478 484 503 583", 5056, 137312),
    ("fc.weight", (100, 512), 0.01, 2**40 + 12345, 3, 551, "36 58 59 75 172 333 356 522 795 1060", 51168, 13880868),
    ("weight", (10, 512), 0.7, 0, 0, 3579, "0 2 3 4 8 9 10 11 12 13", 5119, 9162012),
    ("größe", (3, 5000), 0.25, 7, 2, 3614, "0 9 10 15 24 27 28 31 34 37", 14997, 26895697),
    ("w", (1, 40000), 0.0005, 1, 0, 15, "1203 6727 11950 12753 14725 21921 22293 25116 25500 28060", 38059, 335758),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden[0]}-{golden[2]}-{golden[4]}")
def test_golden_masks(golden, implementation):
    """Written down from a script that shares no code with ipfast: a change of any bit is a change of published scores."""
    *arguments, count, first, last, total = golden
    got = indices(implementation, *arguments)
    assert (len(got), " ".join(map(str, got[:10])), got[-1], got.sum()) == (count, first, last, total)


@pytest.mark.parametrize("backend", PUBLIC)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden[0]}-{golden[2]}-{golden[4]}")
def test_every_backend_returns_them(golden, backend):
    *arguments, count, _, last, total = golden
    got = ipfast.dropout_mask(*arguments, backend=backend)
    assert got.dtype == torch.int64
    assert (len(got), got[-1], got.sum()) == (count, last, total)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_implementations_agree(shape, rate):
    first = indices("numpy", "a.b", shape, rate, 2**64 - 1, 2**32 - 1)
    assert first.dtype == np.int64
    assert np.array_equal(first, np.unique(first)), "not ascending"
    assert not len(first) or (first[0] >= 0 and first[-1] < np.prod(shape))
    for implementation in IMPLEMENTATIONS[1:]:
        np.testing.assert_array_equal(indices(implementation, "a.b", shape, rate, 2**64 - 1, 2**32 - 1), first)


@pytest.mark.skipif(not EXTENSION, reason="needs the C++ extension")
@pytest.mark.parametrize("rate", RATES)
def test_threads_change_nothing(rate):
    shape = (2**21 + 5,)
    one = indices("cpp", "w", shape, rate, 3, 1)
    for threads in (2, 3, 64):
        np.testing.assert_array_equal(indices("cpp", "w", shape, rate, 3, 1, threads), one)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rate", [0.01, 0.7])
def test_blocks_do_not_depend_on_the_size(rate, implementation):
    """A shorter parameter of the same name has the longer one's mask, cut off."""
    whole = indices(implementation, "w", (5 * BLOCK,), rate, 0, 0)
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 77):
        np.testing.assert_array_equal(indices(implementation, "w", (size,), rate, 0, 0), whole[whole < size])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [75975704, 470524461], ids=str)
def test_the_longest_gap_draws_again(seed, implementation):
    """T_K = 1 at every rate, so that only the word 0 is below it, once in 2^32 words. Here it is the fourth draw."""
    rate, name = 0.01, "weight"
    drawn = _philox.numpy_words(np.arange(2), 0, 0, _philox.fnv1a32(b"weight"), seed).flatten().tolist()
    assert drawn[3] == 0, "the seed no longer exercises the branch"
    q, longest = 1 - rate, 0
    while q * 2**32 >= 1:
        q, longest = q * (1 - rate), longest + 1

    def gap(u):
        q, k = 1 - rate, 0
        while k < longest and u < int(q * 2**32):
            q, k = q * (1 - rate), k + 1
        return k

    assert longest == 2206
    position, expected = 0, []
    for j in (0, 1, 2):
        position += gap(drawn[j])
        expected.append(position)
        position += 1
    expected.append(position + longest + gap(drawn[4]))
    assert indices(implementation, name, (BLOCK,), rate, seed, 0)[:4].tolist() == expected


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.7, 0.999])
def test_the_observed_rate_passes_a_chi_square_test(rate):
    n = 4_000_000
    got = len(ipfast.dropout_mask("rate", (n,), rate, 11, 0))
    p_value = stats.chisquare([got, n - got], [n * rate, n * (1 - rate)]).pvalue
    assert p_value > MASK_P_VALUE, f"{got} of {n} at rate {rate}"


def geometric_p_value(gaps, rate):
    """Of the hypothesis P(gap = k) = (1 − rate)^k rate, in classes of at least about 100 expected gaps."""
    edges = [0]
    while len(gaps) * (1 - rate) ** (edges[-1] + 1) > 200:
        width = 1
        while len(gaps) * (1 - rate) ** edges[-1] * (1 - (1 - rate) ** width) < 100:
            width += 1
        edges.append(edges[-1] + width)
    observed = np.bincount(np.searchsorted(edges, gaps, side="right") - 1, minlength=len(edges))
    beyond = (1 - rate) ** np.array([*edges, np.inf])
    return stats.chisquare(observed, len(gaps) * -np.diff(beyond)).pvalue


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.7])
def test_the_gaps_pass_a_chi_square_test(rate):
    """Across block borders too, where the skips begin anew: a geometric gap has no memory."""
    mask = ipfast.dropout_mask("gaps", (4_000_000,), rate, 5, 0).numpy()
    p_value = geometric_p_value(np.diff(mask) - 1, rate)
    assert p_value > MASK_P_VALUE


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.7])
def test_dropped_entries_are_spread_evenly_over_a_block(rate):
    mask = ipfast.dropout_mask("even", (8_000_000,), rate, 6, 0).numpy()
    mask = mask[mask < 8_000_000 // BLOCK * BLOCK]
    counts = np.bincount(mask % BLOCK // 64, minlength=64)
    blocks = 8_000_000 // BLOCK
    variance = blocks * 64 * rate * (1 - rate)
    statistic = ((counts - blocks * 64 * rate) ** 2).sum() / variance
    assert stats.chi2.sf(statistic, 64) > MASK_P_VALUE


OTHERS = {
    "member": ("w", 0, 1),
    "far member": ("w", 0, 2**31),
    "seed": ("w", 1, 0),
    "upper half of the seed": ("w", 2**32, 0),
    "name": ("v", 0, 0),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("rate", [0.01, 0.25, 0.7])
def test_masks_of_other_members_seeds_and_names_are_independent(rate, other):
    """Each entry is dropped in both with probability rate², and so on: a chi-square test of the 2 × 2 table."""
    n = 1_000_000
    name, seed, member = OTHERS[other]
    a = ipfast.dropout_mask("w", (n,), rate, 0, 0).numpy()
    b = ipfast.dropout_mask(name, (n,), rate, seed, member).numpy()
    both = len(np.intersect1d(a, b, assume_unique=True))
    observed = [both, len(a) - both, len(b) - both, n - len(a) - len(b) + both]
    expected = [n * rate**2, n * rate * (1 - rate), n * rate * (1 - rate), n * (1 - rate) ** 2]
    assert stats.chisquare(observed, expected).pvalue > MASK_P_VALUE


def test_blocks_are_independent_of_each_other():
    n = 1000
    mask = torch.zeros(2 * n * BLOCK, dtype=torch.bool)
    mask[ipfast.dropout_mask("w", (2 * n * BLOCK,), 0.25, 0, 0)] = True
    even, odd = mask.view(n, 2, BLOCK).unbind(1)
    both = int((even & odd).sum())
    p_value = stats.chisquare([both, n * BLOCK - both], [n * BLOCK / 16, n * BLOCK * 15 / 16]).pvalue
    assert p_value > MASK_P_VALUE


@pytest.mark.parametrize("backend", PUBLIC)
@pytest.mark.parametrize("rate", [0, 0.0, -0.0, 1e-300], ids=str)
def test_nothing_is_dropped_at_rate_zero(rate, backend):
    got = ipfast.dropout_mask("w", (3, BLOCK), rate, 0, 0, backend=backend)
    assert (tuple(got.shape), got.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize("backend", PUBLIC)
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.7])
@pytest.mark.parametrize("shape", [(0,), (5, 0, 2), (), (1,)], ids=str)
def test_empty_and_scalar_parameters(shape, rate, backend):
    got = ipfast.dropout_mask("w", shape, rate, 0, 0, backend=backend)
    assert got.dtype == torch.int64
    assert len(got) <= np.prod(shape)


def test_what_counts_as_a_number():
    plain = ipfast.dropout_mask("w", (64, 64), 0.25, 7, 1)
    for shape in ([64, 64], torch.Size([64, 64]), np.array([64, 64]), (4096,), iter((64, 64))):
        assert torch.equal(ipfast.dropout_mask("w", shape, np.float64(0.25), np.uint64(7), np.int8(1)), plain)


BAD = {
    "rate one": ({"rate": 1}, ipfast.InputError, r"expected rate to be a share .* 0 ≤ rate < 1; got 1"),
    "rate above one": ({"rate": 1.5}, ipfast.InputError, "got 1.5"),
    "negative rate": ({"rate": -0.1}, ipfast.InputError, "got -0.1"),
    "rate NaN": ({"rate": float("nan")}, ipfast.InputError, "got nan"),
    "rate text": ({"rate": "0.01"}, ipfast.InputTypeError, "expected rate to be a number; got str"),
    "rate bool": ({"rate": False}, ipfast.InputTypeError, "expected rate to be a number; got bool"),
    "negative seed": ({"seed": -1}, ipfast.InputError, r"expected seed to be in 0 \.\. 2\^64-1; got -1"),
    "long seed": ({"seed": 2**64}, ipfast.InputError, f"got {2**64}"),
    "seed float": ({"seed": 0.0}, ipfast.InputTypeError, "expected seed to be an integer; got float"),
    "negative member": ({"member": -1}, ipfast.InputError, r"expected member to be in 0 \.\. 2\^32-1; got -1"),
    "long member": ({"member": 2**32}, ipfast.InputError, f"got {2**32}"),
    "member array": ({"member": np.arange(2)}, ipfast.InputTypeError, "expected member to be an integer; got ndarray"),
    "no name": ({"name": ""}, ipfast.InputError, r"expected name to be the parameter's name; got ''.*'weight'"),
    "name bytes": ({"name": b"w"}, ipfast.InputTypeError, "expected name to be a string; got bytes"),
    "name half a character": ({"name": "\ud800"}, ipfast.InputError, "expected name to be valid Unicode"),
    "shape number": ({"shape": 7}, ipfast.InputTypeError, "expected shape to be a tuple of integers; got int"),
    "shape text": ({"shape": "7"}, ipfast.InputTypeError, "expected shape to be a tuple of integers; got str"),
    "shape floats": ({"shape": (2.0, 3)}, ipfast.InputTypeError, "expected shape to be a tuple of integers; got"),
    "negative size": ({"shape": (2, -3)}, ipfast.InputError, r"got \[2, -3\]"),
    "too large": ({"shape": (2**43, 3)}, ipfast.InputError, r"at most 2\^44 elements"),
    "backend": ({"backend": "triton"}, ipfast.InputError, "expected backend to be one of 'auto', 'reference', 'cpp'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=f"dropout_mask: .*{message}"):
        ipfast.dropout_mask(**{"name": "w", "shape": (4,), "rate": 0.01, "seed": 0, "member": 0, **change})


def test_cpp_is_not_replaced_where_it_is_missing(monkeypatch):
    original = importlib.import_module
    monkeypatch.setattr(dispatch, "has_extension", lambda: False)
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *rest: exec("raise ImportError") if name == "ipfast._C" else original(name)
    )
    with pytest.raises(ipfast.UnavailableError, match="backend='cpp'"):
        ipfast.dropout_mask("w", (4,), 0.5, 0, 0, backend="cpp")
    assert torch.equal(
        ipfast.dropout_mask("w", (4,), 0.5, 0, 0), ipfast.dropout_mask("w", (4,), 0.5, 0, 0, backend="reference")
    )


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_the_reference_is_usable(rate):
    """Millions of elements in seconds, so vectorised; generous, because test machines are busy."""
    started = time.process_time()
    numpy_reference(Mask(b"w", 4_000_000, rate, 0, 0))
    assert time.process_time() - started < 5


PEAK_OF_A_HUNDRED_MILLION = """
from pathlib import Path
import ipfast

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

ipfast.dropout_mask("w", (10**6,), 0.01, 0, 0)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
got = ipfast.dropout_mask("w", (10**8,), 0.01, 0, 0)
print(status("VmHWM") - before, 8 * len(got))
"""


@pytest.mark.skipif(
    not (EXTENSION and os.access("/proc/self/clear_refs", os.W_OK)), reason="needs the extension and Linux's /proc"
)
def test_memory_is_that_of_the_indices():
    """8 bytes an index, 2 while they are collected, and 3 MiB for all else; a mask of booleans alone would be 100 MB."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PEAK_OF_A_HUNDRED_MILLION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    rise, size = map(int, done.stdout.split())
    assert rise < size * 10 / 8 + 3 * 2**20, f"{rise / 2**20:.1f} MiB for {size / 2**20:.1f} MiB of indices"


def test_memory_of_the_reference_is_that_of_the_indices():
    mask = Mask(b"w", 10**8, 0.001, 0, 0)
    tracemalloc.start()
    try:
        got = numpy_reference(mask)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * got.nbytes + 120 * MODULE._DRAWS_AT_ONCE
