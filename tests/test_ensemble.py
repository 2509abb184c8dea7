"""Dropout ensembles at the head: against autograd at explicitly masked parameters."""

import oracles
import pytest
import torch
from cases import LOSSES, HeadCase
from problems import TRAIN, VALIDATION_ROWS, Recorded, linear_problem, network_problem
from safetensors.torch import save_file
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast.engines import ensemble

WIDE = HeadCase("wide", 23, 61, 7)
"""Enough weights that every member drops some at the rates below."""


def truth(problem, points, loss="cross_entropy", include_bias=True, names=("weight", "bias"), h=None, h_val=None, q=None):
    """[N, T] of Eq. (5): each term's gradients at its own θ_m, one autograd gradient a sample."""
    h, h_val = (problem.x if h is None else h), (problem.x_val if h_val is None else h_val)
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    scale = 1 / (1 - points.rate) if points.rescale else 1.0
    columns = []
    for member in ([None] if points.include_base else []) + list(range(points.members)):
        keep_w, keep_b = torch.ones_like(w), torch.ones_like(b)
        if member is not None:
            keep_w *= scale
            keep_w.view(-1)[ipfast.dropout_mask(names[0], w.shape, points.rate, points.seed, member)] = 0
            if points.mask_bias:
                keep_b *= scale
                keep_b[ipfast.dropout_mask(names[1], b.shape, points.rate, points.seed, member)] = 0
        gradients = [
            oracles.per_sample_gradients(x, y, w * keep_w, b * keep_b, loss)
            for x, y in ((h, problem.y), (h_val, problem.y_val))
        ]
        if points.chain:
            gradients = [g * torch.cat([keep_w.flatten(), keep_b]) for g in gradients]
        if not include_bias:
            gradients = [g[:, : w.numel()] for g in gradients]
        columns.append(gradients[0] @ gradients[1].mean(dim=0))
    return torch.stack(columns, dim=1)


@pytest.fixture(params=["sparse", "dense"])
def route(request, monkeypatch):
    """How the members' logits are computed, whatever would pay here."""
    monkeypatch.setattr(
        "ipfast.groups.head.select_ensemble", lambda **_: ensemble.EnsembleChoice(request.param, "asked for by the test")
    )
    return request.param


VARIANTS = {
    "default": {},
    "seed": {"seed": 2**63 + 5},
    "plain": {"rescale": False},
    "chain": {"chain": True},
    "bias": {"mask_bias": True},
    "chain_bias": {"mask_bias": True, "chain": True},
    "base": {"include_base": True},
    "base_plain": {"include_base": True, "rescale": False},
    "all": {"mask_bias": True, "chain": True, "include_base": True, "rescale": False},
}


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_an_ensemble_is_autograd_at_the_masked_parameters(options, rate, route):
    problem = linear_problem(case=WIDE)
    points = ipfast.Dropout(4, rate, **options)
    got = ipfast.score(problem.model, problem.train, problem.val, method=ipfast.Method(points=points), keep_members=True)
    expected = truth(problem, points)
    assert got.stats["ensemble"] == route
    assert_relative(got.members, expected, FLOAT64_RELATIVE)
    assert_relative(got.values, expected.mean(dim=1), FLOAT64_RELATIVE)
    assert_relative(got.spread, expected.std(dim=1), FLOAT64_RELATIVE)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("include_bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_backend(loss, include_bias, backend):
    problem = linear_problem(loss, case=WIDE)
    options = {"loss": loss, "include_bias": include_bias, "backend": backend, "method": "ip_ensemble"}
    got = ipfast.score(problem.model, problem.train, problem.val, **options)
    assert_relative(got.values, truth(problem, ipfast.Dropout(), loss, include_bias).mean(dim=1), FLOAT64_RELATIVE)
    assert got.method == "ip_ensemble"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [1, 5, 17])
def test_rate_zero_is_ip_bitwise(members, dtype):
    problem = linear_problem(dtype=dtype)
    method = ipfast.Method(points=ipfast.Dropout(members, 0, include_base=True))
    got = ipfast.score(problem.model, problem.train, problem.val, method=method)
    assert torch.equal(got.values, ipfast.score(problem.model, problem.train, problem.val).values)
    assert "members" not in got.stats


def test_members_kept_or_not_give_the_same_bits():
    problem = linear_problem(dtype=torch.float32)
    kept, streamed = (
        ipfast.score(problem.model, problem.train, problem.val, method="ip_ensemble", keep_members=keep)
        for keep in (True, False)
    )
    assert streamed.members is None
    assert kept.members.shape == (TRAIN.rows, 5)
    assert torch.equal(kept.values, streamed.values)


def test_all_members_meet_the_features_in_one_pass():
    problem = network_problem()
    recorded = Recorded(problem.model)
    ipfast.score(recorded, problem.train, problem.val, method="ip_ensemble", head="inner.fc", check=False)
    assert sum(recorded.calls) == len(problem.y) + VALIDATION_ROWS


