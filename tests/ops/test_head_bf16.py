"""precision="bf16": float64 autograd at the rounded operands is the truth; products are exact and sums are float32."""

from dataclasses import replace
from functools import cache

import oracles
import pytest
import torch
from backends import BACKENDS, CPP, computing_with, skip_slow
from cases import HEAD_CASES, LOSSES, HeadCase, HeadData, confident_case, head_data
from tolerances import BF16_CONFIDENT_RELATIVE, CONFIDENT_RELATIVE, assert_relative, assert_same_rounding, assert_within_rule
from torch import Tensor

import ipfast
from ipfast import ops

NARROW = (torch.float32, torch.float16, torch.bfloat16)
RAGGED, TILES = HEAD_CASES[1], HEAD_CASES[-1]
EPS = torch.finfo(torch.float32).eps
CHUNKS = HeadCase("several_chunks", 67, 1031, 11)
"""More features than one sum runs over, more rows than one block holds, and an odd number of both."""
CASES = (*HEAD_CASES, CHUNKS)
every_backend = pytest.mark.parametrize("name", BACKENDS)


def nearest(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).to(torch.float32)


def rounded(data: HeadData) -> HeadData:
    """The operands of the products rounded; biases and labels as they are."""
    return replace(data, h=nearest(data.h), w=nearest(data.w), g=nearest(data.g))


