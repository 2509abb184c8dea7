"""layer_dot against one autograd gradient a sample, on every route and every backend that runs here."""

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
    absolute,
    layer_data,
    on,
    plain_dot,
    true_dot,
    true_token_dot,
)
from tolerances import FLOAT64_RELATIVE, assert_relative, assert_same_rounding, assert_within_rule
from torch import Tensor

from ipfast import dispatch, errors, ops
from ipfast.ops import _layer, select_dot_route

NARROW = (torch.float32, torch.float16, torch.bfloat16)
ROUTES = ("contract", "direct")
by_backend = pytest.mark.parametrize("name", LAYER_BACKENDS)
by_route = pytest.mark.parametrize("route", ROUTES)
by_case = pytest.mark.parametrize("case", LAYER_CASES, ids=str)


@cache
def truth(case: LayerCase, dtype: torch.dtype) -> Tensor:
    return true_dot(layer_data(case, dtype), case.groups)


def assert_rule(got: Tensor, true: Tensor, plain: Tensor, magnitude: Tensor) -> None:
    eps = torch.finfo(got.dtype).eps
    assert_within_rule(got.flatten(), true.flatten(), plain.flatten(), magnitude.flatten(), eps)


@by_backend
@by_route
@by_case
def test_float64_equals_per_sample_autograd(case, route, name):
    got = on(name, ops.layer_dot, *layer_data(case, torch.float64).arguments, groups=case.groups, route=route)
    assert got.dtype == torch.float64
    assert_relative(got, truth(case, torch.float64), FLOAT64_RELATIVE)


@by_backend
@by_route
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@by_case
def test_other_dtypes_keep_the_tolerance_rule(case, dtype, route, name):
    data = layer_data(case, dtype)
    got = on(name, ops.layer_dot, *data.arguments, groups=case.groups, route=route)
    assert got.dtype == torch.float32
    assert_rule(got, truth(case, dtype), plain_dot(data, case.groups), true_dot(absolute(data), case.groups))


@by_backend
@by_case
def test_a_score_for_each_token(case, name):
    data = layer_data(case, torch.float64)
    got = on(name, ops.layer_dot, *data.arguments, groups=case.groups, per_token=True)
    assert_relative(got, true_token_dot(data, case.groups), FLOAT64_RELATIVE)


@by_backend
@by_route
def test_additive_over_tokens(route, name):
    """A layer that is used twice is scored by the sum of both uses: what shared weights rest on."""
    data = layer_data(RAGGED, torch.float64)
    parts = [
        on(name, ops.layer_dot, data.a[:, some], data.b[:, some], data.v, data.vb, route=route)
        for some in (slice(0, 20), slice(20, None))
    ]
    assert_relative(parts[0] + parts[1], truth(RAGGED, torch.float64), FLOAT64_RELATIVE)


