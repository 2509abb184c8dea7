"""Unusual networks that people have: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, by_definition, gradients, labels, numbers, seeded
from tolerances import FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.data import DataLoader

import ipfast
from ipfast import Dropout, Method


class Sorting(nn.Module):
    """Brings the samples into the order of their lengths, as is done before packing, and back."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.outer = nn.Embedding(20, 6), nn.Linear(6, 5), nn.Linear(5, C)

    def forward(self, ids):
        lengths = (ids > 0).sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        h = torch.tanh(self.inner(self.embed(ids[order]).sum(dim=1) / lengths[order, None]))
        return self.outer(h)[torch.argsort(order)]


def ids_of(count, longest_first):
    found = torch.randint(1, 20, (count, 7), generator=torch.Generator().manual_seed(2))
    for row in range(count):
        found[row, 7 - row % 5 if longest_first else 1 + row % 5 :] = 0
    return found


@pytest.mark.parametrize("longest_first", [True, False])
def test_a_network_that_reorders_its_batch(longest_first):
    model = seeded(Sorting)
    ids, val = ids_of(N, longest_first), ids_of(M, longest_first)
    for engine in ("ghost", "forward"):
        found = ipfast.score(model, (ids, Y), (val, Y_VAL), params="all", engine=engine, progress=False)
        assert_relative_to_largest(found.values, by_definition(model, ids, Y, val, Y_VAL), FLOAT64_RELATIVE)
    selves = ipfast.score(model, (ids, Y), method="self_tracin", params="all", progress=False)
    assert_relative_to_largest(selves.values, -gradients(model, ids, Y).square().sum(dim=1), FLOAT64_RELATIVE)


class Experts(nn.Module):
    """Each sample goes to one of two layers."""

    def __init__(self):
        super().__init__()
        self.experts, self.head = nn.ModuleList([nn.Linear(D, 4), nn.Linear(D, 4)]), nn.Linear(4, C)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == number).nonzero()[:, 0]
            if len(rows):
                h = h.index_add(0, rows, expert(x[rows]).tanh())
        return self.head(h)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_experts_that_get_some_of_the_samples(first):
    model, order = seeded(Experts), torch.argsort(X[:, 0] > 0, stable=True).roll(first)
    x, y = X[order], Y[order]
    found = ipfast.score(model, (x, y), (X_VAL, Y_VAL), params="all", engine="ghost", progress=False)
    assert_relative_to_largest(found.values, by_definition(model, x, y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


def test_logits_without_a_class_dimension():
    body = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)))
    y, y_val = (Y > 0).double(), (Y_VAL > 0).double()
    found = ipfast.score(body, (X, y), (X_VAL, y_val), params="all", loss="bce_with_logits", progress=False)
    expected = by_definition(body, X, y, X_VAL, y_val, loss=F.binary_cross_entropy_with_logits)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Pairs(nn.Module):
    """Called on both halves of a pair at once, in a way that ipfast cannot know."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 4)

    def forward(self, *, left, right):
        return (self.inner(left) * self.inner(right)).sum(dim=1)


FORMS = {
    "a tuple": lambda a, b, w, y: (a, b, w, y),
    "a mapping": lambda a, b, w, y: {"a": a, "b": b, "labels": w, "target": y},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_loss_of_ones_own_gets_the_batch_as_the_data_gives_it(form, batch_size):
    model, y, weights = seeded(Pairs), numbers(N, seed=5), numbers(N, seed=6).abs()
    others = numbers(N, D, seed=7)

    def loss(model, batch):
        a, b, w, y = batch if form == "a tuple" else (batch[name] for name in ("a", "b", "labels", "target"))
        return w * (model(left=a, right=b) - y).square()

    data = [FORMS[form](*sample) for sample in zip(X, others, weights, y, strict=True)]
    options = {"loss": loss, "params": "all", "labels_key": "target", "batch_size": batch_size, "progress": False}
    found = ipfast.score(model, DataLoader(data, 4), DataLoader(data[:M], 3), **options)
    rows = []
    for i in range(N):
        one = slice(i, i + 1)
        value = weights[one] * (model(left=X[one], right=others[one]) - y[one]).square()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), list(model.parameters()))]))
    g = torch.stack(rows)
    assert_relative_to_largest(found.values, g @ g[:M].mean(dim=0), FLOAT64_RELATIVE)


class Attending(nn.Module):
    """Causal attention over sequences that are padded on the left, with a mask that is added."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, 4), nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, ids):
        h, hidden = self.embed(ids), torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        mask = torch.zeros(len(ids), *hidden.shape, dtype=h.dtype).masked_fill(hidden | (ids == 0)[:, None], -torch.inf)
        for _ in range(2):
            h = F.scaled_dot_product_attention(self.inner(h), h, h, mask)
        return self.head(h[:, -1])


@pytest.mark.parametrize("engine", ["forward", "ghost"])
def test_rows_of_attention_that_see_nothing(engine):
    model, ids, val = seeded(Attending), ids_of(N, True).flip(1), ids_of(M, True).flip(1)
    found = ipfast.score(model, (ids, Y), (val, Y_VAL), params="all", engine=engine, progress=False)
    assert_relative_to_largest(found.values, by_definition(model, ids, Y, val, Y_VAL), FLOAT64_RELATIVE)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(D, C)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.calls.add_(1)
        return self.head(x)


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_buffers_that_a_network_changes_stay_the_callers(engine):
    model = seeded(Counts)
    ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", engine=engine, check=False, progress=False)
    assert float(model.calls) == 0


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_weights_that_a_lookup_renormalises_stay_the_callers(engine):
    model = seeded(lambda: nn.Sequential(nn.Embedding(20, 4, max_norm=0.5), nn.Flatten(), nn.Linear(28, C)))
    before = model[0].weight.detach().clone()
    assert float(before.norm(dim=1).min()) > 0.5
    for params in ("all", ["^2"]):
        ipfast.score(model, (ids_of(N, True), Y), (ids_of(M, True), Y_VAL), params=params, engine=engine, progress=False)
        assert torch.equal(model[0].weight, before)


