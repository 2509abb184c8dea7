"""Curvatures that are fitted once: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import sys

import pytest
import torch
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, numbers, seeded
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
from tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import ipfast
from ipfast.curvature import passes
from ipfast.engines.estimators import read_penalty

VAL = X_VAL, Y_VAL
VAL_LOADER = DataLoader([{"features": x, "target": y} for x, y in zip(X_VAL, Y_VAL, strict=True)], 4)


def test_a_fitted_curvature_is_of_its_parameters_loss_and_bias():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))
    y, y_val = torch.arange(N) % D, torch.arange(M) % D
    fitted = ipfast.fit(model, (X, y), method="ekfac", params=[r"^0\."], progress=False)
    words = "the model, params, loss, tokens and points that the curvature was fitted for"
    for options in ({"params": [r"^2\."]}, {"params": [r"^0\."], "loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match=words):
            ipfast.score(model, (X, y), (X_VAL, y_val), method=fitted, progress=False, **options)
    head = model[2]
    fitted = ipfast.fit(head, (X, y), method="ekfac", progress=False)
    for options in ({"include_bias": False}, {"loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match=words):
            ipfast.score(head, (X, y), (X_VAL, y_val), method=fitted, progress=False, **options)


def test_what_an_interrupted_fit_has_left_is_of_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "KEPT_EVERY", 0.0)
    model, out = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C))), tmp_path / "fit.safetensors"
    journal = passes.Journal

    class Stopping(journal):
        def keep(self, *args, **options):
            super().keep(*args, **options)
            raise KeyboardInterrupt

    def fit(x=X, y=Y, **options):
        return ipfast.fit(model, (x, y), params="all", batch_size=4, out=out, progress=False, **options)

    fits = sys.modules["ipfast.fit"]  # the function hides the module
    monkeypatch.setattr(fits, "Journal", Stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(loss=ipfast.losses.CrossEntropy())
    assert out.with_suffix(".part").exists()
    monkeypatch.setattr(fits, "Journal", journal)
    last = {"x": torch.cat([X[:-1], X[-1:] + 1])}, {"y": torch.cat([Y[:-1], (Y[-1:] + 1) % C])}
    for options in ({"x": X + 1}, *last, {"tokens": "sum"}, {"loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match="to be what this fit has left; it is of"):
            fit(**{"loss": ipfast.losses.CrossEntropy(), **options})
    fit(loss=ipfast.losses.CrossEntropy())  # another object of the same loss
    assert not out.with_suffix(".part").exists()


def test_arnoldi_takes_rounding_of_a_convex_loss_for_what_it_is():
    """A softmax head has directions without curvature, whose eigenvalues are rounding of either sign."""
    linear = seeded(lambda: nn.Linear(8, 4)).float()
    x, y = numbers(40, 8).float(), torch.arange(40) % 4
    found = ipfast.score(linear, (x, y), (x[:10], y[:10]), method="arnoldi", progress=False)
    assert bool(torch.isfinite(found.values).all())
    assert 1 < found.stats["curvature"][0]["of"]["rank"] <= 27  # (C − 1)(d + 1)


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("curvature", [ipfast.EKFAC(), ipfast.Exact(damping=0.1)], ids=["ekfac", "exact"])
def test_points_of_one_head_and_several_backbones_have_factors_of_their_own(curvature, kept, tmp_path):
    model = network()
    first = model.state_dict()
    second = {**first, "0.weight": numbers(4, D, seed=3)}
    points = ipfast.Checkpoints([first, second])
    out = tmp_path / "fitted.safetensors" if kept else None
    fitted = ipfast.fit(model, (X, Y), method=ipfast.Method(points=points, curvature=curvature), out=out, progress=False)
    assert len(fitted.kept) == 2
    found, expected = (
        ipfast.score(model, (X, Y), VAL, method=ipfast.Method(points=points, curvature=each), progress=False).values
        for each in (fitted, curvature)
    )
    assert_relative_to_largest(found, expected, FLOAT64_RELATIVE)
    model.load_state_dict(second)
    one = ipfast.fit(network(), (X, Y), method=ipfast.Method(curvature=curvature), progress=False)
    with pytest.raises(ipfast.InputError, match="its factors are of others"):
        ipfast.score(model, (X, Y), VAL, method=one, progress=False)


def test_what_is_rounding_of_a_singular_hessian_is_not_inverted():
    """In float32 the probabilities of a softmax add up to 1 but for rounding, which is no curvature."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 12, generator=generator), torch.randint(0, 6, (300,), generator=generator)
    linear = seeded(lambda: nn.Linear(12, 6))
    val = numbers(20, 12, seed=1), torch.arange(20) % 6

    def scored(dtype, **options):
        data = (x.to(dtype), y), (val[0].to(dtype), val[1])
        impact = lambda z, labels: z.gather(1, labels[:, None]).mean()  # noqa: E731  moves all logits of a sample alike too
        return ipfast.score(linear.to(dtype), *data, method="exact", impact=impact, progress=False, **options).values.double()

    with pytest.warns(ipfast.IpfastWarning, match="that part is left out"):
        expected = scored(torch.float64)
    for options in ({}, {"params": "all"}):
        with pytest.warns(ipfast.IpfastWarning, match="that part is left out"):
            assert_relative_to_largest(scored(torch.float32, **options), expected, 100 * FLOAT32_RELATIVE)


