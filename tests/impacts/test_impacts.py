"""Impacts: what is differentiated on the validation data."""

import pytest
import torch
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast.impacts import IMPACTS, Custom, Impact, Utility, get_impact
from ipfast.losses import CrossEntropy

Z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def test_found_by_name_given_or_wrapped():
    assert isinstance(get_impact("test", "utility"), Utility)
    utility = Utility()
    assert get_impact("test", utility) is utility
    custom = get_impact("test", nn.functional.cross_entropy)
    assert isinstance(custom, Custom)
    assert not custom.additive


def test_every_impact_has_its_name():
    assert set(IMPACTS) == {"utility", "demographic_parity", "equal_opportunity", "adversarial", "counterfactual"}
    for name in IMPACTS:
        impact = IMPACTS.get("test", name)
        assert issubclass(impact, Impact)
        assert impact.name == name


@pytest.mark.parametrize("name", ["utility", "adversarial"])
def test_an_impact_without_data_is_made_by_its_name(name):
    assert get_impact("test", name).name == name


def test_utility_is_the_residual_of_each_sample():
    assert torch.equal(Utility().cotangent(Z, Y, CrossEntropy()), CrossEntropy().residual(Z, Y))


def test_utility_as_a_callable_has_the_same_gradient():
    got = Custom(nn.functional.cross_entropy).cotangent(Z, Y, CrossEntropy())
    assert_relative(got, Utility().cotangent(Z, Y, CrossEntropy()) / len(Z), FLOAT64_RELATIVE)


def test_a_callable_is_differentiated_under_inference_mode():
    with torch.inference_mode():
        z, y = Z.clone(), Y.clone()
        got = Custom(lambda z, y: (z**2).sum()).cotangent(z, y, CrossEntropy())
    assert torch.equal(got, 2 * Z)


def test_a_callable_may_not_change_the_validation_data():
    z, y = Z.clone(), Y.clone()
    Custom(lambda z, y: (z.mul(2).add_(1)).sum() + y.zero_().sum()).cotangent(z, y, CrossEntropy())
    assert torch.equal(z, Z)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, y: z.sum(dim=1), r"expected impact to return one number.*; got \[7\]. Take the mean"),
        (lambda z, y: 3.0, "expected impact to return one number.*; got float"),
        (lambda z, y: None, "expected impact to return one number.*; got NoneType"),
        (lambda z, y: z.sum() * 1j, "expected impact to return a real number.*; got torch.complex128"),
        (lambda z, y: z.argmax(dim=1).double().mean(), "expected impact to be differentiable.* Avoid argmax"),
        (lambda z, y: z.detach().mean(), "expected impact to be differentiable"),
        (lambda z, y: torch.ones((), requires_grad=True) * 2, "expected impact to be differentiable"),
    ],
)
def test_a_callable_that_is_no_differentiable_number_is_refused(function, message):
    with pytest.raises(ipfast.InputError, match=f"query: {message}"):
        Custom(function).cotangent(Z, Y, CrossEntropy())


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ipfast.InputError, match="query: expected a finite gradient of the impact; got NaN or infinity"):
        ipfast.query(
            nn.Linear(3, 2), (torch.zeros(4, 3), torch.zeros(4).long()), impact=lambda z, y: (z.sum() * 0).sqrt().log()
        )
