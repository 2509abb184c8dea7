"""Modules before the scored parameters run once a batch for all members, and scores are those of each member by itself."""

import pytest
import torch
from networks import PROBLEMS, assert_unchanged, gradient_loop, products, snapshot
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast.engines.network import Network
from ipfast.engines.unchanged import Unchanged
from ipfast.losses import CrossEntropy

MEMBERS = 3


def with_masks(model, member, names):
    """θ of a member, by hand: the dropped entries of its scored weights are 0, the others are scaled."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in names and parameter.dim() >= 2:
                dropped = ipfast.dropout_mask(name, tuple(parameter.shape), 0.2, 0, member)
                parameter.mul_(1 / 0.8)
                parameter.view(-1)[dropped] = 0
    return other


def expected(model, train, val, chosen):
    names = {name for name, _ in model.named_parameters() if chosen(name)}
    total = 0
    for member in range(MEMBERS):
        other = with_masks(model, member, names)
        gradients = {n: g for n, g in gradient_loop(other, *train).items() if n in names}
        query = {n: g.mean(dim=0, keepdim=True) for n, g in gradient_loop(other, *val).items() if n in names}
        total = total + products(gradients, query)[:, 0] / MEMBERS
    return total


def score(model, train, val, params, **options):
    method = ipfast.Method(points=ipfast.Dropout(MEMBERS, 0.2))
    return ipfast.score(model, train, val, method=method, params=params, progress=False, **options)


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
@pytest.mark.parametrize(
    ("problem", "params"),
    [("images", ("fc",)), ("images", ("point", "fc")), ("images", ("groups",)), ("texts", ("twice", "qkv"))],
)
def test_members_have_the_scores_of_their_own_networks(problem, params, engine):
    model, x, y = PROBLEMS[problem](9)
    train, val = (x[:6], y[:6]), (x[6:], y[6:])
    before = snapshot(model)
    scores = score(model, train, val, [f"^{name}" for name in params], engine=engine, batch_size=4, keep_members=True)
    assert_unchanged(model, before)
    assert_relative(scores.values, expected(model, train, val, lambda name: name.startswith(params)), FLOAT64_RELATIVE)
    assert scores.members.shape == (6, MEMBERS)


class Counted(nn.Linear):
    """Counts its runs, in a list of the class: modules are copied."""

    runs: list[int] = []  # noqa: RUF012

    def forward(self, x):
        self.runs.append(len(x))
        return super().forward(x)


class InPlace(nn.Module):
    """Outputs of unscored modules are changed in place, or are their inputs; the scored one comes first, between and last."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = Counted(4, 4), Counted(4, 4), Counted(4, 4)
        self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.one(x)
        y = torch.relu(self.two(torch.tanh(x)))
        x += y
        z = self.middle(torch.tanh(x))
        return self.last(self.three(z).sin_())


def in_place(rows=9):
    torch.manual_seed(0)
    return InPlace().double().eval(), torch.randn(rows, 4, dtype=torch.float64), torch.arange(rows) % 5


@pytest.mark.parametrize("engine", ["forward", "ghost"])
def test_what_does_not_change_runs_once_a_batch(engine):
    model, x, y = in_place(15)  # a batch of 12, more than a plan is checked on
    train, val = (x[:12], y[:12]), (x[12:], y[12:])
    query = ipfast.query(model, val, method=ipfast.Method(points=ipfast.Dropout(MEMBERS, 0.2)), params=["middle"])
    network = Network("test", model, CrossEntropy(), params=["middle"])
    assert [type(module) for module in Unchanged(network).modules] == [Counted, Counted, Counted, nn.Linear]
    Counted.runs.clear()
    scores = ipfast.score(model, train, query, engine=engine, check=False, progress=False)
    assert_relative(scores.values, expected(model, train, val, lambda name: name.startswith("middle")), FLOAT64_RELATIVE)
    # `one` again for each member, since its output is changed in place; `two` once; `three` depends on what is scored.
    assert Counted.runs.count(12) == MEMBERS + 1 + MEMBERS


def test_a_scorer_has_one_group_of_all_members():
    model, x, y = in_place()
    method = ipfast.Method(points=ipfast.Dropout(MEMBERS, 0.2))
    query = ipfast.query(model, (x[6:], y[6:]), method=method, params=["middle", "last"])
    direct = score(model, (x[:6], y[:6]), (x[6:], y[6:]), ["middle", "last"])
    assert_relative(ipfast.Scorer(model, query)((x[:6], y[:6])), direct.values, FLOAT64_RELATIVE)
    with pytest.raises(ipfast.InputError, match="below the number of groups"):
        ipfast.Scorer(model, query, group=1)


class Borrowing(nn.Linear):
    """Unscored, and reads the weight of a scored layer, which is not its own."""

    def __init__(self, others):
        super().__init__(4, 4)
        self.others = others

    def forward(self, x):
        return torch.tanh(super().forward(x) @ self.others[0].weight)


class Borrowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.first = Borrowing([self.head])

    def forward(self, x):
        return self.head(self.first(x))


@pytest.mark.parametrize("engine", ["forward", "ghost"])
def test_a_module_that_reads_scored_parameters_of_others_is_run_again(engine):
    torch.manual_seed(0)
    model, x, y = Borrowed().double().eval(), torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 4
    train, val = (x[:6], y[:6]), (x[6:], y[6:])
    scores = score(model, train, val, ["^head"], engine=engine, check=False)
    assert_relative(scores.values, expected(model, train, val, lambda name: name.startswith("head")), FLOAT64_RELATIVE)


def test_modules_get_their_methods_back_after_an_error():
    model, _, _ = in_place()
    unchanged = Unchanged(Network("test", model, CrossEntropy(), params=["last"]))

    def interrupted() -> None:
        with unchanged.kept():
            assert all("forward" in module.__dict__ for module in unchanged.modules)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert not any("forward" in module.__dict__ for module in unchanged.modules)


def test_where_everything_is_scored_nothing_is_kept():
    model, _, _ = in_place()
    assert not Unchanged(Network("test", model, CrossEntropy())).modules