@cache
def truth(case: HeadCase, loss: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    data = rounded(head_data(case, loss, dtype))
    return oracles.head_dot(*data.arguments, loss), oracles.head_norm(*data.norm_arguments, loss)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_those_of_the_rounded_operands(case, loss, dtype, name):
    skip_slow(name, case, dtype, launches=2)
    data = head_data(case, loss, dtype)
    at = rounded(data)
    with computing_with(name) as backend:
        dot = ops.head_dot(*data.arguments, loss=loss, precision="bf16", backend=backend)
        norm = ops.head_norm(*data.norm_arguments, loss=loss, precision="bf16", backend=backend)
    assert dot.dtype == norm.dtype == torch.float32
    true_dot, true_norm = truth(case, loss, dtype)
    magnitude = oracles.head_dot_magnitude(*at.arguments, loss)
    assert_within_rule(dot, true_dot, oracles.plain_head_dot(*at.arguments, loss), magnitude, EPS)
    magnitude = oracles.head_norm_magnitude(*at.norm_arguments, loss)
    assert_within_rule(norm, true_norm, oracles.plain_head_norm(*at.norm_arguments, loss), magnitude, EPS)


@every_backend
def test_confident_samples_keep_the_digits_of_their_operands(name):
    """Rounded logits or a rounded u would leave nothing of u_c − u_y at 1 − p_y = 1e-8; rounded operands leave two digits."""
    data = confident_case(torch.float32)
    at = rounded(data)
    with computing_with(name) as backend:
        dot = ops.head_dot(*data.arguments, precision="bf16", backend=backend)
        norm = ops.head_norm(*data.norm_arguments, precision="bf16", backend=backend)
    for got, oracle, arguments, exact in (
        (dot, oracles.head_dot, at.arguments, data.arguments),
        (norm, oracles.head_norm, at.norm_arguments, data.norm_arguments),
    ):
        true, unrounded = oracle(*arguments, "cross_entropy"), oracle(*exact, "cross_entropy")
        for i in range(len(true)):  # one by one: the small scores must not hide behind the large
            assert_relative(got[i : i + 1], true[i : i + 1], CONFIDENT_RELATIVE)
            assert_relative(got[i : i + 1], unrounded[i : i + 1], BF16_CONFIDENT_RELATIVE)


@pytest.mark.skipif(len(CPP) < 2, reason="one instruction set, nothing to compare")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", [RAGGED, TILES, CHUNKS], ids=str)
def test_instruction_sets_differ_in_the_order_of_sums_only(case, loss, dtype):
    data = head_data(case, loss, dtype)
    results = []
    for name in CPP:
        with computing_with(name) as backend:
            dot = ops.head_dot(*data.arguments, loss=loss, precision="bf16", backend=backend)
            results.append((dot, ops.head_norm(*data.norm_arguments, loss=loss, precision="bf16", backend=backend)))
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            assert_same_rounding(got, first)


@every_backend
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", [RAGGED, TILES], ids=str)
def test_operands_that_bfloat16_holds_are_left_alone(case, loss, name):
    """Without anything to round it is the exact computation, whatever the features are stored in."""
    data = rounded(head_data(case, loss, torch.bfloat16))
    skip_slow(name, case, torch.float32, launches=3)
    with computing_with(name) as backend:
        narrow, wide = (
            ops.head_dot(h, *data.arguments[1:], loss=loss, precision="bf16", backend=backend)
            for h in (data.h.to(torch.bfloat16), data.h)
        )
        exact = ops.head_dot(*data.arguments, loss=loss, backend=backend)
    assert torch.equal(narrow, wide)
    assert_same_rounding(narrow, exact)


@every_backend
def test_rounding_is_to_the_nearest_and_ties_to_even(name):
    """1 + 2⁻⁸ lies halfway between two numbers of bfloat16, whose last bits are even and odd."""
    step = 2.0**-7
    h = torch.tensor([[1 + step / 2], [1 + 3 * step / 2], [1 + step / 2 + 2 * EPS], [-1 - step / 2]])
    expected = torch.tensor([1.0, 1 + 2 * step, 1 + step, -1.0])
    with computing_with(name) as backend:
        got = ops.head_dot(
            h, torch.zeros(4, 1), torch.ones(1, 1), None, torch.ones(1, 1), None, loss="mse", scale=0.5, precision="bf16",
            backend=backend,
        )  # fmt: skip
    assert torch.equal(got, expected.square())


def masks(case: HeadCase) -> list[Tensor]:
    rates = (0.0, 0.01, 0.3)
    return [ipfast.dropout_mask("weight", (case.classes, case.width), rate, 5, m) for m, rate in enumerate(rates)]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", [RAGGED, TILES, CHUNKS], ids=str)
def test_a_member_is_rounded_after_it_is_rescaled(case, loss, dtype, name):
    """So a sparse member and its dense weight are the same numbers."""
    skip_slow(name, case, dtype, launches=6)
    data, dropped, rescale = head_data(case, loss, dtype), masks(case), 1 / 0.9
    each = [head_data(case, loss, dtype, seed=10 + q) for q in range(3)]
    b, g, gb = (torch.stack([getattr(other, field) for other in each]) for field in ("b", "g", "gb"))
    weights = (rescale * data.w).repeat(3, 1, 1)
    for weight, mask in zip(weights, dropped, strict=True):
        weight.view(-1)[mask] = 0
    options = {"loss": loss, "precision": "bf16"}
    with computing_with(name) as backend:
        options["backend"] = backend
        got = ops.head_dot(data.h, data.y, data.w, b, g, gb, dropped=dropped, rescale=rescale, **options)
        dense = ops.head_dot(data.h, data.y, weights, b, g, gb, **options)
    assert_same_rounding(got, dense)
    for q in range(3):
        at = rounded(HeadData(data.h, data.y, weights[q], b[q], g[q], gb[q]))
        full = replace(at, w=nearest(rescale * data.w))  # what a sparse member adds up, and takes off again
        magnitude = oracles.head_dot_magnitude(*at.arguments, loss) + oracles.head_dot_magnitude(*full.arguments, loss)
        plain = oracles.plain_head_dot(*at.arguments, loss)
        assert_within_rule(got[:, q], oracles.head_dot(*at.arguments, loss), plain, magnitude, EPS)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", ["one", "each"])
@pytest.mark.parametrize("case", [RAGGED, TILES], ids=str)
def test_a_query_does_not_depend_on_its_company(case, weights, loss, dtype, name):
    """Bit for bit; on a GPU few classes share a tile and its sums."""
    queries = 3
    skip_slow(name, case, dtype, launches=3 * queries)
    data = head_data(case, loss, dtype)
    each = [head_data(case, loss, dtype, seed=10 + q) for q in range(queries)]
    w, b, g, gb = (torch.stack([getattr(other, field) for other in each]) for field in ("w", "b", "g", "gb"))
    with computing_with(name) as backend:
        options = {"loss": loss, "precision": "bf16", "backend": backend}
        head = (w, b) if weights == "each" else (data.w, data.b)
        got = ops.head_dot(data.h, data.y, *head, g, gb, **options)
        for q in range(queries):
            one = (w[q], b[q]) if weights == "each" else (data.w, data.b)
            alone = ops.head_dot(data.h, data.y, *one, g[q], gb[q], **options)
            if backend == "triton":
                assert_same_rounding(got[:, q], alone)
            else:
                assert torch.equal(got[:, q], alone), f"query {q}: largest difference {(got[:, q] - alone).abs().max():.3g}"


@pytest.mark.parametrize("operation", ["head_dot", "head_norm"])
def test_what_has_no_bf16_is_refused(operation):
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    arguments = data.arguments if operation == "head_dot" else data.norm_arguments
    with pytest.raises(ipfast.InputTypeError, match=f"{operation}: expected float32, .* got float64. Leave precision out"):
        getattr(ops, operation)(*arguments, precision="bf16")
    for wrong in ("fp16", 16, ""):
        with pytest.raises(ipfast.InputError, match=f"{operation}: expected precision to be 'bf16' or None.*{wrong!r}"):
            getattr(ops, operation)(data.h.float(), *arguments[1:], precision=wrong)
