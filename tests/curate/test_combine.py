"""Combine: one order from several objectives."""

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, zscore
from tolerances import FLOAT64_RELATIVE, assert_relative

import ipfast
from ipfast.curate import combine, trim

COLUMNS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30)


@given(COLUMNS)
def test_the_rank_average_is_that_of_scipy(rows):
    columns = np.array(rows, dtype=float).T
    expected = np.mean([(2 * rankdata(column) - 1) / len(rows) - 1 for column in columns], axis=0)
    assert_relative(combine(list(columns)).values + 2, torch.from_numpy(expected) + 2, FLOAT64_RELATIVE)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".safetensors"])
def test_objectives_may_be_the_queries_of_one_array_or_file(ending, tmp_path):
    values = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 9.0]], dtype=torch.float64)
    expected = combine([values[:, 0], values[:, 1]]).values.tolist()
    made = ipfast.Scores(values, "ip", "head", "cpp", queries=("a", "b"))
    made.save(tmp_path / f"s{ending}")
    for objectives in (values, values.numpy(), made, tmp_path / f"s{ending}"):
        assert combine(objectives).values.tolist() == expected
    assert combine(made).stats["objectives"] == ["a", "b"]


def test_ids_are_those_of_every_objective_that_has_some():
    every = (None, np.arange(3), np.arange(3)[::-1])
    one, other, reverse = (ipfast.Scores(torch.arange(3.0), "ip", "", "", ids=ids) for ids in every)
    assert combine([one, other, other]).ids.tolist() == [0, 1, 2]
    with pytest.raises(ipfast.InputError, match="expected objectives of the same samples; '1' and '2' have other ids"):
        combine([one, other, reverse])


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_equal_mean_ranks_are_equal_and_go_by_index(objectives):
    """Two opposed orders, so that no sample is lower than another."""
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(0)).double()
    columns = [order, -order, *[torch.zeros(1001)] * (objectives - 2)]
    scores = combine(columns)
    assert scores.values.unique().numel() == 1
    assert scores.lowest(4).tolist() == [0, 1, 2, 3]


def test_the_sum_of_z_scores_is_that_of_scipy():
    columns = np.random.default_rng(0).normal(size=(3, 40)) * [[1], [50], [1e-3]]
    got = combine(list(columns), "zsum")
    assert_relative(got.values, torch.from_numpy(sum(zscore(column) for column in columns)), FLOAT64_RELATIVE)
    same = combine({"a": columns[0], "constant": np.full(40, 0.1)}, "zsum")
    assert_relative(same.values, torch.from_numpy(zscore(columns[0])), FLOAT64_RELATIVE)


