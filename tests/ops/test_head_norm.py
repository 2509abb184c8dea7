"""head_norm against one autograd gradient a sample, on every backend that runs here."""

from functools import cache

import oracles
import pytest
import torch
from backends import BACKENDS, computing_with, skip_slow
from cases import HEAD_CASES, LOSSES, HeadCase, confident_case, head_data
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_within_rule
from torch import Tensor

from ipfast import ops

NARROW = (torch.float32, torch.float16, torch.bfloat16)
RAGGED = HEAD_CASES[1]
TWO_TILES = HeadCase("two_tiles", 20, 7, 270)


@cache
def truth(case: HeadCase, loss: str, dtype: torch.dtype) -> Tensor:
    return oracles.head_norm(*head_data(case, loss, dtype).norm_arguments, loss)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_float64_equals_per_sample_autograd(case, loss, name):
    skip_slow(name, case, torch.float64)
    data = head_data(case, loss, torch.float64)
    with computing_with(name) as backend:
        got = ops.head_norm(*data.norm_arguments, loss=loss, backend=backend)
    assert got.dtype == torch.float64
    assert_relative(got, truth(case, loss, torch.float64), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_other_dtypes_keep_the_tolerance_rule(case, loss, dtype, name):
    data = head_data(case, loss, dtype)
    with computing_with(name) as backend:
        got = ops.head_norm(*data.norm_arguments, loss=loss, backend=backend)
    assert got.dtype == torch.float32
    plain = oracles.plain_head_norm(*data.norm_arguments, loss)
    magnitude = oracles.head_norm_magnitude(*data.norm_arguments, loss)
    assert_within_rule(got, truth(case, loss, dtype), plain, magnitude, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confident_samples_keep_their_digits(dtype, name):
    """Σp² − 2p_y + 1 is rounding noise in float32 at 1 − p_y = 1e-8; the sum over the other classes is not."""
    data = confident_case(dtype)
    with computing_with(name) as backend:
        got = ops.head_norm(*data.norm_arguments, backend=backend)
    true = oracles.head_norm(*data.norm_arguments, "cross_entropy")
    for i in range(len(true)):
        assert_relative(got[i : i + 1], true[i : i + 1], CONFIDENT_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("classes", [2, 10, 300])
@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_do_not_overflow(loss, classes, name):
    data = head_data(HeadCase("large", 20, 30, classes), loss, torch.float64)
    with computing_with(name) as backend:
        got = ops.head_norm(data.h, data.y, 2000 * data.w, data.b, loss=loss, backend=backend)
    assert torch.isfinite(got).all()
    assert_relative(got, oracles.head_norm(data.h, data.y, 2000 * data.w, data.b, loss), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", [RAGGED, TWO_TILES], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_bias_counts_only_where_asked(loss, case, name):
    """include_bias=False leaves out the + 1; a head without a bias has none to count unless it is asked for."""
    data = head_data(case, loss, torch.float64)
    gradients = oracles.per_sample_gradients(*data.norm_arguments, loss)
    weight_part = gradients[:, : case.classes * case.width].square().sum(dim=1)
    zero = torch.zeros(case.classes, dtype=torch.float64)
    with computing_with(name) as backend:

        def norm(b, include_bias):
            return ops.head_norm(data.h, data.y, data.w, b, loss=loss, include_bias=include_bias, backend=backend)

        assert_relative(norm(data.b, False), weight_part, FLOAT64_RELATIVE)
        assert_relative(norm(data.b, True), gradients.square().sum(dim=1), FLOAT64_RELATIVE)
        assert_relative(norm(data.b, None), gradients.square().sum(dim=1), FLOAT64_RELATIVE)
        assert_relative(norm(None, None), oracles.head_norm(data.h, data.y, data.w, None, loss), FLOAT64_RELATIVE)
        assert_relative(norm(None, True), oracles.head_norm(data.h, data.y, data.w, zero, loss), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_scale_is_a_factor(loss, name):
    data = head_data(RAGGED, loss, torch.float64)
    with computing_with(name) as backend:
        got = ops.head_norm(*data.norm_arguments, loss=loss, scale=0.37, backend=backend)
    assert_relative(got, 0.37 * truth(RAGGED, loss, torch.float64), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_norm_is_the_dot_with_the_samples_own_gradient(case, loss, name):
    skip_slow(name, case, torch.float64, launches=12, rows=1)
    data = head_data(case, loss, torch.float64)
    gradients = oracles.per_sample_gradients(*data.norm_arguments, loss)
    rows = range(0, case.rows, max(1, case.rows // 5))
    with computing_with(name) as backend:
        norms = ops.head_norm(*data.norm_arguments, loss=loss, backend=backend)
        for i in rows:
            g, gb = gradients[i, : case.classes * case.width].reshape(case.classes, -1), gradients[i, -case.classes :]
            one = slice(i, i + 1)
            dot = ops.head_dot(data.h[one], data.y[one], data.w, data.b, g, gb, loss=loss, backend=backend)
            assert_relative(dot, norms[one], FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_never_negative(loss, name):
    data = head_data(HeadCase("many", 300, 8, 4), loss, torch.float32)
    with computing_with(name) as backend:
        got = ops.head_norm(data.h, data.y, 50 * data.w, data.b, loss=loss, backend=backend)
    assert (got >= 0).all()
