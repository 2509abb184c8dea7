"""token_norm: the norm of a sum of token gradients, against autograd, whichever way it is computed."""

import oracles
import pytest
import torch
from cases import LOSSES, HeadCase, confident_case, head_data
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_within_rule

import ipfast
from ipfast import ops

COUNTS = (3, 0, 17, 1, 9, 2, 0)
CASES = (
    HeadCase("few_classes", sum(COUNTS), 40, 3),  # products of classes
    HeadCase("many_classes", sum(COUNTS), 60, 90),  # products of tokens
    HeadCase("one_feature", sum(COUNTS), 1, 4),
)


def truth(data, loss, counts=COUNTS, bias=True):
    g = oracles.per_sample_gradients(*data.norm_arguments, loss)
    g = g if bias else g[:, : data.w.numel()]
    return torch.stack([part.sum(dim=0).square().sum() for part in g.split(list(counts))])


def norm(data, counts=COUNTS, **options):
    return ops.token_norm(data.h, data.y, list(counts), data.w, data.b, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_equals_the_norm_of_the_summed_gradients(case, loss, bias):
    data = head_data(case, loss, torch.float64)
    got = norm(data, loss=loss, include_bias=bias)
    assert_relative(got, truth(data, loss, bias=bias), FLOAT64_RELATIVE)
    assert not got[[1, 6]].any()
    assert_relative(norm(data, loss=loss, include_bias=bias, scale=0.37), 0.37 * got, FLOAT64_RELATIVE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_dtypes_keep_the_tolerance_rule(case, loss, dtype):
    data = head_data(case, loss, dtype)
    got = norm(data, loss=loss)
    assert got.dtype == torch.float32
    # (Σ_t ‖g_t‖)² bounds every product of tokens that is added up.
    size = oracles.head_norm_magnitude(*data.norm_arguments, loss).sqrt()
    magnitude = torch.stack([part.sum().square() for part in size.split(list(COUNTS))])
    true = truth(data, loss)
    assert_within_rule(got, true, true, magnitude, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("entries", [1, 64 * 300, 1 << 22])
@pytest.mark.parametrize("labels", ["hard", "soft", "smooth"])
def test_tiles_of_classes(entries, labels, monkeypatch):
    """Labels fall into every tile; 600 classes are three tiles of at least 256."""
    monkeypatch.setitem(ops.token_norm.__globals__, "TILE_ENTRIES", entries)
    data = head_data(HeadCase("tiles", sum(COUNTS), 30, 600), "cross_entropy", torch.float64)
    options = {"label_smoothing": 0.3, "class_weight": torch.linspace(0, 2, 600)} if labels == "smooth" else {}
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(sum(COUNTS), 600, generator=generator, dtype=torch.float64) if labels == "soft" else data.y
    got = ops.token_norm(data.h, y, list(COUNTS), data.w, data.b, **options)
    w, b = data.w.clone().requires_grad_(), data.b.clone().requires_grad_()
    weight = options.get("class_weight")
    values = torch.nn.functional.cross_entropy(
        data.h @ w.T + b,
        y,
        reduction="none",
        weight=None if weight is None else weight.double(),
        label_smoothing=options.get("label_smoothing", 0.0),
    )
    norms = []
    for part in values.split(list(COUNTS)):
        gradients = torch.autograd.grad(part.sum(), [w, b], retain_graph=True)
        norms.append(sum(g.square().sum() for g in gradients))
    assert_relative(got, torch.stack(norms), FLOAT64_RELATIVE)


@pytest.mark.parametrize("width", [32, 600])
def test_confident_tokens_keep_their_digits(width):
    """p_y − 1 is rounding noise in float32 at 1 − p_y = 1e-8. With more features the products are those of tokens."""
    data = confident_case(torch.float32)
    pad = torch.zeros(4, width - 32)
    h, w = torch.cat([data.h, pad], dim=1), torch.cat([data.w, torch.zeros(10, width - 32)], dim=1)
    for counts in ([1, 1, 1, 1], [1, 0, 1, 2]):
        g = oracles.per_sample_gradients(h, data.y, w, data.b, "cross_entropy")
        true = torch.stack([part.sum(dim=0).square().sum() for part in g.split(counts)])
        got = ops.token_norm(h, data.y, counts, w, data.b)
        for i in (i for i, count in enumerate(counts) if count):
            assert_relative(got[i : i + 1], true[i : i + 1], CONFIDENT_RELATIVE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sequence_is_not_the_sum_of_its_tokens_and_tokens_that_cancel_leave_nothing(case):
    data = head_data(case, "mse", torch.float64)
    h, z = data.h[:8], data.h[:8] @ data.w.T + data.b
    lone = ops.head_norm(h, z - 1, data.w, data.b, loss="mse")

    def together(*y):
        return ops.token_norm(h.repeat(len(y), 1), torch.cat(y), [8 * len(y)], data.w, data.b, loss="mse")

    got = together(z - 1, z + 1)  # residuals of opposite sign at the same features
    assert 0 <= got <= FLOAT64_RELATIVE * lone.sum()
    assert_relative(together(z - 1, z - 1), 4 * together(z - 1), FLOAT64_RELATIVE)


def test_a_sequence_does_not_see_the_others():
    """Each alone, and beside a NaN."""
    data = head_data(CASES[1], "cross_entropy", torch.float64)
    whole = norm(data)
    starts = torch.tensor(COUNTS).cumsum(0) - torch.tensor(COUNTS)
    for i, count in enumerate(COUNTS):
        rows = slice(int(starts[i]), int(starts[i]) + count)
        if not count:
            continue
        alone = ops.token_norm(data.h[rows], data.y[rows], [count], data.w, data.b)
        assert_relative(alone, whole[i : i + 1], FLOAT64_RELATIVE)
    h = data.h.clone()
    h[4] = torch.nan
    got = ops.token_norm(h, data.y, list(COUNTS), data.w, data.b)
    assert torch.isnan(got[2])
    others = [0, 1, 3, 4, 5, 6]
    assert_relative(got[others], whole[others], FLOAT64_RELATIVE)


def test_tokens_of_the_ignored_label_do_not_count():
    data = head_data(CASES[0], "cross_entropy", torch.float64)
    y = data.y.clone()
    y[4:9] = -100
    kept = y != -100
    counts = [int(part.sum()) for part in kept.split(list(COUNTS))]
    got = ops.token_norm(data.h, y, list(COUNTS), data.w, data.b, ignore_index=-100)
    assert_relative(got, ops.token_norm(data.h[kept], y[kept], counts, data.w, data.b), FLOAT64_RELATIVE)


def test_no_tokens_and_no_sequences():
    data = head_data(CASES[0], "cross_entropy", torch.float64)
    assert ops.token_norm(data.h[:0], data.y[:0], [0, 0], data.w, data.b).tolist() == [0, 0]
    assert ops.token_norm(data.h[:0], data.y[:0], torch.zeros(0, dtype=torch.int64), data.w, data.b).shape == (0,)


def test_out_receives_the_result():
    data = head_data(CASES[0], "cross_entropy", torch.float64)
    out = torch.full((len(COUNTS),), torch.nan, dtype=torch.float64)
    assert norm(data, out=out) is out
    assert torch.equal(out, norm(data))
    with pytest.raises(ipfast.InputError, match=r"expected out to be a contiguous torch.float64 tensor of shape \[7\]"):
        norm(data, out=out[1:])


def test_what_does_not_fit_is_refused():
    data = head_data(CASES[0], "cross_entropy", torch.float64)
    for counts in ([3, 4], [33, -1], [16.0, 16.0], [[16, 16]]):
        with pytest.raises(ipfast.InputError, match=r"token_norm: expected counts of shape \[B\], .* add up to the 32 rows"):
            norm(data, counts)
    for backend in ("cpp", "triton"):
        with pytest.raises(ipfast.UnavailableError, match=f"no kernel for the norm of a sequence's gradient; got '{backend}'"):
            norm(data, backend=backend)
    with pytest.raises(ipfast.InputError, match=r"expected one weight \[C, d\]"):
        ops.token_norm(data.h, data.y, list(COUNTS), data.w[None], data.b)
