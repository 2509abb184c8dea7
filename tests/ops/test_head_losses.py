"""head_dot and head_norm with every option of the losses, several queries and dropped weights, on every backend that runs here.

Truth is one autograd gradient a sample through torch's own loss, in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from backends import BACKENDS, computing_with, skip_slow
from cases import HeadCase, HeadData, confident_case, head_data
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_same_rounding, assert_within_rule
from torch import Tensor, nn

import ipfast
from ipfast import ops

RAGGED = HeadCase("ragged", 45, 75, 9)
TILES = HeadCase("several_tiles", 33, 20, 613)
TWO = HeadCase("two_classes", 50, 40, 2)
CASES = (RAGGED, TILES, TWO)
SINGLE = (torch.float32, torch.bfloat16)


def positive(classes: int, seed: int) -> Tensor:
    """Factors of the classes, one of them zero; exact in float32."""
    factors = 0.25 + 2 * torch.rand(classes, generator=torch.Generator().manual_seed(seed))
    factors[classes // 2] = 0
    return factors.double()


def soft(y: Tensor, classes: int) -> Tensor:
    """Soft targets whose rows need not sum to one, among them a one-hot and a zero row."""
    t = torch.rand(len(y), classes, generator=torch.Generator().manual_seed(7)).double()
    t[0] = torch.eye(classes, dtype=torch.float64)[y[0]]
    t[1] = 0
    return t


@dataclass(frozen=True)
class Form:
    """Options of a loss and torch's loss of them: given C and, for cross-entropy, hard labels."""

    name: str
    loss: str
    options: Callable[[int], dict[str, object]]
    torch: Callable[[int], Callable[[Tensor, Tensor], Tensor]]
    labels: Callable[[Tensor, int], Tensor] = lambda y, classes: y

    def __str__(self) -> str:
        return self.name


def entropy(**options: object) -> Callable[[Tensor, Tensor], Tensor]:
    return nn.CrossEntropyLoss(reduction="none", **options)


def bce(**options: object) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: nn.BCEWithLogitsLoss(reduction="none", **options)(z, y).sum(dim=-1)


def ignoring(y: Tensor, classes: int) -> Tensor:
    return y.masked_fill(torch.arange(len(y)) % 3 == 1, -100)


FORMS = (
    Form("weight", "cross_entropy", lambda c: {"class_weight": positive(c, 1)}, lambda c: entropy(weight=positive(c, 1))),
    Form("smoothing", "cross_entropy", lambda c: {"label_smoothing": 0.2}, lambda c: entropy(label_smoothing=0.2)),
    Form(
        "both",
        "cross_entropy",
        lambda c: {"class_weight": positive(c, 1), "label_smoothing": 0.2},
        lambda c: entropy(weight=positive(c, 1), label_smoothing=0.2),
    ),
    Form("ignore", "cross_entropy", lambda c: {"ignore_index": -100}, lambda c: entropy(ignore_index=-100), ignoring),
    Form(
        "everything",
        "cross_entropy",
        lambda c: {"class_weight": positive(c, 1), "label_smoothing": 0.2, "ignore_index": -100},
        lambda c: entropy(weight=positive(c, 1), label_smoothing=0.2, ignore_index=-100),
        ignoring,
    ),
    Form("soft", "cross_entropy", lambda c: {}, lambda c: entropy(), soft),
    Form(
        "soft_both",
        "cross_entropy",
        lambda c: {"class_weight": positive(c, 1), "label_smoothing": 0.2},
        lambda c: entropy(weight=positive(c, 1), label_smoothing=0.2),
        soft,
    ),
    Form("bce_pos", "bce_with_logits", lambda c: {"pos_weight": positive(c, 2)}, lambda c: bce(pos_weight=positive(c, 2))),
    Form("bce_weight", "bce_with_logits", lambda c: {"class_weight": positive(c, 1)}, lambda c: bce(weight=positive(c, 1))),
    Form(
        "bce_both",
        "bce_with_logits",
        lambda c: {"class_weight": positive(c, 1), "pos_weight": positive(c, 2)},
        lambda c: bce(weight=positive(c, 1), pos_weight=positive(c, 2)),
    ),
    Form(
        "mse_weight",
        "mse",
        lambda c: {"class_weight": positive(c, 1)},
        lambda c: lambda z, y: (positive(c, 1).to(z) * (z - y).square()).mean(dim=-1),
    ),
)
every_form = pytest.mark.parametrize("form", FORMS, ids=str)
every_backend = pytest.mark.parametrize("name", BACKENDS)


