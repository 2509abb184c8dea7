"""Spreads, paired differences and shares, against other roads to the same numbers."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ipfast.experiments.cells import Cell, Record, Records, by_seed
from ipfast.experiments.intervals import Difference, paired, share_interval, spread
from ipfast.experiments.tables import difference_table, spread_table, table


def test_the_paired_interval_is_that_of_the_paired_test():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 5))
    found = paired(dict(enumerate(one)), dict(enumerate(other)))
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((one - other).mean())
    assert found.count == 5


def test_only_seeds_of_both_are_paired():
    assert paired({0: 5.0, 1: 9.0}, {1: 7.0, 2: 0.0}) == Difference(2.0, None, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert spread([]) is None
    assert spread([2.0]).deviation is None


def test_what_both_share_cancels():
    """Pairing is what makes few seeds tell anything: a large effect of the seed is not in the interval."""
    control = {seed: 100.0 * seed for seed in range(3)}
    found = paired({seed: value + 1 + 0.01 * seed for seed, value in control.items()}, control)
    assert 0.9 < found.low < found.mean < found.high < 1.1


@pytest.mark.parametrize(("hits", "of"), [(30, 100), (1, 50), (49, 50), (1, 3)])
def test_the_interval_of_a_share_is_the_bootstrap_one(hits, of):
    sample = np.arange(of) < hits
    draws = np.random.default_rng(0).choice(sample, (20_000, of)).mean(axis=1)
    low, high = share_interval(hits, of)
    assert abs(low - np.quantile(draws, 0.025)) <= 1 / of
    assert abs(high - np.quantile(draws, 0.975)) <= 1 / of
    assert low <= hits / of <= high


@pytest.mark.parametrize("of", [1, 50, 450])
def test_the_interval_of_all_is_no_point(of):
    """The smallest share of which all of them are found with a chance of 2.5 %."""
    low, high = share_interval(of, of)
    assert high == 1
    assert low**of == pytest.approx(0.025)
    assert share_interval(0, of) == pytest.approx((0, 1 - low))


def records_of(values):
    """Of part "d" and setting "a", (method, seed) -> AUC."""
    cells = {Cell("d", "a", *each): value for each, value in values.items()}
    return Records({cell: Record(cell, {"AUC": value}, 1.0) for cell, value in cells.items()})


def test_what_has_fewer_seeds_says_so():
    """A mean over other seeds is not to be compared, unless there is no chance in it."""
    records = records_of({("none", 0): 0.5, ("none", 1): 0.7, ("ip", 1): 0.9, ("random", 0): 0.4, ("random", 1): 0.2})
    methods = ["none", "ip", "random"]
    text = spread_table(records, "d", ["a"], methods, "AUC", digits=1)
    assert "| none | 0.6 ± 0.1 |" in text
    assert "| ip | 0.9 (1 of 2) |" in text
    assert "so far of k of the n seeds" in text
    assert "| ip | +0.2 (1 of 2) |" in difference_table(records, "d", ["a"], methods, "AUC", "none", digits=1)
    assert "of 2" not in spread_table(records, "d", ["a"], methods, "AUC", counted=False)
    assert "of 2" not in spread_table(records, "d", ["a"], ["none", "random"], "AUC")


def test_values_are_found_by_seed_whatever_the_order_of_the_cells():
    records = records_of({("ip", 2): 0.5, ("loss", 0): 0.1, ("ip", 0): 0.7})
    assert list(by_seed(records, "d", "a", "ip", "AUC").items()) == [(0, 0.7), (2, 0.5)]
    assert by_seed(records, "d", "b", "ip", "AUC") == by_seed(records, "d", "a", "ip", "other") == {}


def test_tables_show_what_is_there():
    values = {("ip", 0): 0.5, ("ip", 1): 0.7, ("random", 0): 0.4, ("random", 1): 0.2}
    records = records_of(values)
    assert "| ip | 60.0 ± 14.1 |" in spread_table(records, "d", ["a"], ["ip", "loss", "random"], "AUC", 100, 1)
    assert "loss" not in spread_table(records, "d", ["a"], ["ip", "loss", "random"], "AUC")
    assert spread_table(records, "d", ["b", "a"], ["ip"], "AUC").startswith("|  | a |\n")
    assert difference_table(records, "d", ["a", "b"], ["ip"], "AUC", "random").startswith("| minus random | a |\n")
    assert "| ip | +30.0 [−224.1, +284.1] |" in difference_table(records, "d", ["a"], ["ip", "random"], "AUC", "random", 100, 1)
    assert table(["x", "y"], [["a", "1"], ["b", ""]]) == "| x | y |\n| --- | ---: |\n| a | 1 |"
