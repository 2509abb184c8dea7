"""head_dot against one autograd gradient a sample, on every backend that runs here."""

from functools import cache

import oracles
import pytest
import torch
from backends import BACKENDS, computing_with, skip_slow
from cases import HEAD_CASES, LOSSES, HeadCase, HeadData, confident_case, head_data
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_within_rule
from torch import Tensor

from ipfast import ops

NARROW = (torch.float32, torch.float16, torch.bfloat16)
RAGGED = HEAD_CASES[1]
TWO_TILES = HeadCase("two_tiles", 20, 7, 270)


@cache
def truth(case: HeadCase, loss: str, dtype: torch.dtype) -> Tensor:
    return oracles.head_dot(*head_data(case, loss, dtype).arguments, loss)


def assert_rule(got: Tensor, true: Tensor, data: HeadData, loss: str) -> None:
    plain = oracles.plain_head_dot(*data.arguments, loss)
    magnitude = oracles.head_dot_magnitude(*data.arguments, loss)
    assert_within_rule(got, true, plain, magnitude, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_float64_equals_per_sample_autograd(case, loss, name):
    skip_slow(name, case, torch.float64)
    data = head_data(case, loss, torch.float64)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments, loss=loss, backend=backend)
    assert got.dtype == torch.float64
    assert_relative(got, truth(case, loss, torch.float64), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_other_dtypes_keep_the_tolerance_rule(case, loss, dtype, name):
    data = head_data(case, loss, dtype)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments, loss=loss, backend=backend)
    assert got.dtype == torch.float32
    assert_rule(got, truth(case, loss, dtype), data, loss)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confident_samples_keep_their_digits(dtype, name):
    """The plain form E_p[u] − u_y has no correct digit left in float32 at 1 − p_y = 1e-8; the centred form must."""
    data = confident_case(dtype)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments, backend=backend)
    true = oracles.head_dot(*data.arguments, "cross_entropy")
    for i in range(len(true)):  # one by one: the small scores must not hide behind the large
        assert_relative(got[i : i + 1], true[i : i + 1], CONFIDENT_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("classes", [2, 10, 300])
@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_do_not_overflow(loss, classes, name):
    """Logits of a few thousand are normal in an unregularised model; e^z alone would be infinite."""
    data = head_data(HeadCase("large", 20, 30, classes), loss, torch.float64)
    weight = 2000 * data.w
    with computing_with(name) as backend:
        got = ops.head_dot(data.h, data.y, weight, data.b, data.g, data.gb, loss=loss, backend=backend)
    assert torch.isfinite(got).all()
    assert_relative(got, oracles.head_dot(data.h, data.y, weight, data.b, data.g, data.gb, loss), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("query_bias", [True, False])
@pytest.mark.parametrize("case", [RAGGED, TWO_TILES], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_bias_and_its_query_are_each_optional(loss, case, query_bias, bias, name):
    """query_bias=None: the bias still shifts the logits, its gradient does not count."""
    data = head_data(case, loss, torch.float64)
    b, gb = data.b if bias else None, data.gb if query_bias else None
    with computing_with(name) as backend:
        got = ops.head_dot(data.h, data.y, data.w, b, data.g, gb, loss=loss, backend=backend)
    if bias:
        true = oracles.head_dot(data.h, data.y, data.w, b, data.g, gb, loss)
    else:  # a bias parameter of value zero has the gradient r, whether or not the head has one
        zero = torch.zeros(case.classes, dtype=torch.float64)
        true = oracles.head_dot(data.h, data.y, data.w, zero, data.g, gb, loss)
    assert_relative(got, true, FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_scale_is_a_factor(loss, name):
    data = head_data(RAGGED, loss, torch.float64)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments, loss=loss, scale=-0.37, backend=backend)
    assert_relative(got, -0.37 * truth(RAGGED, loss, torch.float64), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", ["bce_with_logits", "mse"])
def test_one_output_takes_targets_without_a_column(loss, name):
    data = head_data(HeadCase("one_output", 23, 17, 1), loss, torch.float64)
    with computing_with(name) as backend:
        flat = ops.head_dot(data.h, data.y[:, 0], data.w, data.b, data.g, data.gb, loss=loss, backend=backend)
        column = ops.head_dot(*data.arguments, loss=loss, backend=backend)
    assert torch.equal(flat, column)
    assert_relative(flat, oracles.head_dot(*data.arguments, loss), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
def test_soft_targets_of_bce(name):
    """Targets between 0 and 1 are distributions; only exact 0 and 1 take the branch without cancellation."""
    data = head_data(RAGGED, "bce_with_logits", torch.float64)
    y = torch.rand(data.y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with computing_with(name) as backend:
        got = ops.head_dot(data.h, y, data.w, data.b, data.g, data.gb, loss="bce_with_logits", backend=backend)
    assert_relative(got, oracles.head_dot(data.h, y, data.w, data.b, data.g, data.gb, "bce_with_logits"), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_any_integer_dtype(dtype, name):
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    with computing_with(name) as backend:
        got = ops.head_dot(data.h, data.y.to(dtype), data.w, data.b, data.g, data.gb, backend=backend)
    assert_relative(got, truth(RAGGED, "cross_entropy", torch.float64), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
def test_many_rows_against_the_closed_form(name):
    """More rows than any block or grain: every row must be visited once and land in its own place."""
    data = head_data(HeadCase("many", 5003, 7, 3), "cross_entropy", torch.float64)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments, backend=backend)
    residual = (data.h @ data.w.T + data.b).softmax(dim=1) - torch.nn.functional.one_hot(data.y, 3)
    true = (residual * (data.h @ data.g.T + data.gb)).sum(dim=1)
    floor = true.abs().mean()
    assert_relative(got + floor, true + floor, FLOAT64_RELATIVE)  # away from zero: the closed form cancels there


def test_weights_in_another_dtype_are_brought_to_that_of_the_computation():
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    narrow = [t.float() for t in (data.w, data.b, data.g, data.gb)]
    got = ops.head_dot(data.h, data.y, *narrow)
    assert got.dtype == torch.float64
    assert_relative(got, oracles.head_dot(data.h, data.y, *narrow, "cross_entropy"), FLOAT64_RELATIVE)


def test_inputs_are_left_as_they_are():
    data = head_data(RAGGED, "cross_entropy", torch.float32)
    before = [t.clone() for t in data.arguments]
    ops.head_dot(*data.arguments)
    ops.head_norm(*data.norm_arguments)
    assert all(torch.equal(one, other) for one, other in zip(before, data.arguments, strict=True))


def test_parameters_that_require_grad_and_inference_tensors_are_taken():
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    with torch.inference_mode():
        h = data.h.clone()
    got = ops.head_dot(h, data.y, data.w.requires_grad_(), data.b.requires_grad_(), data.g, data.gb)
    assert not got.requires_grad
    assert_relative(got, truth(RAGGED, "cross_entropy", torch.float64), FLOAT64_RELATIVE)
