"""Names, and the offer of the nearest one."""

import pytest

import ipfast
from ipfast.registry import Registry, check_choice

NAMES = ("ip", "self_tracin", "loss", "random")


@pytest.mark.parametrize(
    ("given", "offer"),
    [("selftracin", "self_tracin"), ("IP", "ip"), ("los", "loss"), ("Random", "random"), ("tracin", "self_tracin")],
)
def test_the_nearest_name_is_offered(given, offer):
    with pytest.raises(
        ipfast.InputError, match=rf"f: expected method to be one of 'ip', .*; got '{given}'\. Did you mean '{offer}'\?"
    ):
        check_choice("f", "method", given, NAMES)


def test_nothing_is_offered_where_nothing_is_near():
    with pytest.raises(ipfast.InputError) as caught:
        check_choice("f", "method", "zzzzzz", NAMES)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, b"ip", ("ip",)])
def test_a_name_is_a_string(given):
    with pytest.raises(ipfast.InputTypeError, match=f"got {type(given).__name__}"):
        check_choice("f", "method", given, NAMES)


def test_a_known_name_is_given_back():
    assert check_choice("f", "method", "loss", iter(NAMES)) == "loss"


def test_a_registry_keeps_order_and_refuses_a_name_twice():
    table = Registry("colour")
    table.add("red", 1)
    table.add("blue", 2)
    assert list(table) == ["red", "blue"]
    assert "red" in table
    assert "green" not in table
    assert table.get("f", "blue") == 2
    with pytest.raises(ipfast.InputError, match="'red' is taken"):
        table.add("red", 3)
    with pytest.raises(
        ipfast.InputError, match=r"f: expected colour to be one of 'red', 'blue'; got 'bleu'\. Did you mean 'blue'\?"
    ):
        table.get("f", "bleu")
