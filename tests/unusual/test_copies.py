"""Parameters that a model reaches past its modules, so that no copy of it has values of its own there: refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, X, Y, by_definition, seeded
from tolerances import FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn

import ipfast
from ipfast import Method


class Reaching(nn.Module):
    """A layer that is reached in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.head, self.how = nn.Linear(D, D), nn.Linear(D, C), how
        if how == "lambda":
            self.block = lambda x: self.inner(x)
        elif how == "hook":
            self.outer = nn.Linear(D, D)
            self.outer.register_forward_hook(lambda _module, inputs, output: output + self.inner(inputs[0]))
        elif how == "list of parameters":
            self.values = [self.inner.weight, self.inner.bias]
        elif how == "patched":
            self.outer = nn.Linear(D, D)
            self.outer.forward = lambda x: self.inner(x)
        elif how == "list of modules":
            self.layers = [self.inner]
        elif how == "bound method":
            self.block = self.through

    def through(self, x):
        return self.inner(x)

    def forward(self, x):
        if self.how in ("lambda", "bound method"):
            h = self.block(x)
        elif self.how == "list of parameters":
            h = F.linear(x, *self.values)
        elif self.how == "list of modules":
            h = self.layers[0](x)
        else:
            h = self.outer(x)
        return self.head(h.tanh())


REFUSED = ["lambda", "hook", "list of parameters", "patched"]


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("options", [{}, {"engine": "ghost"}, {"engine": "explicit"}, {"method": "self_tracin"}], ids=str)
def test_parameters_in_closures_and_lists_have_no_gradient_and_are_refused(how, options):
    val = None if "method" in options else (X_VAL, Y_VAL)
    with pytest.raises(ipfast.InputError, match=r"its parameters through its modules; 'inner\.(weight|bias)' goes into"):
        ipfast.score(seeded(lambda: Reaching(how)), (X, Y), val, params="all", progress=False, **options)


@pytest.mark.parametrize("how", ["list of modules", "bound method"])
def test_modules_that_are_copied_with_the_model_are_scored(how):
    model = seeded(lambda: Reaching(how))
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
    assert_relative_to_largest(found.values, by_definition(model, X, Y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


def points(kind, model):
    if kind == "checkpoints":
        return ipfast.Checkpoints([{name: value + 1 for name, value in model.state_dict().items()}])
    return ipfast.ExtraSGD((X, Y), lambda parameters: torch.optim.SGD(parameters, 0.1), members=1)


@pytest.mark.parametrize("how", [how for how in REFUSED if how != "list of parameters"])
@pytest.mark.parametrize("kind", ["checkpoints", "extra training"])
def test_other_states_of_such_a_model_are_refused(how, kind):
    model = seeded(lambda: Reaching(how))
    method = Method(points=points(kind, model))
    with pytest.raises(ipfast.InputError, match="reaches its parameters through its modules"):
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), method=method, progress=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)  # at the model itself the last layer is as it is