def test_parameters_that_have_no_score_are_refused():
    model = seeded(lambda: nn.Linear(D, C))
    model.register_parameter("wave", nn.Parameter(torch.zeros(2, dtype=torch.cfloat)))
    with pytest.raises(ipfast.InputTypeError, match=r"expected real parameters .*; wave is complex"):
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
    model = seeded(lambda: nn.Sequential(nn.Embedding(20, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(28, C)))
    with pytest.raises(ipfast.InputError, match=r"0 \(Embedding\) divides its gradient .* scale_grad_by_freq"):
        ipfast.score(model, (ids_of(N, True), Y), (ids_of(M, True), Y_VAL), params="all", progress=False)


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"params": "all"}, {"params": "all", "engine": "ghost"}])
def test_the_callers_autocast_does_not_narrow_scores(options):
    model = seeded(lambda: nn.Linear(D, C)).float()
    data, val = (X.float(), Y), (X_VAL.float(), Y_VAL)
    expected = ipfast.score(model, data, val, progress=False, **options).values
    with torch.autocast("cpu", torch.bfloat16):
        found = ipfast.score(model, data, val, progress=False, **options).values
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(C, 4), nn.Linear(4, C, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


@pytest.mark.parametrize("chain", [False, True])
def test_masks_of_all_parameters_reach_tied_ones_and_the_chain(chain):
    """Against autograd through θ_m = (1 − D)∘θ/(1 − rate), with the masks of `ipfast.dropout_mask`."""
    model, rate, members = seeded(Tied), 0.3, 3
    x, x_val = labels(N, seed=3), labels(M, seed=4)
    method = Method(points=Dropout(members, rate, scope="all", chain=chain))
    found = ipfast.score(model, (x, Y), (x_val, Y_VAL), method=method, progress=False)
    weight, expected = model.embed.weight.detach(), torch.zeros(N, dtype=torch.float64)
    for member in range(members):
        keep = torch.ones_like(weight)
        keep.view(-1)[ipfast.dropout_mask("embed.weight", tuple(weight.shape), rate, 0, member)] = 0
        masked = weight * keep / (1 - rate)

        def rows(x, y, masked=masked, keep=keep):
            h, made = masked[x], []
            for i in range(len(x)):
                theta = masked.clone().requires_grad_()
                F.cross_entropy(h[i : i + 1] @ theta.T, y[i : i + 1]).backward()
                made.append((theta.grad * keep / (1 - rate) if chain else theta.grad).flatten())
            return torch.stack(made)

        expected += rows(x, Y) @ rows(x_val, Y_VAL).mean(dim=0) / members
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


def test_models_in_a_wrapper_are_taken_out():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))
    expected = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        found = ipfast.score(wrapped.eval(), (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
        assert torch.equal(found.values, expected.values)


def test_a_scorer_works_within_inference_mode():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))
    several = {"cats": (X_VAL, Y_VAL), "dogs": (X_VAL + 1, Y_VAL)}
    scorer = ipfast.Scorer(model, ipfast.query(model, several, params="all"))
    expected = scorer((X, Y))
    with torch.inference_mode():
        assert torch.equal(scorer((X, Y)), expected)


@pytest.mark.parametrize("options", [{}, *({"params": "all", "engine": name} for name in ("forward", "ghost", "explicit"))])
def test_models_made_in_inference_mode(options):
    def build():
        return nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, C))

    with torch.inference_mode():
        frozen = seeded(build)
    found, expected = (
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False, **options) for model in (frozen, seeded(build))
    )
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("options", [{}, {"params": "all"}])
def test_torchscript_is_refused_by_name(options):
    body = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch.jit
        scripted = torch.jit.script(body)
    with pytest.raises(ipfast.InputTypeError, match="made of Python modules; it is TorchScript"):
        ipfast.score(scripted, (X, Y), (X_VAL, Y_VAL), progress=False, **options)
    model, plain = (nn.Sequential(inner, seeded(lambda: nn.Linear(4, C))).eval() for inner in (scripted, body))
    if options:
        with pytest.raises(ipfast.InputTypeError, match="Python modules; 0 is TorchScript"):
            ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False, **options)
    else:  # features are the same whatever computes them
        found, expected = (ipfast.score(each, (X, Y), (X_VAL, Y_VAL), progress=False) for each in (model, plain))
        assert_relative_to_largest(found.values, expected.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("options", [{}, {"params": "all"}, {"params": "all", "check": False}])
def test_inputs_of_another_dtype_than_the_model(kind, options):
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C))).float()
    name = str(kind).removeprefix("torch.")
    with pytest.raises(ipfast.InputTypeError, match=f"for {name} it raised: .*Convert the inputs to float32"):
        ipfast.score(model, (X.to(kind), Y), (X_VAL.to(kind), Y_VAL), progress=False, **options)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes") as raised:  # any other error is the model's own
        ipfast.score(model, (X[:, 1:].float(), Y), (X_VAL[:, 1:].float(), Y_VAL), progress=False, **options)
    assert not isinstance(raised.value, ipfast.IpfastError)
