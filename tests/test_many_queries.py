"""Many queries in one pass, and the train × validation matrix."""

import oracles
import pytest
import torch
from cases import LOSSES, HeadCase
from problems import VALIDATION_ROWS, linear_problem, network_problem
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch.utils.data import DataLoader, TensorDataset

import ipfast

GROUPS = torch.arange(VALIDATION_ROWS) % 3
LONG = HeadCase("long", 4200, 12, 5)
METHODS = {
    "ip": "ip",
    "sparse": ipfast.Method(points=ipfast.Dropout(4, 0.05)),
    "dense": ipfast.Method(points=ipfast.Dropout(4, 0.4, include_base=True)),
    "rank": ipfast.Method(points=ipfast.Dropout(4, 0.1, combine="rank")),
}


def parts(problem):
    return [(problem.x_val[q == GROUPS], problem.y_val[q == GROUPS]) for q in range(3)]


@pytest.mark.parametrize("make", [linear_problem, network_problem])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_many_queries_equal_single_queries(method, make):
    problem = make()
    singles = [ipfast.score(problem.model, problem.train, part, method=method, keep_members=True) for part in parts(problem)]
    for given in (
        {"val": parts(problem)},
        {"val": [DataLoader(TensorDataset(*part)) for part in parts(problem)]},
        {"val": dict(zip("abc", parts(problem), strict=True))},
        {"val": problem.val, "val_groups": GROUPS},
        {"val": problem.val, "val_groups": [["b", "c", "d"][q] for q in GROUPS]},
    ):
        got = ipfast.score(problem.model, problem.train, method=method, keep_members=True, **given)
        assert got.values.shape == (len(problem.y), 3)
        for q, single in enumerate(singles):
            assert_relative(got.values[:, q], single.values, FLOAT64_RELATIVE)
            assert_relative(got.members[:, :, q], single.members, FLOAT64_RELATIVE)
    assert got.queries == ("b", "c", "d")
    assert got.stats["M"] == [len(y) for _, y in parts(problem)]
    assert torch.equal(got.lowest(3, query="c"), singles[1].lowest(3))
    assert torch.equal(got.highest(3, query=2), singles[2].highest(3))
    assert torch.equal(got.topk(3, query="b")[1], singles[0].topk(3)[1])
    assert torch.equal(ipfast.curate.trim(got, 3, query=1), ipfast.curate.trim(singles[1], 3))


def test_an_impact_over_all_of_v_is_taken_in_each_group():
    problem = linear_problem()

    def spread(z, y):
        return z.softmax(dim=1).var(dim=0).sum()

    got = ipfast.score(problem.model, problem.train, problem.val, val_groups=GROUPS, impact=spread)
    for q, part in enumerate(parts(problem)):
        assert_relative(
            got.values[:, q], ipfast.score(problem.model, problem.train, part, impact=spread).values, FLOAT64_RELATIVE
        )


def test_groups_over_several_blocks_of_validation_data():
    problem = linear_problem(case=LONG)
    groups = torch.arange(LONG.rows) % 7
    got = ipfast.score(problem.model, problem.val, problem.train, val_groups=groups)
    for q in (0, 6):
        single = ipfast.score(problem.model, problem.val, (problem.x[groups == q], problem.y[groups == q]))
        assert_relative(got.values[:, q], single.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize("suffix", ["safetensors", "csv", "parquet", "npy"])
def test_scores_of_many_queries_are_written(suffix, tmp_path):
    problem = linear_problem()
    val = dict(zip("abc", parts(problem), strict=True))
    got = ipfast.score(problem.model, problem.train, val, method="ip_ensemble", keep_members=True, out=tmp_path / f"s.{suffix}")
    if suffix == "safetensors":
        back = ipfast.Scores.load(tmp_path / "s.safetensors")
        assert torch.equal(back.values, got.values)
        assert torch.equal(back.members, got.members)
        assert back.queries == ("a", "b", "c")
    if suffix == "csv":
        assert (tmp_path / "s.csv").read_text().splitlines()[0] == "index,score a,score b,score c"


def test_a_file_brings_many_queries_back(tmp_path):
    problem = linear_problem()
    query = ipfast.query(problem.model, problem.val, val_groups=GROUPS, method="ip_ensemble")
    query.save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(tmp_path / "q.safetensors")
    got = ipfast.score(problem.model, problem.train, after)
    assert got.queries == after.queries == ("0", "1", "2")
    direct = ipfast.score(problem.model, problem.train, problem.val, val_groups=GROUPS, method="ip_ensemble")
    assert torch.equal(got.values, direct.values)
    assert torch.equal(ipfast.Scorer(problem.model, after)(problem.train), direct.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_groups": GROUPS[1:]}, "expected val_groups to be 11 integers or strings"),
        ({"val_groups": GROUPS[None]}, "expected val_groups to be"),
        ({"val_groups": GROUPS.double()}, "expected val_groups to be .* dtype float64"),
        ({"val": None, "method": "self_tracin", "val_groups": GROUPS}, "expected val beside val_groups"),
        ({"val": []}, "expected at least one validation set"),
        (
            {"val": {"a": (torch.zeros(2, 12), torch.zeros(2).long())}, "val_groups": GROUPS},
            "expected no val_groups beside several",
        ),
    ],
)
def test_bad_groups_are_refused(options, message):
    problem = linear_problem()
    with pytest.raises(ipfast.InputError, match=f"score: {message}"):
        ipfast.score(problem.model, problem.train, **{"val": problem.val, **options})