def form_data(case: HeadCase, form: Form, dtype: torch.dtype) -> HeadData:
    data = head_data(case, form.loss, dtype)
    return HeadData(data.h, form.labels(data.y, case.classes), data.w, data.b, data.g, data.gb)


def sample_gradients(data: HeadData, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """∇_(W,b) ℓ_i, flattened, by one autograd pass a sample: [N, C·d + C], float64."""
    w, b = data.w.double().requires_grad_(), data.b.double().requires_grad_()
    rows = []
    for i in range(len(data.h)):
        y = data.y[i : i + 1]
        value = function(data.h[i : i + 1].double() @ w.T + b, y.double() if y.is_floating_point() else y).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(value, (w, b))]))
    return torch.stack(rows)


@cache
def truth(case: HeadCase, form: Form, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(⟨query, ∇ℓ_i⟩, ‖∇ℓ_i‖²)"""
    data = form_data(case, form, dtype)
    gradients = sample_gradients(data, form.torch(case.classes))
    query = torch.cat([data.g.double().flatten(), data.gb.double()])
    return gradients @ query, gradients.square().sum(dim=1)


def scores(data: HeadData, form: Form, backend: str, precision: str | None = None) -> tuple[Tensor, Tensor]:
    options = {"loss": form.loss, "backend": backend, "precision": precision, **form.options(data.w.shape[0])}
    return ops.head_dot(*data.arguments, **options), ops.head_norm(*data.norm_arguments, **options)


@every_backend
@every_form
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_equals_autograd_through_torchs_loss(case, form, name):
    skip_slow(name, case, torch.float64)
    with computing_with(name) as backend:
        dot, norm = scores(form_data(case, form, torch.float64), form, backend)
    true_dot, true_norm = truth(case, form, torch.float64)
    assert_relative(dot, true_dot, FLOAT64_RELATIVE)
    assert_relative(norm, true_norm, FLOAT64_RELATIVE)


def plain(data: HeadData, form: Form) -> tuple[Tensor, Tensor]:
    """(scores, squared norms) in the dtype of the weights, from residuals by autograd: the tolerance rule's reference."""
    h = data.h.to(data.w.dtype)
    z = (h @ data.w.T + data.b).requires_grad_()
    y = data.y.to(z.dtype) if data.y.is_floating_point() else data.y
    function = form.torch(data.w.shape[0])
    if isinstance(function, nn.Module):
        function = function.to(z.dtype)
    (r,) = torch.autograd.grad(function(z, y).sum(), z)
    u = h @ data.g.T + data.gb
    if form.loss == "cross_entropy":
        label = (y if y.is_floating_point() else nn.functional.one_hot(y.clamp(min=0), z.shape[1])).argmax(dim=1, keepdim=True)
        u = u - u.gather(1, label)
    return (r * u).sum(dim=1), r.square().sum(dim=1) * (h.square().sum(dim=1) + 1)


def magnitudes(data: HeadData, form: Form) -> tuple[Tensor, Tensor]:
    """Σ|x||y| behind a score and behind a squared norm: what is added up in z, u and the residual, with z's own rounding."""
    h, w, b, g, gb = (t.double() for t in (data.h, data.w, data.b, data.g, data.gb))
    classes = len(w)
    z = (h @ w.T + b).requires_grad_()
    y = data.y.double() if data.y.is_floating_point() else data.y
    (r,) = torch.autograd.grad(form.torch(classes)(z, y).sum(), z)
    z, u = z.detach(), h @ g.T + gb
    mz, mu = h.abs() @ w.abs().T + b.abs(), h.abs() @ g.abs().T + gb.abs()
    size = h.square().sum(dim=1) + 1
    if form.loss == "cross_entropy":
        p = z.softmax(dim=1)
        label = (y if y.is_floating_point() else nn.functional.one_hot(y.clamp(min=0), classes)).argmax(dim=1, keepdim=True)
        options = form.options(classes)
        a = torch.as_tensor(options.get("class_weight", torch.ones(classes))).sum()  # no smaller than the factor of any row
        a = a * (y.sum(dim=1, keepdim=True) if y.is_floating_point() else 1) + 1
        part = (a * p * (1 + 2 * mz.amax(dim=1, keepdim=True)) + (a * p - r).abs()).scatter(1, label, 0)
        dot = (part * (mu + mu.gather(1, label) + (u - u.gather(1, label)).abs())).sum(dim=1)
        return dot, size * (r.square().sum(dim=1) + 2 * (part * (r.abs() + r.gather(1, label).abs())).sum(dim=1))
    factor = positive(classes, 1) if "class_weight" in form.options(classes) else torch.ones(classes).double()
    if form.loss == "mse":
        part = 2 / classes * factor * (mz + y.abs())
    else:
        pi = positive(classes, 2) if "pos_weight" in form.options(classes) else torch.ones(classes).double()
        part = factor * ((1 - y) * z.sigmoid() + pi * y * (-z).sigmoid()) * (1 + mz)
    return (part * u.abs() + r.abs() * mu).sum(dim=1), size * (r.square() + 2 * r.abs() * part).sum(dim=1)


@every_backend
@every_form
@pytest.mark.parametrize("dtype", SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_dtypes_keep_the_tolerance_rule(case, dtype, form, name):
    skip_slow(name, case, dtype)
    data = form_data(case, form, dtype)
    with computing_with(name) as backend:
        got = scores(data, form, backend)
    eps = torch.finfo(torch.float32).eps
    parts = zip(got, truth(case, form, dtype), plain(data, form), magnitudes(data, form), strict=True)
    for value, true, reference, magnitude in parts:
        assert value.dtype == torch.float32
        assert_within_rule(value, true, reference, magnitude, eps)


@every_backend
@every_form
@pytest.mark.parametrize("dtype", SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_is_autograd_at_the_rounded_operands(case, dtype, form, name):
    skip_slow(name, case, dtype, launches=2)
    data, factor = form_data(case, form, dtype), torch.ones(case.classes).double()
    if form.loss != "cross_entropy" and "class_weight" in form.options(case.classes):
        factor = positive(case.classes, 1)  # of an elementwise loss: multiplied with the query before that is rounded
    h, w, g = (value.to(torch.bfloat16).double() for value in (data.h, data.w, factor.to(data.g)[:, None] * data.g))
    g = torch.where(factor[:, None] == 0, 0, g / factor[:, None])
    at = HeadData(h, data.y, w, data.b.double(), g, data.gb.double())
    with computing_with(name) as backend:
        got = scores(data, form, backend, precision="bf16")
    gradients = sample_gradients(at, form.torch(case.classes))
    true = gradients @ torch.cat([at.g.flatten(), at.gb]), gradients.square().sum(dim=1)
    single = HeadData(*(t.float() if t.is_floating_point() else t for t in at.arguments))
    for value, expected, reference, magnitude in zip(got, true, plain(single, form), magnitudes(at, form), strict=True):
        assert_within_rule(value, expected, reference, magnitude, torch.finfo(torch.float32).eps)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", [form for form in FORMS if form.loss == "cross_entropy"], ids=str)
def test_confident_samples_keep_their_digits(form, dtype, name):
    data = confident_case(dtype)
    y = torch.eye(10, dtype=torch.float64)[data.y] if form.labels is soft else data.y
    data = HeadData(data.h, y, data.w, data.b, data.g, data.gb)
    with computing_with(name) as backend:
        got = scores(data, form, backend)
    gradients = sample_gradients(data, form.torch(10))
    true = gradients @ torch.cat([data.g.double().flatten(), data.gb.double()]), gradients.square().sum(dim=1)
    for value, expected in zip(got, true, strict=True):
        for i in range(len(y)):  # one by one: the small scores must not hide behind the large
            assert_relative(value[i : i + 1], expected[i : i + 1], CONFIDENT_RELATIVE)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter computes in NumPy, which warns of NaN
def test_an_ignored_row_is_zero_whatever_its_features(dtype, name):
    data = form_data(RAGGED, FORMS[4], dtype)
    ignored = data.y == -100
    data.h[ignored] = torch.nan
    with computing_with(name) as backend:
        dot, norm = scores(data, FORMS[4], backend)
        several = ops.head_dot(
            data.h, data.y, data.w, data.b, data.g.expand(3, -1, -1), None, ignore_index=-100, backend=backend
        )
    for value in (dot, norm, several):
        assert (value[ignored] == 0).all()
        assert torch.isfinite(value).all()
        assert (value[~ignored] != 0).all()


@every_backend
@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits"])
def test_factors_of_one_change_nothing(loss, name):
    data = head_data(RAGGED, loss, torch.float64)
    ones = torch.ones(RAGGED.classes)
    options = {"class_weight": ones} if loss == "cross_entropy" else {"class_weight": ones, "pos_weight": ones}
    with computing_with(name) as backend:
        for operation, arguments in ((ops.head_dot, data.arguments), (ops.head_norm, data.norm_arguments)):
            plain_result = operation(*arguments, loss=loss, backend=backend)
            assert_relative(operation(*arguments, loss=loss, backend=backend, **options), plain_result, FLOAT64_RELATIVE)


def stacks(case: HeadCase, loss: str, dtype: torch.dtype, queries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights, biases, query weights, query biases), each [Q, ...] of different heads."""
    each = [head_data(case, loss, dtype, seed=10 + q) for q in range(queries)]
    return tuple(torch.stack([getattr(data, field) for data in each]) for field in ("w", "b", "g", "gb"))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", [FORMS[4], FORMS[6], FORMS[9], FORMS[10]], ids=str)
@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("case", [RAGGED, TILES], ids=str)
@pytest.mark.parametrize("weights", ["one", "each"])
def test_a_query_does_not_depend_on_its_company(weights, case, queries, form, dtype, name):
    """Several queries in one pass are the queries one by one, bit for bit; on a GPU few classes share a tile and its sums."""
    skip_slow(name, case, dtype, launches=3 * queries)
    data = form_data(case, form, dtype)
    w, b, g, gb = stacks(case, form.loss, dtype, queries)
    options = {"loss": form.loss, **form.options(case.classes)}
    with computing_with(name) as backend:
        options["backend"] = backend
        head = (w, b) if weights == "each" else (data.w, data.b)
        got = ops.head_dot(data.h, data.y, *head, g, gb, **options)
        assert got.shape == (case.rows, queries)
        for q in range(queries):
            one = (w[q], b[q]) if weights == "each" else (data.w, data.b)
            alone = ops.head_dot(data.h, data.y, *one, g[q], gb[q], **options)
            if backend == "triton":
                assert_same_rounding(got[:, q], alone)
            else:
                assert torch.equal(got[:, q], alone), f"query {q}: largest difference {(got[:, q] - alone).abs().max():.3g}"


@every_backend
@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", "mse"])
def test_one_bias_serves_several_weights(loss, name):
    data = head_data(RAGGED, loss, torch.float64)
    w, _, g, gb = stacks(RAGGED, loss, torch.float64, 3)
    with computing_with(name) as backend:
        got = ops.head_dot(data.h, data.y, w, data.b, g, gb, loss=loss, backend=backend)
        for q in range(3):
            alone = ops.head_dot(data.h, data.y, w[q], data.b, g[q], gb[q], loss=loss, backend=backend)
            assert_relative(got[:, q], alone, FLOAT64_RELATIVE)


def masks(case: HeadCase, rates: tuple[float, ...]) -> list[Tensor]:
    return [ipfast.dropout_mask("weight", (case.classes, case.width), rate, 5, m) for m, rate in enumerate(rates)]


def masked(w: Tensor, dropped: list[Tensor], rescale: float) -> Tensor:
    result = (rescale * w).repeat(len(dropped), 1, 1)
    for member, mask in enumerate(dropped):
        result[member].view(-1)[mask] = 0
    return result


@every_backend
@every_form
@pytest.mark.parametrize("case", [RAGGED, TILES], ids=str)
def test_dropped_weights_equal_autograd_at_the_masked_parameters(case, form, name):
    """Masks of no, few and many entries; biases of their own."""
    skip_slow(name, case, torch.float64, launches=3)
    data = form_data(case, form, torch.float64)
    dropped, rescale = masks(case, (0.0, 0.01, 0.3)), 1 / 0.9
    _, b, g, gb = stacks(case, form.loss, torch.float64, 3)
    with computing_with(name) as backend:
        options = {"loss": form.loss, "backend": backend, **form.options(case.classes)}
        got = ops.head_dot(data.h, data.y, data.w, b, g, gb, dropped=dropped, rescale=rescale, **options)
        dense = ops.head_dot(data.h, data.y, masked(data.w, dropped, rescale), b, g, gb, **options)
    assert_relative(got, dense, FLOAT64_RELATIVE)
    for member, w in enumerate(masked(data.w, dropped, rescale)):
        at = HeadData(data.h, data.y, w, b[member], g[member], gb[member])
        true = sample_gradients(at, form.torch(case.classes)) @ torch.cat([g[member].flatten(), gb[member]])
        assert_relative(got[:, member], true, FLOAT64_RELATIVE)


@every_backend
@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", "mse"])
def test_dropped_weights_in_float32(loss, name):
    data = head_data(RAGGED, loss, torch.float32)
    dropped = masks(RAGGED, (0.02, 0.02, 0.2))
    g, gb = data.g.expand(3, -1, -1), data.gb.expand(3, -1)
    with computing_with(name) as backend:
        got = ops.head_dot(*data.arguments[:4], g, gb, loss=loss, dropped=dropped, rescale=1.25, backend=backend)
        alone = ops.head_dot(*data.arguments[:4], g[1:2], None, loss=loss, dropped=dropped[1:2], backend=backend)
    assert got.shape == (RAGGED.rows, 3)
    assert alone.shape == (RAGGED.rows, 1)
    for member, w in enumerate(masked(data.w.double(), dropped, 1.25)):
        at = HeadData(data.h.double(), data.y, w, data.b.double(), data.g.double(), data.gb.double())
        true = ops.head_dot(*at.arguments, loss=loss, backend="reference")
        assert_relative(got[:, member], true, CONFIDENT_RELATIVE)


INVALID = [
    ({"class_weight": torch.ones(3)}, "cross_entropy", r"expected class_weight of shape \[9\], one a class; got \[3\]"),
    ({"class_weight": -torch.ones(9)}, "cross_entropy", "expected class_weight to be finite and not negative"),
    ({"class_weight": [1.0] * 8 + [float("nan")]}, "mse", "expected class_weight to be finite and not negative"),
    ({"class_weight": "balanced"}, "cross_entropy", "expected class_weight to be numbers, one a class; got str"),
    ({"pos_weight": torch.ones(9)}, "cross_entropy", "expected pos_weight with loss='bce_with_logits' only"),
    ({"pos_weight": torch.ones(9)}, "mse", "expected pos_weight with loss='bce_with_logits' only; got it with 'mse'"),
    ({"pos_weight": torch.ones(2)}, "bce_with_logits", r"expected pos_weight of shape \[9\]"),
    ({"label_smoothing": -0.1}, "cross_entropy", "expected label_smoothing between 0 and 1.*got -0.1"),
    ({"label_smoothing": 1.1}, "cross_entropy", "expected label_smoothing between 0 and 1.*got 1.1"),
    ({"label_smoothing": 0.1}, "mse", "expected label_smoothing and ignore_index with loss='cross_entropy' only.*'mse'"),
    ({"ignore_index": 0}, "bce_with_logits", "expected label_smoothing and ignore_index with loss='cross_entropy' only"),
]


@pytest.mark.parametrize(("options", "loss", "message"), INVALID)
def test_wrong_options_are_refused(options, loss, message):
    data = head_data(RAGGED, loss, torch.float64)
    with pytest.raises(ipfast.IpfastError, match=f"head_dot: {message}"):
        ops.head_dot(*data.arguments, loss=loss, **options)
    with pytest.raises(ipfast.IpfastError, match=f"head_norm: {message}"):
        ops.head_norm(*data.norm_arguments, loss=loss, **options)


def test_wrong_targets_are_refused():
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    targets = soft(data.y, RAGGED.classes)
    for wrong, options, message in (
        (targets, {"ignore_index": -100}, "expected integer labels with ignore_index; got soft targets"),
        (targets[:, :4], {}, r"expected integer labels \[45\] or soft targets \[45, 9\] for cross_entropy; got .*\[45, 4\]"),
        (-targets, {}, "expected soft targets that are finite and not negative; row 0 is not"),
        (targets / 0, {}, "expected soft targets that are finite and not negative; row 0 is not"),
        (data.y.double(), {}, r"expected integer labels \[45\] or soft targets .*\.long\(\)"),
        (data.y - 100, {"ignore_index": -100}, r"expected labels in 0\.\.8"),
    ):
        with pytest.raises(ipfast.IpfastError, match=message):
            ops.head_dot(data.h, wrong, *data.arguments[2:], **options)


def test_wrong_stacks_and_masks_are_refused():
    data = head_data(RAGGED, "cross_entropy", torch.float64)
    w, b, g, gb = stacks(RAGGED, "cross_entropy", torch.float64, 3)
    mask = torch.tensor([1, 5, 7])
    for arguments, options, message in (
        ((w[:2], data.b, g, gb), {}, "expected one weight for all of the 3 queries, or one for each; got 2"),
        ((w, b[:2], g, gb), {}, r"expected bias of shape \[9\] or \[3, 9\]; got \[2, 9\]"),
        ((data.w, data.b, g, gb[:2]), {}, r"expected query_bias of shape \[9\] or \[3, 9\]; got \[2, 9\]"),
        ((data.w, data.b, g[:, :4], None), {}, r"expected query_weight of shape \[9, 75\] or \[K, 9, 75\]"),
        ((data.w, data.b, g[:0], None), {}, "expected at least one matrix in query_weight"),
        ((data.w, data.b, g, gb), {"dropped": [mask]}, "expected dropped to hold one mask for each of the 3 queries"),
        ((w, b, g, gb), {"dropped": [mask] * 3}, r"at one weight \[C, d\]; got 3 masks and 3 weights"),
        ((data.w, data.b, g[:1], None), {"dropped": [mask.int()]}, r"expected dropped\[0\] to be flat indices \[nnz\] int64"),
        ((data.w, data.b, g[:1], None), {"dropped": [mask.flip(0)]}, r"expected dropped\[0\] to hold ascending indices"),
        ((data.w, data.b, g[:1], None), {"dropped": [mask + 9 * 75]}, r"ascending indices below 675"),
        ((data.w, data.b, g[:1], None), {"dropped": [mask - 2]}, r"ascending indices below 675"),
    ):
        with pytest.raises(ipfast.IpfastError, match=message):
            ops.head_dot(data.h, data.y, *arguments, **options)
    with pytest.raises(ipfast.InputError, match=r"head_norm: expected one weight \[C, d\]; got 3"):
        ops.head_norm(data.h, data.y, w, b)
