"""Reweight: a softmax of the scores with mean 1."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT64_RELATIVE, assert_relative

import ipfast
from ipfast.curate import reweight

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
MEAN = torch.ones((), dtype=torch.float64)


@given(
    st.lists(NUMBERS, min_size=1, max_size=50), st.sampled_from([None, 1e-3, 1.0, 1e9]), st.sampled_from([None, 1.0, 1.5, 10.0])
)
def test_the_mean_weight_is_one_and_none_is_above_the_clip(values, temperature, clip):
    w = reweight(values, temperature=temperature, clip=clip)
    assert_relative(w.mean(), MEAN, FLOAT64_RELATIVE)
    assert (w >= 0).all()
    assert clip is None or (w <= clip).all()
    order = np.argsort(values, kind="stable")
    assert (w[order[1:]] >= w[order[:-1]] * (1 - FLOAT64_RELATIVE)).all()


def test_the_formula():
    torch.manual_seed(0)
    s = 1e-4 * torch.randn(100, dtype=torch.float64)
    for tau, given_tau in ((s.numpy().std(), None), (0.5, 0.5), (1.0, 1)):
        e = np.exp(s.numpy() / tau)
        assert_relative(reweight(s, temperature=given_tau), torch.from_numpy(100 * e / e.sum()), FLOAT64_RELATIVE)


def test_the_scale_of_the_scores_has_no_effect():
    s = torch.randn(50, dtype=torch.float64)
    assert_relative(reweight(1e5 * s + 3), reweight(s), FLOAT64_RELATIVE)


@pytest.mark.parametrize("scale", [2.0**1023, 2.0**-700, 2.0**-1060])
def test_scores_at_the_ends_of_the_range_have_the_weights_of_others(scale):
    """Their differences, or the squares of these, are no numbers of float64."""
    s = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    assert torch.equal(reweight(s * scale), reweight(s))
    assert torch.equal(reweight(s * scale, temperature=scale, clip=2.0), reweight(s, temperature=1.0, clip=2.0))
    assert reweight(s * 2.0**1023, temperature=5e-324).tolist() == [4, 0, 0, 0]


def test_what_the_clip_cuts_off_goes_to_the_others_in_proportion():
    s = torch.tensor([0.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    free, clipped = reweight(s, temperature=1.0), reweight(s, temperature=1.0, clip=2.5)
    assert float(clipped[3]) == 2.5
    assert_relative(clipped[:3] / clipped[0], free[:3] / free[0], FLOAT64_RELATIVE)
    assert torch.equal(reweight(s, temperature=1.0, clip=4.0), free)


def test_weights_that_vanish_share_what_is_left():
    w = reweight([0.0, 0.0, 1e6], temperature=1.0, clip=2.0)
    assert_relative(w, torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64), FLOAT64_RELATIVE)


def test_numbers_may_be_those_of_numpy():
    expected = reweight([0.0, 1.0, 5.0], temperature=0.5, clip=2).tolist()
    assert reweight([0.0, 1.0, 5.0], temperature=np.float32(0.5), clip=np.int64(2)).tolist() == expected


def test_equal_scores_have_equal_weights():
    assert reweight([0.1] * 7).tolist() == [1.0] * 7
    assert reweight(torch.zeros(0)).tolist() == []
    several = ipfast.Scores(torch.tensor([[1.0, 0], [1, 5]]), "ip", "head", "cpp", queries=("a", "b"))
    assert reweight(several, query="a").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ipfast.InputError, "expected temperature to be finite and positive; got 0"),
        ({"temperature": -1}, ipfast.InputError, "expected temperature to be finite and positive; got -1"),
        ({"temperature": float("nan")}, ipfast.InputError, "expected temperature to be finite"),
        ({"temperature": "std"}, ipfast.InputTypeError, "expected temperature to be a number; got str"),
        ({"clip": 0.5}, ipfast.InputError, "expected clip to be finite and 1 or more.*; got 0.5"),
        ({"clip": True}, ipfast.InputTypeError, "expected clip to be a number; got bool"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=f"reweight: {message}"):
        reweight([1.0, 2.0], **options)
