"""Unusual heads: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, X, Y, by_definition, seeded
from sklearn.linear_model import LogisticRegression
from tolerances import FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.nn.utils import prune

import ipfast


class Scaled(nn.Module):
    """What comes out of its head is changed in place afterwards, or what goes in."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.head, self.how = nn.Linear(D, 4), nn.Linear(4, C), how

    def forward(self, x):
        h = self.inner(x)
        if self.how == "by name":
            return self.head(input=h)
        z = self.head(h)
        if self.how == "logits":
            z /= 3
        elif self.how == "features":
            h.add_(1)
        return z


class Cosine(nn.Linear):
    def forward(self, h):
        return 10 * F.linear(F.normalize(h, dim=1), F.normalize(self.weight, dim=1))


def hooked():
    linear = nn.Linear(D, C)
    linear.register_forward_hook(lambda _module, _inputs, z: z / 3)
    return linear


@pytest.mark.parametrize("how", ["by name", "features"])
def test_features_are_those_that_went_into_the_head(how):
    model = seeded(lambda: Scaled(how))
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    model.how = ""  # the same logits, which autograd can differentiate
    expected = by_definition(model, X, Y, X_VAL, Y_VAL, ("head.weight", "head.bias"))
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


BUILDERS = {
    "in place": lambda: Scaled("logits"),
    "hook": lambda: nn.Sequential(nn.Linear(D, D), hooked()),
    "subclass": lambda: nn.Sequential(nn.Linear(D, D), Cosine(D, C)),
    "bare hook": hooked,
    "bare subclass": lambda: Cosine(D, C),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_heads_that_are_not_linear_are_refused(name):
    model = seeded(BUILDERS[name])
    with pytest.raises(ipfast.InputError, match=r"expected outputs W h \+ b of the head; those of .* differ from it by"):
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    if name in ("hook", "subclass"):  # a head that is named is looked at too; its own outputs are taken for the logits
        with pytest.raises(ipfast.InputError, match=r"those of the layer '1' differ"):
            ipfast.score(model, (X, Y), (X_VAL, Y_VAL), head="1", progress=False)


def test_a_bare_layer_whose_weight_is_computed_is_taken_as_it_is():
    linear = seeded(lambda: nn.Linear(D, C))
    prune.l1_unstructured(linear, "weight", 0.4)
    with torch.no_grad():
        linear.weight_orig.mul_(2)  # the attribute is that of before until the layer is called
    plain = seeded(lambda: nn.Linear(D, C))
    with torch.no_grad():
        plain.weight.copy_(linear.weight_orig * linear.weight_mask)
    found = ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False)
    assert_relative_to_largest(found.values, by_definition(plain, X, Y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


def test_a_backbone_runs_in_the_callers_autocast():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(D, 4), nn.Linear(4, C)

        def forward(self, x):
            h = self.inner(x)
            seen.append(h.dtype)
            return self.head(h)

    model = seeded(Watching).float()
    with torch.autocast("cpu", torch.bfloat16):
        ipfast.score(model, (X.float(), Y), (X_VAL.float(), Y_VAL), progress=False)
    assert set(seen) == {torch.bfloat16}


def test_weights_of_classes_that_an_estimator_was_fitted_with_are_not_left_out_without_a_word():
    model = LogisticRegression(class_weight={0: 1, 1: 20, 2: 1}).fit(X.numpy(), Y.numpy())
    data, val = (X.numpy(), Y.numpy()), (X_VAL.numpy(), Y_VAL.numpy())
    with pytest.raises(ipfast.InputError, match=r"class_weight=\{0: 1, 1: 20, 2: 1\}.*Pass loss='cross_entropy'"):
        ipfast.score(model, data, val, progress=False)
    found = ipfast.score(model, data, val, loss=ipfast.losses.CrossEntropy(weight=[1.0, 20.0, 1.0]), progress=False)
    linear = seeded(lambda: nn.Linear(D, C))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(model.coef_))
        linear.bias.copy_(torch.from_numpy(model.intercept_))
    weight = torch.tensor([1.0, 20.0, 1.0], dtype=torch.float64)

    def loss(z, y):
        return F.cross_entropy(z, y, weight=weight, reduction="none").sum()

    assert_relative_to_largest(found.values, by_definition(linear, X, Y, X_VAL, Y_VAL, loss=loss), FLOAT64_RELATIVE)


def test_a_head_of_another_byte_order(tmp_path):
    linear = seeded(lambda: nn.Linear(D, C))
    weight, bias = (value.detach().numpy() for value in (linear.weight, linear.bias))
    np.savez(tmp_path / "head.npz", weight=weight.astype(">f8"), bias=bias.astype(">f8"))
    found = ipfast.score(tmp_path / "head.npz", (X, Y), (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False).values)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (lambda: nn.Linear(0, C), "at least one feature; got d = 0"),
        (lambda: nn.Linear(D, C, device="meta"), "a head with values; it is on the device 'meta'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_heads_of_nothing_are_refused(head, words):
    with pytest.raises(ipfast.InputError, match=words):
        ipfast.score(head(), (X, Y), (X_VAL, Y_VAL), progress=False)
    with pytest.raises(ipfast.InputError, match="model with values; weight is on the device 'meta'"):
        ipfast.score(nn.Linear(D, C, device="meta"), (X, Y), (X_VAL, Y_VAL), params="all", progress=False)


@pytest.mark.parametrize("method", ["ip", "self_tracin", "ekfac", "self_ekfac", "datainf", "loss"])
@pytest.mark.parametrize("params", ["last", "all"])
def test_cross_entropy_of_one_output_is_refused(params, method):
    """Its loss is zero whatever the output is; one output is what binary cross-entropy is for."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    for y in ((x[:, :1] > 0).float(), (x[:, 0] > 0).long()):
        val = (x[:5], y[:5]) if method in ("ip", "ekfac", "datainf") else None
        with pytest.raises(ipfast.InputError, match=r"expected two outputs or more with loss='cross_entropy'.*bce_with_logits"):
            ipfast.score(model, (x, y), val, method=method, params=params, progress=False)


def test_the_best_of_a_search_is_named():
    from sklearn.model_selection import GridSearchCV

    x, y = X.float().numpy(), (X[:, 0] > 0).long().numpy()
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(x, y)
    with pytest.raises(ipfast.InputTypeError, match="Pass its best_estimator_"):
        ipfast.score(search, (x, y), (x, y), progress=False)
    assert len(ipfast.score(search.best_estimator_, (x, y), (x[:9], y[:9]), progress=False).values) == len(x)