@by_backend
def test_convolution_is_scored_on_its_patches(name):
    """A strided, padded, grouped convolution, its patches as torch's unfold gives them, against autograd through the layer."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 7, 6, generator=generator, dtype=torch.float64)
    layer = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    v, vb = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64), torch.randn(6, generator=generator).double()
    cotangents = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    true = []
    for one, y in zip(x, cotangents, strict=True):
        gw, gb = torch.autograd.grad((layer(one[None])[0] * y).sum(), list(layer.parameters()))
        true.append((gw * v).sum() + (gb * vb).sum())
    patches = torch.nn.functional.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
    got = on(name, ops.layer_dot, patches, cotangents.flatten(2).transpose(1, 2), v.flatten(1), vb, groups=2)
    assert_relative(got, torch.stack(true), FLOAT64_RELATIVE)


def columns(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_second_channel(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:2], 2 * x.shape[2]), torch.nan, dtype=x.dtype)
    wide[:, :, ::2] = x
    return wide[:, :, ::2]


def without_the_first_token(x: Tensor) -> Tensor:
    return torch.cat([torch.full_like(x[:, :1], torch.nan), x], dim=1)[:, 1:]


def tokens_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


@by_backend
@by_route
@pytest.mark.parametrize("case", [LayerCase("few", 3, 11, 17, 7), GROUPED, LayerCase("long", 2, 70, 9, 5)], ids=str)
@pytest.mark.parametrize("layout", [columns, every_second_channel, without_the_first_token, tokens_first])
@pytest.mark.parametrize("per_token", [False, True])
def test_any_strides(layout, case, route, per_token, name):
    if per_token and route == "direct":
        pytest.skip("a score for each token has one route")
    data = layer_data(case, torch.float64)
    true = true_token_dot(data, case.groups) if per_token else truth(case, torch.float64)
    for a, b in ((layout(data.a), data.b), (data.a, layout(data.b)), (layout(data.a), layout(data.b))):
        got = on(name, ops.layer_dot, a, b, data.v, data.vb, groups=case.groups, route=route, per_token=per_token)
        assert_relative(got, true, FLOAT64_RELATIVE)


@by_backend
@by_route
@pytest.mark.parametrize("block", [1, 7, 100, 1000])
@pytest.mark.parametrize("layout", [columns, lambda x: x], ids=["columns", "rows"])
def test_blocks_of_any_size(layout, block, route, name, monkeypatch):
    """The reference cuts large arrays; here small ones, so that every sample, token and output meets a border."""
    monkeypatch.setattr(_layer, "PRODUCT_ELEMENTS", block)
    monkeypatch.setattr(_layer, "GRADIENT_ELEMENTS", block)
    case = LayerCase("cut", 11, 150, 5, 37)
    if name == "triton":
        pytest.skip("its tiles have their own sizes")
    for dtype in (torch.float64, torch.bfloat16):
        data = layer_data(case, dtype)
        got = ops.layer_dot(layout(data.a), layout(data.b), data.v, data.vb, route=route, backend=name)
        assert_rule(got, truth(case, dtype), plain_dot(data), true_dot(absolute(data)))
        if route == "contract":
            tokens = ops.layer_dot(layout(data.a), layout(data.b), data.v, data.vb, per_token=True, backend=name)
            true = true_token_dot(data)
            assert_rule(tokens, true, true, true_token_dot(absolute(data)))


@by_backend
@by_route
def test_query_bias_is_optional_and_one_query_needs_no_dimension(route, name):
    data = layer_data(RAGGED, torch.float64)
    g, gb = (true_dot(LayerData(data.a, data.b, *pair)) for pair in ((data.v, 0 * data.vb), (0 * data.v, data.vb)))
    assert_relative(on(name, ops.layer_dot, data.a, data.b, data.v, route=route), g, FLOAT64_RELATIVE)
    one = on(name, ops.layer_dot, data.a, data.b, data.v[1], data.vb[1], route=route)
    assert_relative(one, (g + gb)[:, 1], FLOAT64_RELATIVE)
    stacked = on(name, ops.layer_dot, data.a, data.b, data.v[1:2], data.vb[1:2], route=route)
    assert torch.equal(stacked[:, 0], one)


@by_backend
def test_two_dimensions_are_one_token(name):
    data = layer_data(LAYER_CASES[3], torch.float64)
    for per_token in (False, True):
        flat = on(name, ops.layer_dot, data.a[:, 0], data.b[:, 0], data.v, data.vb, per_token=per_token)
        assert_relative(flat, truth(LAYER_CASES[3], torch.float64), FLOAT64_RELATIVE)


@by_backend
def test_inputs_and_cotangents_may_differ_in_dtype(name):
    data = layer_data(RAGGED, torch.float64)
    mixed = LayerData(data.a.bfloat16(), data.b, data.v, data.vb)
    got = on(name, ops.layer_dot, *mixed.arguments)
    assert got.dtype == torch.float64
    assert_relative(got, true_dot(mixed), FLOAT64_RELATIVE)
    narrow = LayerData(data.a.half(), data.b.float(), data.v.float(), data.vb.float())
    got = on(name, ops.layer_dot, *narrow.arguments)
    assert_rule(got, true_dot(narrow), plain_dot(narrow), true_dot(absolute(narrow)))


@by_backend
@by_route
@pytest.mark.parametrize("case", [RAGGED, GROUPED], ids=str)
def test_every_element_of_the_output_is_written(case, route, name):
    data = layer_data(case, torch.float32)
    out = torch.full((case.samples, case.queries), torch.nan)
    got = on(name, ops.layer_dot, *data.arguments, groups=case.groups, route=route, out=out)
    assert got is out
    assert torch.equal(out, on(name, ops.layer_dot, *data.arguments, groups=case.groups, route=route))
    tokens = torch.full((case.samples, case.tokens, case.queries), torch.nan)
    on(name, ops.layer_dot, *data.arguments, groups=case.groups, per_token=True, out=tokens)
    assert torch.isfinite(tokens).all()


@by_backend
@by_route
def test_runs_agree_bitwise_and_a_sample_ignores_its_company(route, name):
    """Compiled or interpreted kernels give equal bits in any batch; the library's products only equal rounding."""
    data = layer_data(LayerCase("company", 9, 37, 41, 13), torch.float32)
    got = on(name, ops.layer_dot, *data.arguments, route=route)
    assert torch.equal(got, on(name, ops.layer_dot, *data.arguments, route=route))
    ones = (slice(i, i + 1) for i in range(len(data.a)))
    alone = torch.cat([on(name, ops.layer_dot, data.a[i], data.b[i], data.v, data.vb, route=route) for i in ones])
    if name == "triton":
        assert torch.equal(got, alone)
    else:
        assert_same_rounding(alone, got)


