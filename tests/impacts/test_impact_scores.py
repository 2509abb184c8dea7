"""Scores and queries of every impact, through the public functions, against autograd in float64."""

import impact_oracles as truth
import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from cases import HeadCase
from networks import PROBLEMS, assert_unchanged, snapshot
from problems import linear_problem, network_problem, token_problem
from tolerances import AUTOCAST_RELATIVE, FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_relative_to_largest
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ipfast
from ipfast import Adversarial, Counterfactual, DemographicParity, EqualOpportunity
from ipfast.groups.network import CPU_SHARE
from ipfast.impacts import IMPACTS

GROUPS = [1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1]


def binary(outputs, dtype=torch.float64, seed=0):
    """(a linear head of one or two outputs, train, val, its loss); of val both classes are in both groups."""
    torch.manual_seed(seed)
    loss = "bce_with_logits" if outputs == 1 else "cross_entropy"
    head = nn.Linear(6, outputs, dtype=dtype)
    x, y = torch.randn(13, 6, dtype=dtype), torch.randint(2, (13,))
    x_val, y_val = torch.randn(11, 6, dtype=dtype), torch.tensor([1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1])
    if outputs == 1:
        y, y_val = y.double()[:, None], y_val.double()[:, None]
    return head, (x, y), (x_val, y_val), loss


def moved_loss(model, head, x, y, gamma, loss="cross_entropy"):
    """The mean loss where a constant is added to the input of `head`, as the attack has it."""
    seen = []
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    model(x)
    handle.remove()
    offset = truth.attack(seen[0], head.weight, head.bias, gamma) - seen[0]
    handle = head.register_forward_pre_hook(lambda _, arguments: (arguments[0] + offset,))
    try:
        z = model(x)
    finally:
        handle.remove()
    if loss == "cross_entropy":
        return F.cross_entropy(z, y)
    return F.binary_cross_entropy_with_logits(z, y)


def impacts(outputs, x_pairs):
    """name -> (impact, f(logits of val, labels of val, logits of the pairs)) of a head of so many outputs."""
    positive = 2 if outputs > 2 else None
    k = 1 if positive is None else positive
    made = {
        "parity": (DemographicParity(GROUPS, positive=positive), lambda z, y, _: truth.parity_gap(z, GROUPS, k).abs()),
        "parity_signed": (
            DemographicParity(torch.tensor(GROUPS), signed=True, positive=positive),
            lambda z, y, _: truth.parity_gap(z, GROUPS, k),
        ),
    }
    for of in ("loss", "probability"):
        made[f"opportunity_{of}"] = (
            EqualOpportunity(GROUPS, of=of, positive=positive),
            lambda z, y, _, of=of: truth.opportunity_gap(z, y, GROUPS, of, k).abs(),
        )
    made["opportunity_signed"] = (
        EqualOpportunity(GROUPS, signed=True, positive=positive),
        lambda z, y, _: truth.opportunity_gap(z, y, GROUPS, "loss", k),
    )
    for kind in ("squared", "abs", "symkl", "logit_sq"):
        made[f"pairs_{kind}"] = (
            Counterfactual(x_pairs, kind=kind),
            lambda z, y, other, kind=kind: truth.pair_gap(z, other, kind),
        )
    return made


