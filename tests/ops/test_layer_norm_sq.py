"""layer_norm_sq against one autograd gradient a sample, on every route and every backend that runs here."""

from functools import cache

import pytest
import torch
from layer_cases import (
    GROUPED,
    LAYER_BACKENDS,
    LAYER_CASES,
    RAGGED,
    LayerCase,
    LayerData,
    layer_data,
    norm_magnitude,
    on,
    plain_norm,
    true_norm,
)
from tolerances import FLOAT64_RELATIVE, assert_relative, assert_same_rounding, assert_within_rule
from torch import Tensor

from ipfast import errors, ops
from ipfast.ops import _layer, layer_norm_sq, select_norm_route

NARROW = (torch.float32, torch.float16, torch.bfloat16)
ROUTES = ("gram", "direct")
EPS = torch.finfo(torch.float32).eps
by_backend = pytest.mark.parametrize("name", LAYER_BACKENDS)
by_route = pytest.mark.parametrize("route", ROUTES)
by_case = pytest.mark.parametrize("case", LAYER_CASES, ids=str)


@cache
def truth(case: LayerCase, dtype: torch.dtype) -> Tensor:
    return true_norm(layer_data(case, dtype), case.groups)


@by_backend
@by_route
@by_case
def test_float64_equals_per_sample_autograd(case, route, name):
    data = layer_data(case, torch.float64)
    got = on(name, layer_norm_sq, data.a, data.b, include_bias=True, groups=case.groups, route=route)
    assert got.dtype == torch.float64
    assert_relative(got, truth(case, torch.float64), FLOAT64_RELATIVE)


@by_backend
@by_route
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@by_case
def test_other_dtypes_keep_the_tolerance_rule(case, dtype, route, name):
    data = layer_data(case, dtype)
    got = on(name, layer_norm_sq, data.a, data.b, include_bias=True, groups=case.groups, route=route)
    assert got.dtype == torch.float32
    assert_within_rule(got, truth(case, dtype), plain_norm(data, case.groups), norm_magnitude(data, case.groups), EPS)


@by_backend
@by_route
@pytest.mark.parametrize("case", [RAGGED, GROUPED, LAYER_CASES[3]], ids=str)
def test_only_scored_parameters_count(case, route, name):
    data = layer_data(case, torch.float64)

    def norm(weight: bool, bias: bool) -> Tensor:
        options = {"include_weight": weight, "include_bias": bias, "groups": case.groups, "route": route}
        return on(name, layer_norm_sq, data.a, data.b, **options)

    for weight, bias in ((True, False), (False, True)):
        assert_relative(norm(weight, bias), true_norm(data, case.groups, weight=weight, bias=bias), FLOAT64_RELATIVE)
    assert torch.equal(norm(False, False), torch.zeros(case.samples, dtype=torch.float64))


@by_backend
@by_route
@pytest.mark.parametrize("case", [RAGGED, LAYER_CASES[3]], ids=str)
def test_any_strides(case, route, name):
    data = layer_data(case, torch.float64)
    a = data.a.transpose(0, 2).contiguous().transpose(0, 2)
    b = torch.cat([torch.full_like(data.b[:, :1], torch.nan), data.b], dim=1)[:, 1:]
    got = on(name, layer_norm_sq, a, b, include_bias=True, route=route)
    assert_relative(got, truth(case, torch.float64), FLOAT64_RELATIVE)


@by_backend
@pytest.mark.parametrize("bias", [True, False])
def test_one_token_in_groups(bias, name):
    data = layer_data(LayerCase("token_groups", 37, 1, 150, 6, groups=2), torch.float64)
    got = on(name, layer_norm_sq, data.a[:, 0], data.b[:, 0], include_bias=bias, groups=2)
    assert_relative(got, true_norm(data, 2, bias=bias), FLOAT64_RELATIVE)


@by_backend
@by_route
@pytest.mark.parametrize("block", [1, 100, 10000])
@pytest.mark.parametrize("case", [LayerCase("cut", 11, 300, 5, 37), LayerCase("cut_groups", 7, 150, 6, 4, groups=2)], ids=str)
def test_blocks_of_any_size(case, block, route, name, monkeypatch):
    """Several tiles of tokens, of which those below the diagonal are left out; several blocks of samples and outputs."""
    if name == "triton":
        pytest.skip("its tiles have their own sizes")
    monkeypatch.setattr(_layer, "PRODUCT_ELEMENTS", block)
    monkeypatch.setattr(_layer, "GRADIENT_ELEMENTS", block)
    data = layer_data(case, torch.float64)
    got = layer_norm_sq(data.a, data.b, include_bias=True, groups=case.groups, route=route, backend=name)
    assert_relative(got, truth(case, torch.float64), FLOAT64_RELATIVE)


