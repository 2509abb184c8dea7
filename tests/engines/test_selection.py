"""Which engine is chosen, and that the reason says why."""

import itertools

import pytest

from ipfast.engines.selection import ENGINES, LayerShape, select_engine
from ipfast.errors import InputError

LONG, SHORT = LayerShape(1000, 64, 64), LayerShape(1, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ({}, "forward", "3 products a layer against 3, at 1 query"),
        ({"queries": 2}, "ghost", "5 products a layer against 4, at 2 queries"),
        ({"queries": 100}, "ghost", "201 products a layer against 4,"),
        ({"queries": 8, "layers": [LONG]}, "ghost", "against 3.01,"),
        ({"queries": 8, "layers": [SHORT]}, "ghost", "against 10,"),
        ({"queries": 8, "layers": [LONG, SHORT]}, "ghost", "against 3.01,"),
        ({"queries": 1, "layers": [SHORT]}, "forward", "against 3,"),
        ({"params": "last"}, "head", "params='last'"),
        ({"params": "last", "queries": 9}, "head", "params='last'"),
        ({"target": "self"}, "ghost", "each sample's own gradient"),
        ({"target": "self", "forward_derivative": False}, "ghost", "each sample's own gradient"),
        ({"forward_derivative": False}, "ghost", "no forward derivative"),
    ],
)
def test_auto_takes_the_cheapest_that_can(arguments, name, words):
    choice = select_engine(**arguments)
    assert choice.name == name
    assert words in choice.reason


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "auto"])
def test_an_engine_asked_for_by_name_is_never_replaced(engine):
    for queries, target, params in itertools.product((1, 9), ("val", "self"), ("last", "all")):
        choice = select_engine(engine, queries=queries, target=target, params=params, forward_derivative=False)
        assert choice.name == engine
        assert "by name" in choice.reason


def test_auto_never_chooses_explicit_gradients():
    for queries, target, derivative in itertools.product((1, 2, 100), ("val", "self"), (True, False)):
        for layers in ((), (LONG,), (SHORT,)):
            choice = select_engine(queries=queries, target=target, forward_derivative=derivative, layers=layers)
            assert choice.name in ("forward", "ghost")


@pytest.mark.parametrize(("arguments", "near"), [({"engine": "gost"}, "ghost"), ({"target": "value"}, "val")])
def test_unknown_names_are_refused_with_the_nearest(arguments, near):
    with pytest.raises(InputError, match=near):
        select_engine(**arguments)