def test_pairs_know_no_curvature_at_the_last_layer():
    with pytest.raises(ipfast.InputError, match="no curvature with aggregate=False at the last layer; got 'ekfac'"):
        ipfast.score(network(), (X, Y), VAL, method="ekfac", aggregate=False, progress=False)
    over = ipfast.score(network(), (X, Y), VAL, method="exact", aggregate=False, params=[r"^2\."], progress=False)
    groups = ipfast.score(network(), (X, Y), VAL, method="exact", val_groups=range(M), progress=False)
    assert_relative_to_largest(over.values, groups.values, 1e-6)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ipfast.InputError, match=r"no curvature with Dropout\(chain=True\)"):
        ipfast.Method(points=ipfast.Dropout(2, 0.1, chain=True), curvature=ipfast.EKFAC())
    with pytest.raises(ipfast.InputError, match=r"target='self' with LiSSA\(mode='single'\)"):
        ipfast.Method(curvature=ipfast.LiSSA(mode="single"))


class Once(IterableDataset):
    def __init__(self, *tensors):
        self.samples = iter([*zip(*tensors, strict=True)])

    def __iter__(self):
        return self.samples


def test_a_stream_that_can_be_read_once_is_fitted_whole_or_refused():
    model, method = network(), ipfast.Method(curvature=ipfast.Exact(damping=1.0))

    def fitted(data, method):
        return ipfast.fit(model, data, method=method, params="all", progress=False)

    found = ipfast.score(model, (X, Y), VAL, method=fitted(DataLoader(Once(X, Y), 5), method), params="all", progress=False)
    expected = ipfast.score(model, (X, Y), VAL, method=fitted((X, Y), method), params="all", progress=False)
    assert_relative_to_largest(found.values, expected.values, FLOAT64_RELATIVE)
    with pytest.raises(ipfast.InputError, match=r"the same samples each time it is read|can be read only once"):
        fitted(DataLoader(Once(X, Y), 5), "ekfac")


def test_a_fit_looks_at_its_model_first():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(D, 4), nn.Linear(4, C)

        def forward(self, x):
            return self.head(nn.functional.dropout(self.inner(x), 0.5, training=True))

    for params in ("last", "all"):
        with pytest.raises(ipfast.InputError, match="two runs on the same samples"):
            ipfast.fit(seeded(Dropping), (X, Y), method="ekfac", params=params, progress=False)
    with pytest.raises(ipfast.InputError, match="segments of the training run"):
        ipfast.fit(network(), (X, Y), method="tda", progress=False)
    method = ipfast.Method(points=ipfast.Checkpoints(), curvature=ipfast.EKFAC())
    with pytest.raises(ipfast.InputError, match="checkpoints of the training run"):
        ipfast.fit(network(), (X, Y), method=method, progress=False)