NAMES = list(impacts(2, torch.zeros(11, 6)))


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_binary_head(name, outputs, params):
    head, train, val, loss = binary(outputs)
    x_pairs = val[0] + torch.randn(11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    impact, function = impacts(outputs, x_pairs)[name]
    expected = truth.scores(head, lambda m: function(m(val[0]), val[1], m(x_pairs)), train, loss)
    got = ipfast.score(head, train, val, impact=impact, loss=loss, params=params, progress=False)
    assert_relative(got.values, expected, FLOAT64_RELATIVE)
    assert got.stats["impact"] == impact.name
    assert got.stats["M"] == 11
    assert got.stats["impact_options"] == impact.options()


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_positive_class_of_a_binary_head(outputs, positive, params):
    """Class 0 or 1, whether there is an output for each or one that tells them apart."""
    head, train, val, loss = binary(outputs)
    cases = [
        (DemographicParity(GROUPS, positive=positive), lambda z: truth.parity_gap(z, GROUPS, positive).abs()),
        (
            EqualOpportunity(GROUPS, of="probability", positive=positive),
            lambda z: truth.opportunity_gap(z, val[1], GROUPS, "probability", positive).abs(),
        ),
        (
            EqualOpportunity(GROUPS, signed=True, positive=positive),
            lambda z: truth.opportunity_gap(z, val[1], GROUPS, "loss", positive),
        ),
    ]
    for impact, function in cases:
        expected = truth.scores(head, lambda m, function=function: function(m(val[0])), train, loss)
        got = ipfast.score(head, train, val, impact=impact, loss=loss, params=params, progress=False)
        assert_relative(got.values, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize("where", ["last", "all", "fc"])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_several_classes(name, where):
    problem = network_problem()
    y_val = torch.tensor([2, 2, 0, 2, 1, 2, 3, 2, 2, 0, 2])
    x_pairs = problem.x_val.flip(3) * 1.1
    impact, function = impacts(4, x_pairs)[name]
    before = snapshot(problem.model)
    params = [r"^fc\."] if where == "fc" else where
    got = ipfast.score(problem.model, problem.train, (problem.x_val, y_val), impact=impact, params=params, progress=False)
    assert_unchanged(problem.model, before)
    only = "" if where == "all" else "fc."
    expected = truth.scores(problem.model, lambda m: function(m(problem.x_val), y_val, m(x_pairs)), problem.train, only=only)
    assert_relative(got.values, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("gamma", [1.3, 2.5])
def test_an_adversary_of_a_binary_head(gamma, outputs, params):
    head, train, val, loss = binary(outputs)
    got = ipfast.score(head, train, val, impact=Adversarial(gamma), loss=loss, params=params, progress=False)
    expected = truth.scores(head, lambda m: moved_loss(m, m, *val, gamma, loss), train, loss)
    assert_relative(got.values, expected, FLOAT64_RELATIVE)


def test_an_adversary_of_one_output_has_the_closed_form():
    """G = (1/M) Σ (σ((1−γ)z) − y) [x̌; 1]"""
    head, _, val, loss = binary(1)
    w, b, (x, y) = head.weight.detach(), head.bias.detach(), val
    z = x @ w.T + b
    moved = x - 1.3 * z / (w @ w.T) * w
    residual = torch.sigmoid(-0.3 * z) - y
    term = ipfast.query(head, val, impact="adversarial", loss=loss).terms[0]
    assert_relative(term.gradient, (residual * moved).mean(dim=0, keepdim=True), FLOAT64_RELATIVE)
    assert_relative(term.bias_gradient, residual.mean(dim=0), FLOAT64_RELATIVE)
    assert_relative(moved @ w.T + b, -0.3 * z, FLOAT64_RELATIVE)


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("make", [network_problem, linear_problem], ids=["network", "features"])
def test_an_adversary_of_several_classes(make, params):
    problem = make()
    before = snapshot(problem.model)
    got = ipfast.score(problem.model, problem.train, problem.val, impact="adversarial", params=params, progress=False)
    assert_unchanged(problem.model, before)
    bare = problem.model is problem.head
    only = "" if params == "all" or bare else "fc."
    expected = truth.scores(problem.model, lambda m: moved_loss(m, problem.head, *problem.val, 1.3), problem.train, only=only)
    assert_relative(got.values, expected, FLOAT64_RELATIVE)


def test_every_prediction_of_an_attacked_head_changes():
    head = binary(2)[0]
    many = torch.randn(500, 6, dtype=torch.float64)
    for weight, bias in ((head.weight, head.bias), (torch.randn(7, 6).double(), torch.randn(7).double())):
        z = F.linear(many, weight, bias)
        moved = Adversarial(1.001).attacked(many, z, weight.detach())
        assert (F.linear(moved, weight, bias).argmax(dim=1) != z.argmax(dim=1)).all()
        short = many + (moved - many) * (0.999 / 1.001)
        assert (F.linear(short, weight, bias).argmax(dim=1) == z.argmax(dim=1)).all()


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("points", ["dropout", "checkpoints"])
@pytest.mark.parametrize("name", ["parity", "adversarial", "pairs"])
def test_impacts_are_taken_at_every_point(name, points, params):
    head, train, val, _ = binary(2)
    other = val[0] * -0.5
    made = {"parity": DemographicParity(GROUPS), "adversarial": "adversarial", "pairs": Counterfactual(other)}
    if points == "dropout":
        method = ipfast.Method(points=ipfast.Dropout(3, 0.3))
    else:
        states = [{name: value * factor for name, value in head.state_dict().items()} for factor in (1.0, 0.4, -1.2)]
        method = ipfast.Method(points=ipfast.Checkpoints(states))
    got = ipfast.score(head, train, val, method=method, impact=made[name], params=params, progress=False)
    expected = []
    for t in range(3):
        model = nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            if points == "dropout":
                kept = torch.ones(12, dtype=torch.float64)
                kept[ipfast.dropout_mask("weight", (2, 6), 0.3, 0, t)] = 0
                model.weight.copy_(head.weight * kept.view(2, 6) / 0.7)
                model.bias.copy_(head.bias)
            else:
                model.load_state_dict(states[t])
        functions = {
            "parity": lambda m: truth.parity_gap(m(val[0]), GROUPS).abs(),
            "adversarial": lambda m: moved_loss(m, m, *val, 1.3),
            "pairs": lambda m: truth.pair_gap(m(val[0]), m(other), "squared"),
        }
        expected.append(truth.scores(model, functions[name], train))
    assert_relative(got.values, torch.stack(expected).mean(dim=0), FLOAT64_RELATIVE)


# How data arrives


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("name", ["parity", "opportunity", "adversarial", "pairs"])
def test_batches_of_a_loader_are_counted_through(name, params):
    """Groups and pairs belong to rows of val, whatever batches they come in."""
    problem = network_problem()
    y_val = torch.tensor([2, 2, 0, 2, 1, 2, 3, 2, 2, 0, 2])
    x_pairs = problem.x_val.flip(2)
    groups = np.array(["b" if g else "a" for g in GROUPS])
    pairs = DataLoader(TensorDataset(x_pairs, y_val), batch_size=4)
    made = {
        "parity": (DemographicParity(GROUPS, positive=2), DemographicParity(pandas.Series(groups), positive=2)),
        "opportunity": (EqualOpportunity(GROUPS, positive=2), EqualOpportunity(groups, positive=2)),
        "adversarial": ("adversarial", Adversarial()),
        "pairs": (Counterfactual(x_pairs), Counterfactual(pairs)),
    }
    whole, parts = made[name]
    loader = DataLoader(TensorDataset(problem.x_val, y_val), batch_size=3)
    options = {"params": params, "progress": False}
    expected = ipfast.score(problem.model, problem.train, (problem.x_val, y_val), impact=whole, **options)
    got = ipfast.score(problem.model, problem.train, loader, impact=parts, batch_size=2, **options)
    assert_relative(got.values, expected.values, FLOAT64_RELATIVE)
    assert got.stats["M"] == 11


def test_val_of_several_blocks():
    case = HeadCase("long", 6200, 5, 2)
    problem = linear_problem(case=case)
    groups = torch.arange(case.rows).mul(7) % 3 == 0
    x, y = problem.train
    for impact, f in (
        (DemographicParity(groups), lambda m: truth.parity_gap(m(x), groups.long().tolist()).abs()),
        (Counterfactual(x.flip(0), kind="symkl"), lambda m: truth.pair_gap(m(x), m(x.flip(0)), "symkl")),
        (Adversarial(), lambda m: moved_loss(m, m, x, y, 1.3)),
    ):
        got = ipfast.score(problem.model, problem.val, problem.train, impact=impact)
        assert_relative(got.values, truth.scores(problem.model, f, problem.val), FLOAT64_RELATIVE)


def test_groups_and_pairs_come_from_files(tmp_path):
    head, train, val, _ = binary(2)
    np.save(tmp_path / "g.npy", np.array(GROUPS))
    np.save(tmp_path / "x.npy", (val[0] * 2).numpy())
    np.savez(tmp_path / "pairs.npz", features=(val[0] * 2).numpy(), labels=val[1].numpy())
    np.savez(tmp_path / "val.npz", features=val[0].numpy(), labels=val[1].numpy())
    for impact, other in (
        (DemographicParity(GROUPS), DemographicParity(tmp_path / "g.npy")),
        (Counterfactual(val[0] * 2), Counterfactual(tmp_path / "x.npy")),
        (Counterfactual(val[0] * 2), Counterfactual(str(tmp_path / "pairs.npz"))),
        (Counterfactual(val[0] * 2), Counterfactual((val[0] * 2, val[1]))),
    ):
        expected = ipfast.score(head, train, val, impact=impact).values
        assert torch.equal(ipfast.score(head, train, tmp_path / "val.npz", impact=other).values, expected)


class Dictionaries(Dataset):
    def __init__(self, tokens, labels):
        self.data = tokens, labels

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, index):
        return {"tokens": self.data[0][index], "labels": self.data[1][index]}


def test_rewritten_texts_may_have_another_length():
    model, x, y = PROBLEMS["texts"](20)
    train, (x_val, y_val) = (x[:9], y[:9]), (x[9:], y[9:])
    longer = torch.cat([x_val, x_val[:, :1]], dim=1)
    f = lambda m: truth.pair_gap(m(x_val), m(longer), "squared")  # noqa: E731
    pairs = DataLoader(Dictionaries(longer, y_val), batch_size=4)
    val = DataLoader(Dictionaries(x_val, y_val), batch_size=5)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens):
            return self.inner(tokens)

    got = ipfast.score(Called().eval(), Dictionaries(*train), val, impact=Counterfactual(pairs), params="all", progress=False)
    assert_relative(got.values, truth.scores(model, f, train), FLOAT64_RELATIVE)


# Several queries


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("name", ["parity", "opportunity", "adversarial", "pairs"])
def test_each_query_has_the_samples_of_its_own(name, params):
    head, train, (x, y), _ = binary(2, seed=3)
    y = torch.tensor([1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    groups, pairs = torch.tensor(GROUPS), x * 0.3 + 1
    cut = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1])  # positives of both groups in each
    rows = [(cut == q).nonzero()[:, 0] for q in (0, 1)]
    sets = {"b": (x[rows[0]], y[rows[0]]), "a": (x[rows[1]], y[rows[1]])}
    made = {
        "parity": DemographicParity,
        "opportunity": EqualOpportunity,
        "adversarial": lambda _: Adversarial(),
        "pairs": Counterfactual,
    }[name]
    data = pairs if name == "pairs" else groups
    options = {"params": params, "progress": False}
    alone = [
        ipfast.score(head, train, part, impact=made(data[index]), **options).values
        for part, index in zip(sets.values(), rows, strict=True)
    ]
    by_group = ipfast.score(head, train, (x, y), val_groups=cut, impact=made(data), **options)
    assert_relative(by_group.values, torch.stack(alone, dim=1), FLOAT64_RELATIVE)
    assert by_group.stats["M"] == [len(index) for index in rows]
    given = {"a": data[rows[1]], "b": data[rows[0]]}  # by name, in any order
    by_set = ipfast.score(head, train, sets, impact=made(given), **options)
    assert by_set.queries == ("b", "a")
    assert_relative(by_set.values, torch.stack(alone, dim=1), FLOAT64_RELATIVE)


# Queries, files, workers


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("name", ["parity", "opportunity", "adversarial", "pairs"])
def test_a_stored_query_needs_the_data_of_its_impact_no_more(name, params, tmp_path):
    head, train, val, _ = binary(2)
    impact = {
        "parity": DemographicParity(GROUPS),
        "opportunity": EqualOpportunity(GROUPS),
        "adversarial": Adversarial(),
        "pairs": Counterfactual(val[0] * 2),
    }[name]
    query = ipfast.query(head, val, impact=impact, params=params)
    query.save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(tmp_path / "q.safetensors")
    direct = ipfast.score(head, train, val, impact=impact, params=params, progress=False)
    assert torch.equal(ipfast.score(head, train, after, progress=False).values, direct.values)
    assert_relative(ipfast.Scorer(head, after)(train), direct.values, FLOAT64_RELATIVE)
    assert after.stats["impact"] == impact.name
    assert after.stats["impact_options"] == impact.options()


def test_an_adversary_of_tokens_moves_each_of_them():
    problem = token_problem()
    got = ipfast.score(problem.head, problem.train, problem.val, impact="adversarial")
    x, y, counted = problem.x_val, problem.y_val, problem.counted_val
    h, labels = x[counted], y[counted]
    shares = (1 / counted.sum(dim=1).double())[:, None].expand_as(counted)[counted]
    moved = truth.attack(h, problem.head.weight, problem.head.bias, 1.3)
    z = F.linear(moved, problem.head.weight, problem.head.bias)
    value = (F.cross_entropy(z, labels, reduction="none") * shares).sum() / int(counted.any(dim=1).sum())
    query = torch.autograd.grad(value, list(problem.head.parameters()))
    clean = [(data[0].nan_to_num(), data[1]) for data in (problem.train, problem.val)]
    whole = ipfast.score(problem.head, *clean, impact="adversarial", params="all", progress=False)
    term = ipfast.query(problem.head, problem.val, impact="adversarial").terms[0]
    assert_relative(term.gradient, query[0], FLOAT64_RELATIVE)
    assert_relative(term.bias_gradient, query[1], FLOAT64_RELATIVE)
    assert_relative(whole.values, got.values, FLOAT64_RELATIVE)


def test_float32_features_are_near():
    """Groups, pairs and attacks in float32 against float64 of the same numbers."""
    head, train, val, _ = binary(2, torch.float32)
    wide = nn.Linear(6, 2, dtype=torch.float64)
    wide.load_state_dict(head.state_dict())
    for make in (lambda x: DemographicParity(GROUPS), lambda x: Adversarial(), lambda x: Counterfactual(x * 2)):
        got = ipfast.score(head, train, val, impact=make(val[0]))
        double = (val[0].double(), val[1])
        expected = ipfast.score(wide, (train[0].double(), train[1]), double, impact=make(double[0]))
        assert got.values.dtype == torch.float32
        assert_relative(got.values, expected.values, FLOAT32_RELATIVE)


# Bad input


def both(call, error, message):
    """The same refusal at the head and over the network."""
    for params in ("last", "all"):
        with pytest.raises(error, match=message):
            call(params)


@pytest.mark.parametrize("name", ["demographic_parity", "equal_opportunity", "counterfactual"])
def test_a_name_alone_says_what_to_pass(name):
    head, train, val, _ = binary(2)
    what = "pairs" if name == "counterfactual" else "groups"
    with pytest.raises(
        ipfast.InputError, match=f"expected {what}, .*; got None. Pass impact=ipfast.{IMPACTS._entries[name].__name__}"
    ):
        ipfast.score(head, train, val, impact=name)


def test_a_class_is_no_impact():
    head, train, val, _ = binary(2)
    with pytest.raises(ipfast.InputTypeError, match="got the class DemographicParity"):
        ipfast.score(head, train, val, impact=DemographicParity)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DemographicParity([0, 1, 2]), ipfast.InputError, r"expected groups to hold two values.*; got 3 \(0, 1, 2\)"),
        (lambda: DemographicParity([1, 1]), ipfast.InputError, r"expected groups to hold two values.*; got 1 \(1\)"),
        (lambda: DemographicParity([]), ipfast.InputError, r"expected groups to hold two values.*; got 0 \(none\)"),
        (lambda: DemographicParity({}), ipfast.InputError, "expected groups of at least one validation set"),
        (lambda: DemographicParity([[0, 1]]), ipfast.InputError, r"expected groups of shape \[M\].*; got \[1, 2\]"),
        (lambda: DemographicParity([0.0, np.nan]), ipfast.InputError, "expected finite groups; got nan at row 1"),
        (
            lambda: DemographicParity(["a", None, "b"]),
            ipfast.InputError,
            "expected groups of every sample of val; got a missing value at row 1",
        ),
        (lambda: DemographicParity(["a", "b", float("nan")]), ipfast.InputError, "got a missing value at row 2"),
        (lambda: DemographicParity([{}, {}]), ipfast.InputTypeError, "expected groups to be numbers or strings"),
        (
            lambda: DemographicParity([0, 1], signed="yes"),
            ipfast.InputTypeError,
            "expected signed to be True or False; got str",
        ),
        (lambda: DemographicParity([0, 1], positive=1.0), ipfast.InputTypeError, "expected positive to be the number"),
        (lambda: DemographicParity("none.npy"), ipfast.MissingFileError, "expected groups to be a file; 'none.npy'"),
        (lambda: EqualOpportunity([0, 1], of="rate"), ipfast.InputError, "expected of to be one of .*; got 'rate'"),
        (lambda: EqualOpportunity([0, 1], signed=1), ipfast.InputTypeError, "EqualOpportunity: expected signed"),
        (lambda: Adversarial(1.0), ipfast.InputError, "expected gamma to be above 1.*; got 1"),
        (lambda: Adversarial(float("nan")), ipfast.InputError, "expected gamma to be above 1"),
        (lambda: Adversarial(True), ipfast.InputTypeError, "expected gamma to be a number above 1; got bool"),
        (lambda: Counterfactual(torch.zeros(1), kind="kl"), ipfast.InputError, "expected kind .* Did you mean 'symkl'"),
    ],
)
def test_what_an_impact_cannot_be_made_with(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Untouchable(nn.Linear):
    """A head of which nothing may be computed."""

    def forward(self, x):
        raise AssertionError("work was done before the check")


@pytest.mark.parametrize(
    ("impact", "message"),
    [
        (DemographicParity(GROUPS[1:]), "expected groups of DemographicParity to hold one group for each of the 11 .*; got 10"),
        (EqualOpportunity(GROUPS * 2), "expected groups of EqualOpportunity to hold one group for each of the 11 .*; got 22"),
        (
            DemographicParity({"a": GROUPS}),
            "expected groups of DemographicParity to be an array .*, since val is one set; got a mapping from a",
        ),
        (Counterfactual(torch.zeros(10, 6).double()), "expected pairs of the 11 samples of val; got 10"),
        (Counterfactual((torch.zeros(12, 6).double(), torch.zeros(12).long())), "expected pairs of the 11 .*; got 12"),
    ],
)
def test_data_that_does_not_belong_to_val_is_refused_before_any_work(impact, message):
    _, train, val, _ = binary(2)
    head = Untouchable(6, 2, dtype=torch.float64).eval()
    both(lambda params: ipfast.score(head, train, val, impact=impact, params=params), ipfast.InputError, f"score: {message}")
    both(lambda params: ipfast.query(head, val, impact=impact, params=params), ipfast.InputError, f"query: {message}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: DemographicParity(GROUPS), "to be a mapping from a, b; got an array"),
        (lambda x: DemographicParity({"a": GROUPS, "c": GROUPS}), "to be a mapping from a, b; got a mapping from a, c"),
        (lambda x: DemographicParity({"a": GROUPS, "b": GROUPS[1:]}), "each of the 11 samples of val 'b'; got 10"),
        (lambda x: Counterfactual(x), "expected pairs to be a mapping from a, b, the validation sets; got Tensor"),
        (lambda x: Counterfactual({"a": x}), "expected pairs to be a mapping from a, b, .*; got a mapping from a"),
        (lambda x: Counterfactual({"a": x, "b": x[1:]}), "expected pairs of the 11 samples of val; got 10"),
    ],
)
def test_several_sets_need_data_by_name(make, message):
    head, train, val, _ = binary(2)
    impact = make(val[0])
    sets = {"a": val, "b": val}
    both(lambda params: ipfast.score(head, train, sets, impact=impact, params=params), ipfast.InputError, message)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, *tensors):
        self.tensors = tensors

    def __iter__(self):
        return zip(*self.tensors, strict=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: DemographicParity(GROUPS[:-1]), "expected groups of DemographicParity to hold one group for each"),
        (lambda x, y: DemographicParity([*GROUPS, 1]), "hold one group for each of the 11 samples of val; got 12"),
        (lambda x, y: Counterfactual((x[1:], y[1:])), "expected as many pairs as samples of val"),
        (lambda x, y: Counterfactual(x), "expected pairs with labels, .* got inputs alone"),
        (lambda x, y: Counterfactual((x.flip(0), y.flip(0))), "expected pairs in the order of val, .*; row 1 has another"),
    ],
)
def test_streams_are_held_to_the_lengths_when_they_end(make, message):
    head, train, val, _ = binary(2)
    impact = make(*val)
    both(
        lambda params: ipfast.score(head, train, DataLoader(Stream(*val), batch_size=4), impact=impact, params=params),
        ipfast.InputError,
        message,
    )