def features(problem):
    seen = []
    with torch.no_grad():
        handle = problem.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        problem.model(problem.x), problem.model(problem.x_val)
    handle.remove()
    return seen


def test_through_a_network_the_masks_go_by_full_names():
    problem = network_problem()
    h, h_val = features(problem)
    method = ipfast.Method(points=ipfast.Dropout(3, 0.1, mask_bias=True))
    got = ipfast.score(problem.model, problem.train, problem.val, method=method)
    expected = truth(problem, method.points, names=("fc.weight", "fc.bias"), h=h, h_val=h_val)
    assert_relative(got.values, expected.mean(dim=1), FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", ["names", "safetensors", "npz"])
def test_features_get_the_masks_of_the_model_they_came_from(kind, tmp_path):
    import numpy as np

    problem = network_problem()
    h, h_val = features(problem)
    points = ipfast.Dropout(3, 0.1, mask_bias=True)
    expected = ipfast.score(problem.model, problem.train, problem.val, method=ipfast.Method(points=points)).values
    weight, bias = problem.head.weight.detach(), problem.head.bias.detach()
    head = problem.head
    if kind == "names":
        names = {"weight": "fc.weight", "bias": "fc.bias"}
        points = ipfast.Dropout(3, 0.1, mask_bias=True, names=names)
    elif kind == "safetensors":
        head = tmp_path / "head.safetensors"
        save_file({"weight": weight, "bias": bias}, head, metadata={"name": "fc"})
    else:
        head = tmp_path / "head.npz"
        np.savez(head, weight=weight.numpy(), bias=bias.numpy(), name="fc")
    got = ipfast.score(head, (h, problem.y), (h_val, problem.y_val), method=ipfast.Method(points=points)).values
    assert_relative(got, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_weight_that_lies_by_columns(rate, route):
    problem = linear_problem(case=WIDE)
    method = ipfast.Method(points=ipfast.Dropout(3, rate, chain=True))
    expected = ipfast.score(problem.model, problem.train, problem.val, method=method).values
    problem.head.weight = nn.Parameter(problem.head.weight.detach().T.contiguous().T)
    assert_relative(ipfast.score(problem.model, problem.train, problem.val, method=method).values, expected, FLOAT64_RELATIVE)


def test_tied_weights_get_the_mask_of_their_first_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(7, 7, bias=False, dtype=torch.float64)
            self.last = nn.Linear(7, 7, bias=False, dtype=torch.float64)
            self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(self.first(x).tanh())

    model = Tied().eval()
    query = ipfast.query(model, (torch.randn(5, 7).double(), torch.arange(5)), method="ip_ensemble", head="last")
    features = {"weight": "first.weight"}
    h = torch.randn(5, 7).double()
    method = ipfast.Method(points=ipfast.Dropout(names=features))
    untied = nn.Linear(7, 7, bias=False, dtype=torch.float64)
    untied.load_state_dict({"weight": model.last.weight})
    again = ipfast.query(untied, (h, torch.arange(5)), method=method)
    masks = [
        [term.point.mask.dropped(name, (7, 7)) for term in q.terms] for q, name in ((query, "first.weight"), (again, "weight"))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))


@pytest.mark.parametrize("combine", ["zscore", "rank"])
def test_combinations_give_every_member_the_same_say(combine):
    problem = linear_problem(case=WIDE)
    problem.x[5], problem.y[5] = problem.x[4], problem.y[4]  # a tie
    points = ipfast.Dropout(3, 0.1, combine=combine)
    got = ipfast.score(problem.model, problem.train, problem.val, method=ipfast.Method(points=points), keep_members=True)
    members = got.members.double()
    if combine == "zscore":
        expected = ((members - members.mean(dim=0)) / members.std(dim=0, correction=0)).mean(dim=1)
    else:
        below = (members[None] < members[:, None]).sum(dim=1).double()
        same = (members[None] == members[:, None]).sum(dim=1)
        n = len(members)
        expected = ((2 * (below + (same + 1) / 2) - 1) / n - 1).mean(dim=1)
    assert got.values[4] == got.values[5]
    assert_relative(got.values, expected, FLOAT64_RELATIVE)
    assert abs(float(got.values.sum())) < 1e-9
    assert_relative(members, truth(problem, points), FLOAT64_RELATIVE)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("combine", ["mean", "rank"])
def test_a_file_brings_the_ensemble_back(options, combine, tmp_path):
    problem = linear_problem(case=WIDE)
    method = ipfast.Method(points=ipfast.Dropout(3, 0.1, combine=combine, names={"weight": "größe"}, **options))
    before = ipfast.query(problem.model, problem.val, method=method)
    before.save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(tmp_path / "q.safetensors")
    direct = ipfast.score(problem.model, problem.train, problem.val, method=method)
    for query in (before, after):
        got = ipfast.score(problem.model, problem.train, query)
        assert torch.equal(got.values, direct.values)
    assert [term.point for term in after.terms] == [term.point for term in before.terms]
    if combine == "mean":
        assert torch.equal(ipfast.Scorer(problem.model, after)(problem.train), direct.values)
    else:
        with pytest.raises(ipfast.InputError, match="Scorer: expected a query whose members are averaged; combine='rank'"):
            ipfast.Scorer(problem.model, after)


def test_self_influence_of_an_ensemble_is_the_mean_over_members():
    problem = linear_problem(case=WIDE)
    points = ipfast.Dropout(3, 0.1)
    got = ipfast.score(problem.model, problem.train, method=ipfast.Method(points=points, target="self"))
    norms = []
    for member in range(3):
        w = problem.head.weight.detach() / 0.9
        w.view(-1)[ipfast.dropout_mask("weight", w.shape, 0.1, 0, member)] = 0
        norms.append(oracles.head_norm(problem.x, problem.y, w, problem.head.bias.detach(), "cross_entropy"))
    assert_relative(got.values, -torch.stack(norms).mean(dim=0), FLOAT64_RELATIVE)


@pytest.mark.parametrize(
    ("rate", "members", "device", "name"),
    [(0.01, 5, "cpu", "sparse"), (0.01, 1, "cpu", "dense"), (0.5, 5, "cpu", "dense"), (0.01, 5, "cuda", "dense")],
)
def test_the_route_and_its_reason(rate, members, device, name):
    choice = ipfast.select_ensemble(rate=rate, classes=10, width=512, members=members, device=device)
    assert choice.name == name
    assert choice.reason


@pytest.mark.parametrize(("cost", "precision"), [("SPARSE_COST", None), ("GATHER_COST", None), ("BF16_SPARSE_COST", "bf16")])
def test_the_cost_of_a_gather_decides(cost, precision, monkeypatch):
    monkeypatch.setattr(ensemble, cost, 101.0)
    assert ipfast.select_ensemble(rate=0.01, classes=10, width=512, members=5, precision=precision).name == "dense"


@pytest.mark.parametrize(("rate", "name"), [(0.01, "sparse"), (0.15, "sparse"), (0.25, "dense")])
def test_bf16_corrects_at_higher_rates(rate, name):
    assert ipfast.select_ensemble(rate=rate, classes=10, width=512, members=5, precision="bf16").name == name
    assert ipfast.select_ensemble(rate=0.15, classes=10, width=512, members=5).name == "dense"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": 0}, ipfast.InputError, "expected members to be a positive integer; got 0"),
        ({"members": 2.5}, ipfast.InputTypeError, "expected members to be a positive integer; got float"),
        ({"rate": 1.0}, ipfast.InputError, "expected rate to be a share of the weights, 0 ≤ rate < 1; got 1"),
        ({"rate": -0.1}, ipfast.InputError, "expected rate .* got -0.1"),
        ({"rate": float("nan")}, ipfast.InputError, "expected rate .* got nan"),
        ({"rate": "1%"}, ipfast.InputTypeError, "expected rate to be a number; got str"),
        ({"seed": -1}, ipfast.InputError, "expected seed to be in"),
        ({"seed": 0.5}, ipfast.InputTypeError, "expected seed to be an integer; got float"),
        ({"scope": "al"}, ipfast.InputError, "expected scope .* Did you mean 'all'"),
        ({"combine": "median"}, ipfast.InputError, "expected combine to be one of"),
        ({"names": ["fc"]}, ipfast.InputTypeError, "expected names to map"),
    ],
)
def test_what_is_no_ensemble_is_refused(options, error, message):
    with pytest.raises(error, match=f"Dropout: {message}"):
        ipfast.Dropout(**options)


def test_names_of_other_parameters_are_refused():
    problem = linear_problem()
    method = ipfast.Method(points=ipfast.Dropout(names={"fc.weight": "weight"}))
    with pytest.raises(ipfast.InputError, match=r"expected names of Dropout to map 'weight' or 'bias'.*; got 'fc\.weight'"):
        ipfast.score(problem.model, problem.train, problem.val, method=method)


def test_a_norm_through_the_mask_is_refused():
    with pytest.raises(ipfast.InputError, match=r"Method: expected target='val' with Dropout\(chain=True\)"):
        ipfast.Method(points=ipfast.Dropout(chain=True), target="self")


def test_spread_needs_members():
    problem = linear_problem()
    got = ipfast.score(problem.model, problem.train, problem.val, method="ip_ensemble")
    with pytest.raises(ipfast.InputError, match="expected the scores of two members or more; got no members"):
        _ = got.spread
