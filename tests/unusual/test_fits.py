"""Curvatures that are fitted once: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import sys

import pytest
import torch
from definition import X_VAL, C, D, M, N, X, Y, numbers, seeded
from torch import nn

import ipfast
from ipfast.curvature import passes


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

    def fit(x=X, **options):
        return ipfast.fit(model, (x, Y), params="all", batch_size=4, out=out, progress=False, **options)

    fits = sys.modules["ipfast.fit"]  # the function hides the module
    monkeypatch.setattr(fits, "Journal", Stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(loss=ipfast.losses.CrossEntropy())
    assert out.with_suffix(".part").exists()
    monkeypatch.setattr(fits, "Journal", journal)
    for options in ({"x": X + 1}, {"tokens": "sum"}, {"loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
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