@pytest.mark.parametrize("query", [None, "d", 3, -1, True, 1.0])
def test_one_of_many_queries_must_be_named(query):
    scores = ipfast.Scores(torch.zeros(4, 3), "ip", "head", "cpp", queries=("a", "b", "c"))
    with pytest.raises(ipfast.InputError, match="Scores: expected query"):
        scores.lowest(2, query=query)
    with pytest.raises(ipfast.InputError, match="expected no query for scores of a single one"):
        ipfast.Scores(torch.zeros(4), "ip", "head", "cpp").lowest(2, query=0)
    with pytest.raises(ipfast.InputError, match=r"expected values of shape \[N, 2\], one column for each of queries"):
        ipfast.Scores(torch.zeros(4, 3), "ip", "head", "cpp", queries=("a", "b"))


# aggregate=False


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_are_products_of_per_sample_gradients(loss, bias):
    problem = linear_problem(loss)
    got = ipfast.score(problem.model, problem.train, problem.val, loss=loss, include_bias=bias, aggregate=False)
    gradients = [
        oracles.model_gradients(problem.model, problem.head, list(zip(*data, strict=True)), loss, bias)
        for data in (problem.train, problem.val)
    ]
    assert_relative(got.values, gradients[0] @ gradients[1].T, FLOAT64_RELATIVE)
    assert got.queries is None
    assert got.lowest(2, query=4).shape == (2,)


@pytest.mark.parametrize("make", [linear_problem, network_problem])
def test_pairs_average_to_the_score(make):
    problem = make()
    states = [problem.model.state_dict(), {name: value * 0.9 for name, value in problem.model.state_dict().items()}]
    for method in (METHODS["ip"], METHODS["sparse"], METHODS["dense"], ipfast.Method(points=ipfast.Checkpoints(states))):
        pairs = ipfast.score(problem.model, problem.train, problem.val, method=method, aggregate=False)
        mean = ipfast.score(problem.model, problem.train, problem.val, method=method)
        assert_relative(pairs.values.mean(dim=1), mean.values, FLOAT64_RELATIVE)


def test_pairs_of_several_blocks():
    problem = linear_problem(case=LONG, dtype=torch.float32)
    pairs = ipfast.score(problem.model, problem.train, problem.val, aggregate=False)
    few = ipfast.score(problem.model, (problem.x[4096:], problem.y[4096:]), problem.val, aggregate=False)
    assert pairs.values.dtype == torch.float32
    torch.testing.assert_close(pairs.values[4096:], few.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_groups": GROUPS}, "expected aggregate=False with one validation set alone, .* got val_groups"),
        ({"impact": lambda z, y: z.sum()}, "expected aggregate=False .* got impact"),
        ({"keep_members": True}, "expected aggregate=False .* got keep_members"),
        ({"val": None, "method": "self_tracin"}, "expected aggregate=False with a method that compares with validation data"),
        ({"method": METHODS["rank"]}, "expected aggregate=False with the mean of inner products"),
        ({"method": ipfast.Method(points=ipfast.Dropout(chain=True))}, "expected aggregate=False with the mean"),
    ],
)
def test_what_has_no_pairs_is_refused(options, message):
    problem = linear_problem()
    with pytest.raises(ipfast.InputError, match=f"score: {message}"):
        ipfast.score(problem.model, problem.train, **{"val": problem.val, **options}, aggregate=False)