@pytest.mark.parametrize("method", ["exact", "lissa", "cg", "arnoldi", "datainf", "ekfac", "self_ekfac"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_features_have_every_curvature(method, kind):
    linear = seeded(lambda: nn.Linear(D, C)).float()
    options = {"method": ipfast.Method(curvature=ipfast.Exact(damping=0.1)) if method == "exact" else method, "progress": False}
    val = () if method == "self_ekfac" else ((X_VAL.to(kind), Y_VAL),)
    wide = () if method == "self_ekfac" else ((X_VAL.to(kind).float(), Y_VAL),)
    found = ipfast.score(linear, (X.to(kind), Y), *val, **options).values
    expected = ipfast.score(linear, (X.to(kind).float(), Y), *wide, **options).values
    assert_relative_to_largest(found, expected, 0.02)


@pytest.mark.parametrize("curvature", [ipfast.Exact(damping=0.1), ipfast.LiSSA(damping=0.1), ipfast.CG(damping=0.1)], ids=repr)
def test_self_influence_of_tokens_is_refused_by_name(curvature):
    x, y = numbers(N, 3, D), torch.stack([Y] * 3, dim=1)
    method = ipfast.Method(curvature=curvature, target="self")
    with pytest.raises(ipfast.InputError, match="got token data, whose gradients do not factor"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (x, y), method=method, progress=False)


def test_queries_go_with_their_model():
    query = ipfast.query(network(), VAL, params="all")
    other = seeded(lambda: nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C)))
    words = r"the model that the query was made for, with '0\.weight' of shape \[4, 5\]"
    with pytest.raises(ipfast.InputError, match=words):
        ipfast.score(other, (X, Y), query, progress=False)
    with pytest.raises(ipfast.InputError, match=words):
        ipfast.Scorer(other, query)
    fitted = ipfast.fit(network(), (X, Y), method="ekfac", progress=False)
    with pytest.raises(ipfast.InputError, match="expected train"):
        ipfast.query(network(), method=ipfast.Method(curvature=fitted, target="self"))


def test_a_scorer_finds_labels_under_their_key():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(D, C)

        def forward(self, features):
            return self.head(features)

    model = seeded(Named)
    query = ipfast.query(model, VAL_LOADER, params="all", labels_key="target")
    scores = ipfast.Scorer(model, query, labels_key="target")({"features": X, "target": Y})
    expected = ipfast.score(model, (X, Y), VAL, params="all", progress=False)
    assert_relative_to_largest(scores, expected.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ipfast.Segments([[{}]], 0.1, [1]), "learning_rates to be one number above 0"),
        (lambda: ipfast.Segments([[{}]], ["a"], [1]), "learning_rates to be one number above 0"),
        (lambda: ipfast.Segments([[{}]], [0.1], [0.5]), "steps to be one whole number above 0"),
        (lambda: ipfast.Segments([[{}]], [0.1], [1], momentum="x"), "momentum to be at least 0"),
        (lambda: ipfast.Checkpoints([{}], weights=0.5), "weights to be a list of numbers"),
        (lambda: ipfast.Checkpoints([{}], weights=["a"]), "weights to be a list of numbers"),
        (lambda: ipfast.EKFAC(seed=1.5), "seed to be an integer"),
        (lambda: ipfast.EKFAC(empirical="no"), "empirical to be True or False"),
        (lambda: ipfast.Arnoldi(seed=-1), "seed to be in 0"),
        (lambda: ipfast.fit(network(), (X, Y), method="ekfac", out=3), "out to be the path of a file; got int"),
    ],
)
def test_options_of_points_and_curvatures_are_checked(make, words):
    with pytest.raises((ipfast.InputError, ipfast.InputTypeError), match=words):
        make()


@pytest.mark.parametrize("kind", ["none", "closure", "of the caller"])
def test_extra_training_needs_an_optimizer_of_its_parameters(kind):
    model = network()
    make = {
        "none": lambda parameters: None,
        "closure": lambda parameters: torch.optim.LBFGS(parameters),
        "of the caller": lambda parameters: torch.optim.SGD(model.parameters(), 0.1),
    }[kind]
    with pytest.raises((ipfast.InputError, ipfast.InputTypeError), match="ExtraSGD: expected optimizer to"):
        ipfast.score(model, (X, Y), VAL, method=ipfast.Method(points=ipfast.ExtraSGD((X, Y), make)), progress=False)


@pytest.mark.parametrize("name", ["LogisticRegressionCV", "RidgeClassifierCV"])
def test_the_penalty_of_a_cross_validated_estimator_is_read(name):
    x, y = X.repeat(3, 1).numpy() + numbers(3 * N, D, seed=9).numpy(), Y.repeat(3).numpy()
    if name == "LogisticRegressionCV":
        model = LogisticRegressionCV(Cs=[0.05], cv=2, use_legacy_attributes=False, l1_ratios=(0,), scoring="accuracy").fit(x, y)
        expected = 1 / 0.05
    else:
        model = RidgeClassifierCV(alphas=[3.0]).fit(x, y)
        expected = 2 * 3.0 / C
    assert read_penalty(model) == pytest.approx(expected)
