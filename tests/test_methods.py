"""The method table."""

from typing import get_type_hints

import pytest

import ipfast
from ipfast.curvature import PointCurvature, QuadraticFactors, StoredFactors
from ipfast.methods import METHODS, get_method


@pytest.mark.parametrize("name", list(METHODS))
def test_every_row_has_its_name_and_is_given_by_it(name):
    method = get_method("test", name)
    assert method.name == name
    assert get_method("test", method) is method


def test_the_table():
    free, bent = ["ip", "ip_ensemble", "tracin", "gex"], ["exact", "lissa", "datainf", "ekfac", "cg", "arnoldi", "tda"]
    selves = ["self_lissa", "self_ekfac"]
    assert list(METHODS) == [*free, "self_tracin", *bent, *selves, "loss", "random"]
    assert {name for name in METHODS if METHODS.get("test", name).needs_val} == {*free, *bent}
    assert {name for name in METHODS if getattr(METHODS.get("test", name), "bent", False)} == {*bent, *selves}


def test_a_method_is_a_choice_of_points_curvature_and_target():
    method = ipfast.Method()
    assert (method.points, method.curvature, method.target) == (ipfast.Final(), ipfast.Identity(), "val")
    assert [point.weight for point in method.points.points()] == [1.0]
    assert not ipfast.Method(target="self").needs_val


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ipfast.Method(target="train"),
            ipfast.InputError,
            "Method: expected target to be one of 'val', 'self'; got 'train'",
        ),
        (lambda: ipfast.Method(points="final"), ipfast.InputTypeError, "Method: expected points of .*; got str and Identity"),
        (
            lambda: ipfast.Method(curvature=None),
            ipfast.InputTypeError,
            "Method: expected .* a curvature .*; got Final and NoneType",
        ),
        (
            lambda: ipfast.Control("chance"),
            ipfast.InputError,
            "Control: expected name to be one of 'loss', 'random'; got 'chance'",
        ),
    ],
)
def test_what_is_no_method_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", PointCurvature.__subclasses__())
def test_a_curvature_says_what_its_factors_give(kind):
    """Asked of the curvature before anything is fitted; the type of what `fit` returns is held by the type checker."""
    factors = get_type_hints(kind.fit)["return"]
    assert (kind.quadratics, kind.stored) == (issubclass(factors, QuadraticFactors), issubclass(factors, StoredFactors))
