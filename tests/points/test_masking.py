"""Masked: what the model sees meanwhile, and that every bit comes back."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
import torch
from torch import nn

import ipfast
from ipfast.points import masking
from ipfast.points.masking import Masked

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DTYPES = tuple(BITS)
SCALES = (1.0, 1 / 0.99, 1 / 0.75, 2.0, 1 / 0.3, 0.37, 1e-3, 1e6)
RATE = 0.05


def bits(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(BITS[tensor.dtype])


def every_bit_pattern(dtype, shape, seed=0):
    """Random bits: normal and subnormal numbers of all sizes, infinities, NaNs with all payloads, both zeros."""
    size = torch.finfo(dtype).bits // 8
    count = torch.Size(shape).numel()
    raw = torch.randint(256, (count * size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    values = raw.view(dtype)
    values[:4] = torch.tensor([-0.0, 0.0, torch.inf, torch.nan], dtype=dtype)[:count]
    return values.view(shape)


def mask_of(parameter, rate=RATE, member=0):
    return ipfast.dropout_mask("w", parameter.shape, rate, 0, member)


def layouts(dtype):
    """The same kind of parameter in several kinds of memory."""
    wide = every_bit_pattern(dtype, (64, 80))
    yield "contiguous", every_bit_pattern(dtype, (37, 41))
    yield "one dimension", every_bit_pattern(dtype, (1001,))
    yield "transposed", every_bit_pattern(dtype, (37, 41)).T
    yield "channels last", every_bit_pattern(dtype, (8, 6, 5, 7)).to(memory_format=torch.channels_last)
    yield "sliced columns", wide[:, 3:70]
    yield "sliced rows", wide[5:50]
    yield "every second", every_bit_pattern(dtype, (60, 60))[::2, 1::3]
    yield "sliced and transposed", wide[:, 3:70].T
    yield "scalar", every_bit_pattern(dtype, ())


LAYOUTS = [name for name, _ in layouts(torch.float32)]


@pytest.fixture(params=[masking._PIECE, 50], ids=["one piece", "pieces"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(masking, "_PIECE", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_values_are_exact_and_every_bit_comes_back(dtype, layout, scale):
    parameter = dict(layouts(dtype))[layout]
    owner = parameter._base if parameter._base is not None else parameter
    before, around = bits(parameter), bits(owner)
    dropped = mask_of(parameter, 0.2)
    expected = (parameter.detach().clone() * scale if scale != 1 else parameter.clone()).contiguous().flatten()
    expected[dropped] = 0
    with Masked({"w": parameter}, {"w": dropped}, scale=scale):
        got = parameter.clone(memory_format=torch.contiguous_format).flatten()
        assert torch.equal(got.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
        assert not got[dropped].signbit().any()
    assert torch.equal(bits(parameter), before)
    assert torch.equal(bits(owner), around)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_all_numbers_of_16_bits_come_back(scale, dtype):
    parameter = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    before = bits(parameter)
    with Masked({"w": parameter}, {"w": torch.tensor([5])}, scale=scale):
        pass
    assert torch.equal(bits(parameter), before)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5])
def test_memory_is_for_a_few_values(rate):
    """The dropped ones and about ½·log₂(1/(1−rate)) of the kept ones, with their places; not a copy."""
    parameter = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    scale = 1 / (1 - rate)
    edited = Masked({"w": parameter}, {"w": mask_of(parameter, rate)}, scale=scale)
    edited.apply()
    (edit,) = edited._edits
    inexact = edit.kept
    edited.restore()
    # For mantissas of a smooth density the share is ∫ (1 − s/2) over those that pass 2, less than the share of those.
    assert inexact <= 1.5 * rate * parameter.numel()
    if rate == 0.5:
        assert inexact == 0, "a power of two loses nothing"


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))


def all_masks(model, rate=RATE):
    return {name: ipfast.dropout_mask(name, p.shape, rate, 0, 0) for name, p in model.named_parameters() if p.dim() >= 2}


def test_a_model_computes_as_with_masked_copies():
    model, x = small_model(), torch.randn(5, 30)
    scale, masks = 1 / (1 - RATE), all_masks(small_model())
    functional = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, dropped in masks.items():
        functional[name].view(-1)[dropped] = 0
        functional[name] *= scale
    expected = torch.func.functional_call(model, functional, (x,))
    plain = model(x)
    with Masked(dict(model.named_parameters()), masks, scale=scale):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), plain)
    assert not torch.equal(plain, expected)


def test_parameters_go_on_requiring_gradients():
    model = small_model()
    with Masked(dict(model.named_parameters()), all_masks(model)):
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
        loss = model(torch.ones(1, 30)).sum()
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_backward_pass_through_the_edit_is_refused_by_autograd():
    """Gradients at restored parameters of a loss at masked ones would be neither's."""
    model = small_model()
    with Masked(dict(model.named_parameters()), all_masks(model)):
        loss = model(torch.ones(1, 30)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside inference mode"])
def test_inference_tensors(inside):
    with torch.inference_mode():
        parameter = every_bit_pattern(torch.float32, (37, 41)) * 1
    assert parameter.is_inference()
    before = bits(parameter)
    with torch.inference_mode(inside), Masked({"w": parameter}, {"w": mask_of(parameter)}, scale=1 / 0.95):
        assert not parameter.flatten()[mask_of(parameter)].any()
    assert torch.equal(bits(parameter), before)


def test_ordinary_parameters_inside_inference_mode():
    parameter = nn.Parameter(torch.randn(9, 9))
    before = bits(parameter)
    with torch.inference_mode(), Masked({"w": parameter}, {"w": mask_of(parameter, 0.5)}, scale=2 / 3):
        assert not torch.equal(bits(parameter), before)
    assert torch.equal(bits(parameter), before)


def test_tied_parameters_are_edited_once_with_the_first_mask():
    weight = nn.Parameter(torch.randn(20, 20))
    before = weight.detach().clone()
    masks = {"decoder": mask_of(weight, 0.2, member=1), "encoder": mask_of(weight, 0.2)}
    with Masked({"encoder": weight, "decoder": weight}, masks, scale=3.0):
        expected = (3 * before).flatten()
        expected[masks["encoder"]] = 0
        assert torch.equal(weight.flatten(), expected)
    assert torch.equal(weight, before)
    twin = nn.Parameter(weight.detach())  # another object over the same memory
    with Masked({"encoder": weight, "decoder": twin}, masks, scale=3.0):
        assert torch.equal(twin.flatten(), expected)
    assert torch.equal(weight, before)


def test_parameters_side_by_side_in_one_storage():
    flat = torch.randn(300)
    before = flat.clone()
    parts = {"a": flat[:100].view(10, 10), "b": flat[100:].view(20, 10)}
    with Masked(parts, {name: mask_of(part, 0.3) for name, part in parts.items()}, scale=1 / 0.7):
        assert not torch.equal(flat, before)
    assert torch.equal(flat, before)


def test_only_the_named_ones_are_edited():
    a, b = torch.ones(5, 5), torch.ones(5, 5)
    with Masked({"a": a, "b": b}, {"b": torch.tensor([], dtype=torch.int64)}, scale=2.0):
        assert torch.equal(a, torch.ones(5, 5))
        assert torch.equal(b, 2 * torch.ones(5, 5))
    assert torch.equal(b, torch.ones(5, 5))


def test_nested_members_and_reuse():
    parameter = every_bit_pattern(torch.float32, (50, 50))
    before = bits(parameter)
    outer, inner = (Masked({"w": parameter}, {"w": mask_of(parameter, 0.1, m)}, scale=1 / 0.9) for m in range(2))
    for _ in range(2):
        with outer:
            middle = bits(parameter)
            with inner:
                assert not torch.equal(bits(parameter), middle)
            assert torch.equal(bits(parameter), middle)
        assert torch.equal(bits(parameter), before)


class Boom(BaseException):
    """Not an Exception: nothing may catch it by accident."""


@pytest.mark.parametrize("scale", [1.0, 1 / 0.95])
def test_an_exception_inside(scale):
    parameter = every_bit_pattern(torch.float32, (50, 50))
    before = bits(parameter)
    with pytest.raises(Boom), Masked({"w": parameter}, {"w": mask_of(parameter)}, scale=scale):
        raise Boom
    assert torch.equal(bits(parameter), before)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("operation", ["index_select", "index_fill_", "copy_", "nonzero", "clone"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_failure_while_editing(operation, when, call):
    """apply() leaves nothing behind, whichever step of it fails (for want of memory, say)."""
    parameters = {name: every_bit_pattern(torch.float32, (12, 10), seed) for seed, name in enumerate("ab")}
    before = {name: bits(p) for name, p in parameters.items()}
    original, calls = getattr(torch.Tensor, operation), [0]

    def failing(*arguments, **options):
        calls[0] += 1
        if calls[0] == call and when == "before":
            raise Boom
        result = original(*arguments, **options)
        if calls[0] == call:
            raise Boom
        return result

    masks = {name: mask_of(p, 0.2) for name, p in parameters.items()}
    edited = Masked(parameters, masks, scale=1 / 0.8)
    with mock.patch.object(torch.Tensor, operation, failing):
        try:
            edited.apply()
        except Boom:
            pass
        else:
            assert calls[0] < call, "the failure was swallowed"
    edited.restore()
    for name, p in parameters.items():
        assert torch.equal(bits(p), before[name])


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("operation", ["copy_", "index_copy_"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_restore_can_be_repeated_after_a_failure(operation, when, call):
    parameter = every_bit_pattern(torch.float32, (12, 10))
    before, original, calls = bits(parameter), getattr(torch.Tensor, operation), [0]
    edited = Masked({"w": parameter}, {"w": mask_of(parameter, 0.2)}, scale=1 / 0.8)
    edited.apply()

    def failing(*arguments):
        calls[0] += 1
        if calls[0] == call and when == "before":
            raise Boom
        original(*arguments)
        if calls[0] == call:
            raise Boom

    with mock.patch.object(torch.Tensor, operation, failing):
        try:
            edited.restore()
        except Boom:
            pass
        else:
            assert calls[0] < call
    edited.restore()
    edited.restore()
    assert torch.equal(bits(parameter), before)


@pytest.fixture
def interruptible():
    """Python's own handler, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("operation", ["index_select", "index_fill_", "index_copy_", "copy_"])
def test_ctrl_c_waits_while_parameters_are_edited(operation):
    """Struck in the middle of apply() or restore(), it is told when all bits are back."""
    parameter = every_bit_pattern(torch.float32, (12, 10))
    before, handler, original = bits(parameter), signal.getsignal(signal.SIGINT), getattr(torch.Tensor, operation)

    def struck(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    edited = Masked({"w": parameter}, {"w": mask_of(parameter, 0.2)}, scale=1 / 0.8)
    with pytest.raises(KeyboardInterrupt), mock.patch.object(torch.Tensor, operation, struck), edited:
        assert operation == "index_copy_", "an interrupted apply() does not go on"
    assert torch.equal(bits(parameter), before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_inside_strikes_at_once():
    parameter = every_bit_pattern(torch.float32, (12, 10))
    before, handler = bits(parameter), signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), Masked({"w": parameter}, {"w": mask_of(parameter, 0.2)}):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached
    assert torch.equal(bits(parameter), before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_any_time():
    parameter = every_bit_pattern(torch.float32, (40, 50))
    before, masks = bits(parameter), {"w": mask_of(parameter)}
    struck = 0
    for round_ in range(150):
        timer = threading.Timer(round_ * 2e-5, _thread.interrupt_main)
        try:
            timer.start()
            for _ in range(20):
                with Masked({"w": parameter}, masks, scale=1 / 0.95):
                    pass
            time.sleep(1)
        except KeyboardInterrupt:
            struck += 1
        assert torch.equal(bits(parameter), before), f"round {round_}"
        timer.join()
    assert struck == 150


def test_other_threads_can_mask():
    parameter = every_bit_pattern(torch.float32, (40, 50))
    before, seen = bits(parameter), []

    def work():
        with Masked({"w": parameter}, {"w": mask_of(parameter)}, scale=1 / 0.95):
            seen.append(not torch.equal(bits(parameter), before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert torch.equal(bits(parameter), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_on_a_gpu(layout, dtype):
    parameter = dict(layouts(dtype))[layout]
    device = torch.empty_strided(parameter.shape, parameter.stride(), dtype=dtype, device="cuda").copy_(parameter)
    before = bits(device)
    with Masked({"w": device}, {"w": mask_of(device, 0.2)}, scale=1 / 0.8):
        assert not device.flatten()[mask_of(device, 0.2).cuda()].any()
    assert torch.equal(bits(device), before)


PEAK_OF_FIFTY_MILLION = """
from pathlib import Path
import torch
from ipfast import dropout_mask
from ipfast.points.masking import Masked

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

parameter = torch.ones(50_000_000).uniform_()
dropped = dropout_mask("w", parameter.shape, 0.01, 0, 0)
warm = torch.ones(1_000_000).uniform_()
with Masked({"v": warm}, {"v": dropout_mask("v", warm.shape, 0.01, 0, 0)}, scale=1 / 0.99):
    pass
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
with Masked({"w": parameter}, {"w": dropped}, scale=1 / 0.99):
    pass
print(resident("VmHWM") - before, 4 * parameter.numel())
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_no_copy_of_the_parameter_is_made():
    """Peak memory of a parameter of 200 MB, with a scale: a fraction of it."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PEAK_OF_FIFTY_MILLION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    rise, size = map(int, done.stdout.split())
    assert rise < 0.1 * size


W = torch.ones(4, 4)
INDICES = torch.tensor([1, 2])
BAD = {
    "unknown name": (({"w": W}, {"v": INDICES}), {}, ipfast.InputError, "expected dropped to name parameters; 'v' is none"),
    "outside": (({"w": W}, {"w": torch.tensor([16])}), {}, ipfast.InputError, r"indices in 0\.\.15 of 'w'; got 16\.\.16"),
    "negative": (({"w": W}, {"w": torch.tensor([-1])}), {}, ipfast.InputError, r"got -1\.\.-1"),
    "int32": (({"w": W}, {"w": INDICES.int()}), {}, ipfast.InputTypeError, "flat int64 indices; 'w' has torch.int32"),
    "two-dimensional": (({"w": W}, {"w": INDICES[None]}), {}, ipfast.InputTypeError, "flat int64 indices"),
    "list": (({"w": W}, {"w": [1, 2]}), {}, ipfast.InputTypeError, "flat int64 indices; 'w' has list"),
    "integers": (({"w": W.long()}, {"w": INDICES}), {}, ipfast.InputTypeError, "floating-point parameters; 'w' is torch.int64"),
    "sparse": (({"w": W.to_sparse()}, {"w": INDICES}), {}, ipfast.InputTypeError, "expected dense"),
    "expanded": (({"w": W[:1].expand(4, 4)}, {"w": INDICES}), {}, ipfast.InputError, "'w' is expanded"),
    "overlap": (
        ({"w": W, "row": W[1]}, {"w": INDICES, "row": INDICES}),
        {},
        ipfast.InputError,
        "'w' overlaps 'row'",
    ),
    "scale zero": (({"w": W}, {"w": INDICES}), {"scale": 0.0}, ipfast.InputError, "expected scale to be a positive number"),
    "scale NaN": (({"w": W}, {"w": INDICES}), {"scale": float("nan")}, ipfast.InputError, "expected scale to be"),
    "scale infinite": (({"w": W}, {"w": INDICES}), {"scale": float("inf")}, ipfast.InputError, "expected scale to be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    arguments, options, error, message = BAD[case]
    with pytest.raises(error, match=f"Masked: .*{message}"):
        Masked(*arguments, **options)
    assert torch.equal(W, torch.ones(4, 4))


def test_apply_twice_is_refused():
    w = torch.ones(3)
    edited = Masked({"w": w}, {"w": torch.tensor([0])})
    edited.apply()
    with pytest.raises(ipfast.InputError, match=r"Masked: expected parameters that are not masked yet.*restore\(\)"):
        edited.apply()
    edited.restore()
    assert torch.equal(w, torch.ones(3))