@by_backend
def test_norm_is_the_dot_with_the_samples_own_gradient(name):
    data = layer_data(RAGGED, torch.float64)
    own = torch.einsum("bto,bti->boi", data.b, data.a)
    dots = on(name, ops.layer_dot, data.a, data.b, own, data.b.sum(dim=1))
    assert_relative(on(name, layer_norm_sq, data.a, data.b, include_bias=True), dots.diagonal(), FLOAT64_RELATIVE)


@by_backend
@by_route
def test_never_negative_where_the_tokens_cancel(route, name):
    """Every token comes twice, with opposite cotangents: the norm is zero, and the Gram form adds large terms of both signs."""
    data = layer_data(LayerCase("cancel", 40, 6, 50, 30), torch.float32)
    a, b = data.a.repeat(1, 2, 1), torch.cat([data.b, -data.b], dim=1)
    got = on(name, layer_norm_sq, a, b, include_bias=True, route=route)
    assert (got >= 0).all()
    doubled = LayerData(a, b, data.v, data.vb)
    assert_within_rule(got, torch.zeros(40), torch.zeros(40), norm_magnitude(doubled), EPS)


@by_backend
@by_route
def test_every_element_is_written_and_runs_agree_bitwise(route, name):
    data = layer_data(LayerCase("company", 9, 37, 41, 13), torch.float32)
    out = torch.full((9,), torch.nan)
    got = on(name, layer_norm_sq, data.a, data.b, include_bias=True, route=route, out=out)
    assert got is out
    assert torch.equal(got, on(name, layer_norm_sq, data.a, data.b, include_bias=True, route=route))
    ones = (slice(i, i + 1) for i in range(len(data.a)))
    alone = torch.cat([on(name, layer_norm_sq, data.a[i], data.b[i], include_bias=True, route=route) for i in ones])
    if name == "triton":
        assert torch.equal(got, alone)
    else:
        assert_same_rounding(alone, got)


@by_backend
@by_route
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_spoils_its_own_norm_only(bad, weight, route, name):
    data = layer_data(RAGGED, torch.float32)
    options = {"include_weight": weight, "include_bias": True, "route": route}
    clean = on(name, layer_norm_sq, data.a, data.b, **options)
    data.b[1, 5, 2] = bad
    got = on(name, layer_norm_sq, data.a, data.b, **options)
    assert not torch.isfinite(got[1])
    assert torch.equal(got[::2], clean[::2])


@by_backend
def test_nothing_to_score(name):
    data = layer_data(RAGGED, torch.float32)
    assert on(name, layer_norm_sq, data.a[:0], data.b[:0], include_bias=True).shape == (0,)
    none = on(name, layer_norm_sq, data.a[:, :0], data.b[:, :0], include_bias=True)
    assert torch.equal(none, torch.zeros(RAGGED.samples))


def test_the_route_is_chosen_by_cost():
    assert select_norm_route(tokens=100, inputs=300, outputs=600).name == "gram"
    assert select_norm_route(tokens=200, inputs=300, outputs=600).name == "direct"
    assert select_norm_route(tokens=100, inputs=300, outputs=600, groups=3).name == "direct"
    assert select_norm_route(tokens=1, inputs=1, outputs=1).name == "gram"
    assert select_norm_route(tokens=1, inputs=1, outputs=1, route="direct").name == "direct"
    with pytest.raises(errors.InputError, match="gram"):
        select_norm_route(tokens=1, inputs=1, outputs=1, route="grom")


def test_what_does_not_fit_is_refused():
    data = layer_data(RAGGED, torch.float32)
    with pytest.raises(errors.InputError, match="same samples and tokens"):
        layer_norm_sq(data.a, data.b[:2], include_bias=True)
    with pytest.raises(errors.InputError, match="expected out"):
        layer_norm_sq(data.a, data.b, include_bias=True, out=torch.empty(3, dtype=torch.float64))
    with pytest.raises(errors.InputTypeError, match="floating-point a"):
        layer_norm_sq(data.a.int(), data.b, include_bias=True)