@by_backend
@by_route
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["a", "b"])
def test_a_sample_that_is_not_finite_spoils_its_own_scores_only(where, bad, route, name):
    data = layer_data(RAGGED, torch.float32)
    clean = on(name, ops.layer_dot, *data.arguments, route=route)
    getattr(data, where)[1, 5, 2] = bad
    got = on(name, ops.layer_dot, *data.arguments, route=route)
    assert not torch.isfinite(got[1]).any()
    assert torch.equal(got[::2], clean[::2])


@by_backend
@by_route
def test_nothing_to_score(route, name):
    data = layer_data(RAGGED, torch.float32)
    assert on(name, ops.layer_dot, data.a[:0], data.b[:0], data.v, data.vb, route=route).shape == (0, RAGGED.queries)
    none = on(name, ops.layer_dot, data.a[:, :0], data.b[:, :0], data.v, data.vb, route=route)
    assert torch.equal(none, torch.zeros(RAGGED.samples, RAGGED.queries))
    assert on(name, ops.layer_dot, data.a[:, :0], data.b[:, :0], data.v, data.vb, per_token=True).shape == (3, 0, 3)


def test_inputs_are_left_as_they_are():
    data = layer_data(RAGGED, torch.float32)
    before = [x.clone() for x in data.arguments]
    for route in ROUTES:
        on(LAYER_BACKENDS[0], ops.layer_dot, *data.arguments, route=route)
    on(LAYER_BACKENDS[0], ops.layer_norm_sq, data.a, data.b, include_bias=True)
    assert all(torch.equal(one, other) for one, other in zip(before, data.arguments, strict=True))


def test_the_route_is_chosen_by_cost():
    assert select_dot_route(tokens=1000, queries=1).name == "contract"
    assert select_dot_route(tokens=1, queries=1000).name == "contract"
    assert select_dot_route(tokens=128, queries=8).name == "direct"
    assert select_dot_route(tokens=128, queries=8, per_token=True).name == "contract"
    assert "T=128" in select_dot_route(tokens=128, queries=8).reason
    assert select_dot_route(tokens=1, queries=1, route="direct").name == "direct"


DATA = layer_data(RAGGED, torch.float32)
WRONG = {
    "tokens": ((DATA.a[:, :5], DATA.b, DATA.v), {}, "same samples and tokens"),
    "dimensions": ((DATA.a[0, 0], DATA.b, DATA.v), {}, "expected a of shape"),
    "query": ((DATA.a, DATA.b, DATA.v.transpose(1, 2)), {}, "expected query of shape"),
    "query_bias": ((DATA.a, DATA.b, DATA.v, DATA.vb[:, :3]), {}, "expected query_bias of shape"),
    "groups": ((DATA.a, DATA.b, DATA.v), {"groups": 2}, "2 groups divide"),
    "no_groups": ((DATA.a, DATA.b, DATA.v), {"groups": 0}, "positive integer"),
    "route": ((DATA.a, DATA.b, DATA.v), {"route": "contrat"}, "contract"),
    "token_route": ((DATA.a, DATA.b, DATA.v), {"route": "direct", "per_token": True}, "sums over the tokens"),
    "out": ((DATA.a, DATA.b, DATA.v), {"out": torch.empty(3)}, "expected out"),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_does_not_fit_is_refused_before_any_work(which):
    arguments, options, message = WRONG[which]
    with pytest.raises(errors.InputError, match=message):
        ops.layer_dot(*arguments, **options)


def test_integers_and_missing_backends_are_refused():
    with pytest.raises(errors.InputTypeError, match="floating-point b"):
        ops.layer_dot(DATA.a, DATA.b.long(), DATA.v)
    with pytest.raises(errors.UnavailableError, match="matrix products"):
        ops.layer_dot(DATA.a, DATA.b, DATA.v, backend="cpp")
    if dispatch.has_extension() and not dispatch.interpreting():
        assert torch.equal(ops.layer_dot(*DATA.arguments), ops.layer_dot(*DATA.arguments, backend="reference"))