def test_a_stream_of_the_right_length_is_scored():
    head, train, val, _ = binary(2)
    expected = ipfast.score(head, train, val, impact=DemographicParity(GROUPS)).values
    got = ipfast.score(head, train, DataLoader(Stream(*val), batch_size=4), impact=DemographicParity(GROUPS)).values
    assert_relative(got, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize(
    ("impact", "message"),
    [
        (DemographicParity(GROUPS, positive=2), r"expected positive to be in 0\.\.1; got 2"),
        (EqualOpportunity([0] + [1] * 10), "both groups for EqualOpportunity, .*; got none"),
    ],
)
def test_what_f_is_not_defined_for(impact, message):
    head, train, (x, y), _ = binary(2)
    y = y.clone()
    y[0] = 0  # group 0 has no positive sample
    both(lambda params: ipfast.score(head, train, (x, y), impact=impact, params=params), ipfast.InputError, message)


def test_a_query_without_one_of_the_groups_is_refused():
    head, train, val, _ = binary(2)
    both(
        lambda params: ipfast.score(
            head, train, val, impact=DemographicParity(GROUPS), val_groups=GROUPS, params=params, progress=False
        ),
        ipfast.InputError,
        "expected samples of val of both groups for DemographicParity, for each query; got none of group '1'",
    )


def test_the_positive_class_of_several_must_be_named():
    problem = network_problem()
    call = lambda params, **more: ipfast.score(  # noqa: E731
        problem.model, problem.train, problem.val, impact=DemographicParity(GROUPS, **more), params=params
    )
    both(call, ipfast.InputError, "expected positive to be named, since there are 4 outputs")


@pytest.mark.parametrize(
    "impact", [DemographicParity(GROUPS), Adversarial(), EqualOpportunity(GROUPS), Counterfactual(torch.zeros(11, 12).double())]
)
def test_squared_errors_have_no_probabilities(impact):
    problem = linear_problem("mse")
    both(
        lambda params: ipfast.score(problem.model, problem.train, problem.val, loss="mse", impact=impact, params=params),
        ipfast.InputError,
        "'mse'",
    )


def test_squared_gaps_of_outputs_are_defined_for_any_loss():
    problem = linear_problem("mse")
    other = problem.x_val * 2
    got = ipfast.score(problem.model, problem.train, problem.val, loss="mse", impact=Counterfactual(other, kind="logit_sq"))
    f = lambda m: truth.pair_gap(m(problem.x_val), m(other), "logit_sq")  # noqa: E731
    assert_relative(got.values, truth.scores(problem.model, f, problem.train, "mse"), FLOAT64_RELATIVE)


@pytest.mark.parametrize("impact", [DemographicParity(GROUPS, positive=1), Counterfactual(token_problem().x_val)])
def test_tokens_have_no_groups_and_no_pairs(impact):
    problem = token_problem()
    both(
        lambda params: ipfast.score(problem.head, problem.train, problem.val, impact=impact, params=params),
        ipfast.InputError,
        "expected one row of logits for each sample of val .* got those of tokens",
    )


def test_an_adversary_needs_a_linear_layer_at_the_end():
    model, x, y = PROBLEMS["texts"](8)
    with pytest.raises(ipfast.InputError, match=r"expected a network whose logits are the output of an nn\.Linear.*Texts"):
        ipfast.score(model, (x, y), (x, y), impact="adversarial", params="all", check=False)


class Shifted(nn.Module):
    """Logits that are changed after the last layer, in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x):
        z = self.head(x)
        z += torch.tensor([3.0, -3.0])
        return z


def test_an_adversary_needs_logits_that_nothing_has_changed():
    _, train, val, _ = binary(2)
    with pytest.raises(ipfast.InputError, match="Shifted ends otherwise"):
        ipfast.score(Shifted(), train, val, impact="adversarial", params="all", progress=False)


class Once(torch.utils.data.IterableDataset):
    """A stream that can be read `times`, and is empty, or of one sample less, afterwards."""

    def __init__(self, *tensors, times=1, shorter=None):
        self.tensors, self.times, self.shorter = tensors, times, shorter

    def __iter__(self):
        self.times -= 1
        return iter([*zip(*self.tensors, strict=True)][: None if self.times >= 0 else self.shorter or 0])


def second_readings(x, y):
    def loader(**options):
        return DataLoader(Once(x, y, **options), batch_size=4)

    return {
        "pairs once": ((x, y), Counterfactual(loader())),
        "val once": (loader(), Counterfactual((2 * x, y))),
        "val once, any function": (loader(), lambda z, y: z.square().mean()),
        "val shorter": (loader(shorter=-1), DemographicParity(GROUPS)),
        "val of another batch shorter": (loader(shorter=-4), lambda z, y: z.square().mean()),
    }


@pytest.mark.parametrize("case", second_readings(torch.ones(1), torch.ones(1)))
def test_what_is_read_twice_over_a_network_must_be_the_same(case):
    head, train, (x, y), _ = binary(2)
    val, impact = second_readings(x, y)[case]
    with pytest.raises(ipfast.InputError, match="expected val, and pairs, that give the same samples when they are read again"):
        ipfast.score(head, train, val, impact=impact, params="all", progress=False)


def test_a_second_reading_may_be_cut_in_other_places(monkeypatch):
    head, train, (x, y), _ = binary(2)
    options = {"impact": Counterfactual((2 * x, y)), "params": "all", "progress": False}
    expected = ipfast.score(head, train, (x, y), **options)
    monkeypatch.setattr("ipfast.groups.network.LARGEST_BATCH", 7)
    monkeypatch.setattr("ipfast.engines.network.Network.activation_bytes", lambda *_: 1)
    monkeypatch.setattr("ipfast.groups.network._free_memory", lambda *_: 4 / CPU_SHARE)
    got = ipfast.score(head, train, (x, y), **options)
    assert_relative(got.values, expected.values, FLOAT64_RELATIVE)


def test_a_function_may_work_in_place_and_is_told_of_its_dtype():
    head, train, val, _ = binary(2)
    plain, in_place = (
        ipfast.score(head, train, val, impact=f, progress=False).values
        for f in (lambda z, y: (2 * z).square().mean(), lambda z, y: z.mul_(2).square().mean())
    )
    assert torch.equal(plain, in_place)
    with pytest.raises(ipfast.InputError, match=r"take logits in float64; it raised: .*with \.to\(logits\)"):
        ipfast.score(head, train, val, impact=nn.CrossEntropyLoss(weight=torch.ones(2)), progress=False)


@pytest.mark.parametrize("impact", ["adversarial", lambda z, y: z.square().mean()])
def test_a_batch_of_tokens_of_which_none_counts(impact):
    problem = token_problem()
    options = {"impact": impact, "params": "all", "progress": False}
    train, val = ((x.nan_to_num(), y) for x, y in (problem.train, problem.val))
    expected = ipfast.score(problem.head, train, val, **options)
    val = DataLoader(TensorDataset(*val), batch_size=1)
    assert_relative(ipfast.score(problem.head, train, val, **options).values, expected.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_head_that_nothing_moves_is_refused(outputs):
    head = nn.Linear(6, outputs)
    nn.init.zeros_(head.weight)
    _, train, val, _ = binary(outputs, torch.float32)
    loss = "bce_with_logits" if outputs == 1 else "cross_entropy"
    both(
        lambda params: ipfast.score(head, train, val, loss=loss, impact="adversarial", params=params),
        ipfast.InputError,
        "expected a head in which a change of the features can change the class",
    )


def test_soft_labels_have_no_positives():
    head, train, (x, y), _ = binary(2)
    soft = F.one_hot(y).double()
    both(
        lambda params: ipfast.score(head, train, (x, soft), impact=EqualOpportunity(GROUPS), params=params),
        ipfast.InputError,
        "expected integer labels of val for EqualOpportunity",
    )
    head, train, (x, y), loss = binary(1)
    both(
        lambda params: ipfast.score(head, train, (x, y * 0.9), loss=loss, impact=EqualOpportunity(GROUPS), params=params),
        ipfast.InputError,
        "expected labels of val to be 0 or 1",
    )


def test_a_gap_of_zero_has_no_direction():
    head, train, (x, y), _ = binary(2)
    twice = torch.cat([x[:1], x[:1]]), torch.cat([y[:1], y[:1]])
    got = ipfast.score(head, train, twice, impact=DemographicParity([0, 1]))
    assert torch.equal(got.values, torch.zeros(13, dtype=torch.float64))
    moved = ipfast.score(head, train, (x, y), impact=DemographicParity(GROUPS, signed=True))
    swapped = ipfast.score(head, train, (x, y), impact=DemographicParity([1 - g for g in GROUPS], signed=True))
    assert_relative(moved.values, -swapped.values, FLOAT64_RELATIVE)


def test_an_adversary_under_autocast():
    problem = network_problem(torch.float32)
    options = {"impact": "adversarial", "params": "all", "progress": False}
    expected = ipfast.score(problem.model, problem.train, problem.val, **options)
    got = ipfast.score(problem.model, problem.train, problem.val, precision="bf16", **options)
    assert_relative_to_largest(got.values, expected.values, AUTOCAST_RELATIVE)