@given(COLUMNS, st.data())
def test_a_union_holds_the_lowest_of_each_and_is_topped_up_in_turn(rows, data):
    columns = np.array(rows, dtype=float).T
    k = data.draw(st.integers(0, len(rows)))
    lowest = combine(list(columns), "union").lowest(k).tolist()
    orders = [np.argsort(column, kind="stable").tolist() for column in columns]
    depth = 0  # how deep each objective is gone into for k samples
    while len(set().union(*[order[:depth] for order in orders])) < k:
        depth += 1
    assert set().union(*[order[: max(depth - 1, 0)] for order in orders]) <= set(lowest)
    assert set(lowest) <= set().union(*[order[:depth] for order in orders])
    assert {i for order in orders for i in order[: k // 3]} <= set(lowest)


def test_ties_are_broken_by_index():
    assert combine([np.zeros(5), np.zeros(5)], "union").lowest(5).tolist() == [0, 1, 2, 3, 4]
    assert combine([np.zeros(5), np.zeros(5)]).lowest(5).tolist() == [0, 1, 2, 3, 4]
    assert trim(combine([[1.0, 2.0], [2.0, 1.0]]), 1).tolist() == [1]


def test_objectives_may_be_queries_files_and_names(tmp_path):
    utility, fairness = torch.tensor([-2.0, 0, 1, 3]), torch.tensor([9.0, 8, -9, 1])
    expected = combine({"utility": utility, "fairness": fairness})
    assert expected.stats == {"combine": "rank", "objectives": ["utility", "fairness"]}
    several = ipfast.Scores(torch.stack([utility, fairness], 1), "ip", "head", "cpp", queries=("utility", "fairness"))
    np.save(tmp_path / "u.npy", utility.numpy())
    for objectives in (several, {"utility": tmp_path / "u.npy", "fairness": fairness.numpy()}):
        got = combine(objectives)
        assert torch.equal(got.values, expected.values)
        assert got.stats == expected.stats
    assert combine(several).method == "ip"


def test_ids_are_compared_as_a_table_without_types_has_them(tmp_path):
    """Names that look like numbers come back from a .csv as such."""
    named = ipfast.Scores(torch.arange(3.0), "ip", "head", "cpp", ids=np.array(["7", "8", "9"]))
    named.save(tmp_path / "s.csv")
    assert combine([named, tmp_path / "s.csv"]).ids.tolist() == ["7", "8", "9"]


TWO = np.array([[0.5, -1.0], [-2.0, 0.0], [1.0, 3.0], [0.0, 1.0]])


@pytest.mark.parametrize("ids", [None, np.array(["i", "j", "k", "l"])], ids=["index", "ids"])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_is_taken_as_the_file_it_was_read_from(ending, ids, tmp_path):
    made = ipfast.Scores(torch.from_numpy(TWO), "ip", "head", "cpp", ids=ids, queries=("u", "f"))
    made.save(tmp_path / f"two{ending}")
    made.only("u").save(tmp_path / f"one{ending}")
    read = pandas.read_csv if ending == ".csv" else pandas.read_parquet
    for how in ("rank", "union", "zsum"):
        found = combine(read(tmp_path / f"two{ending}"), how)
        assert found.values.tolist() == combine(made, how).values.tolist()
        assert (found.ids is None) == (ids is None)
        assert ids is None or found.ids.tolist() == ids.tolist()
    assert trim(read(tmp_path / f"one{ending}"), 1).tolist() == [0, 2, 3]
    assert trim(read(tmp_path / f"two{ending}"), 1, query="f").tolist() == [1, 2, 3]
    by_name = {"u": read(tmp_path / f"one{ending}"), "f": TWO[:, 1]}
    assert combine(by_name).values.tolist() == combine(made).values.tolist()


@pytest.mark.parametrize("columns", [["score"], ["score u", "score f"], ["u", "f"]], ids=len)
def test_a_table_in_another_order_goes_by_its_index(columns, tmp_path):
    table = pandas.DataFrame(TWO[:, : len(columns)], columns=columns)
    table.insert(0, "index", np.arange(4))
    moved = table.sort_values(columns[0])
    kept = [1, 2, 3] if len(columns) == 2 else [0, 2, 3]
    query = "f" if len(columns) == 2 else None
    assert trim(moved, 1, query=query).tolist() == trim(table, 1, query=query).tolist() == kept
    if columns[0].startswith("score"):
        moved.to_csv(tmp_path / "s.csv", index=False)
        assert trim(tmp_path / "s.csv", 1, query=query).tolist() == kept
    part = table.iloc[[3, 1, 2]]  # no order of the whole
    assert trim(part, 2, query=0 if query else None).tolist() == [2]


def test_the_columns_of_another_table_are_queries():
    table = pandas.DataFrame(TWO, columns=["u", 3])
    table["id"] = list("ijkl")
    found = combine(table)
    assert found.values.tolist() == combine(TWO).values.tolist()
    assert (found.stats["objectives"], found.ids.tolist()) == (["u", "3"], list("ijkl"))
    assert trim(table, 1, query="3").tolist() == [1, 2, 3]
    assert trim(table[["u"]], 1).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (pandas.DataFrame({"score": ["high", "low"]}), ipfast.InputTypeError, "expected scores .* 'score' of numbers"),
        (pandas.DataFrame({"id": [1, 2]}), ipfast.InputTypeError, "got columns 'id'"),
        (pandas.DataFrame(), ipfast.InputTypeError, "got columns none"),
        (pandas.DataFrame([[1.0, 2.0]], columns=["a", "a"]), ipfast.InputError, "columns of different names; got 'a' twice"),
        (pandas.DataFrame({"score": [1.0, np.nan]}), ipfast.InputError, "expected finite scores; row 1 has nan"),
        (
            pandas.DataFrame({"score": pandas.array([1.0, None], "Float64")}),
            (ipfast.InputError, ipfast.InputTypeError),
            "scores",
        ),
    ],
)
def test_tables_that_are_no_scores(table, error, message):
    with pytest.raises(error, match=f"trim: .*{message}"):
        trim(table, 1)


def test_ids_are_carried():
    ids = np.array(["x", "y"])
    one, other = (ipfast.Scores(torch.tensor([1.0, 2.0]), m, "head", "cpp", ids=ids) for m in ("ip", "self_tracin"))
    got = combine([one, other, torch.zeros(2)])
    assert got.ids.tolist() == ["x", "y"]
    assert got.method == "combined"
    swapped = ipfast.Scores(torch.tensor([1.0, 2.0]), "ip", "head", "cpp", ids=ids[::-1])
    with pytest.raises(ipfast.InputError, match="expected objectives of the same samples; '0' and '1' have other ids"):
        combine([one, swapped])


@pytest.mark.parametrize(
    ("objectives", "how", "error", "message"),
    [
        ([torch.zeros(2)], "rank", ipfast.InputError, "expected at least two objectives; got 1"),
        ([], "rank", ipfast.InputError, "expected at least two objectives; got 0"),
        (ipfast.Scores(torch.zeros(3), "ip", "head", "cpp"), "rank", ipfast.InputError, "at least two objectives; got 1"),
        ([torch.zeros(2), torch.zeros(3)], "rank", ipfast.InputError, "'0' has 2 and '1' has 3"),
        ({"a": torch.zeros(1), "b": torch.tensor([torch.nan])}, "rank", ipfast.InputError, "expected finite b; row 0 has nan"),
        ([torch.zeros(2)] * 2, "mean", ipfast.InputError, "expected how to be one of 'rank', 'union', 'zsum'; got 'mean'"),
        (torch.zeros(3, 1), "rank", ipfast.InputError, "expected at least two objectives; got 1"),
        (torch.zeros(3), "rank", ipfast.InputError, "expected at least two objectives; got 1"),
        (3, "rank", ipfast.InputTypeError, "expected objectives to be a Scores object, numbers .*; got int"),
        ("none.npy", "rank", ipfast.MissingFileError, "'none.npy' does not exist"),
        (
            {1: torch.zeros(2), "1": torch.ones(2)},
            "rank",
            ipfast.InputError,
            "expected objectives of different names; got 1, '1'",
        ),
    ],
)
def test_what_cannot_be_combined(objectives, how, error, message):
    with pytest.raises(error, match=message):
        combine(objectives, how)
