"""Every tolerance of the test suite, and the one rule they come from.

    |kernel − truth| ≤ 2·|same-dtype reference − truth| + SLACK·eps·Σ|x||y|

truth is computed in float64 by an oracle of tests/oracles.py; the same-dtype reference is plain torch; Σ|x||y| is the sum of
the absolute values of what is added up, so that the rule allows the rounding of the sums and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 2.0
FLOAT64_RELATIVE = 1e-10
"""Largest relative error of a float64 computation against per-sample autograd in float64."""
FLOAT32_RELATIVE = 1e-4
"""The same of a float32 computation, whose scores may be small beside the terms they are the sum of."""
DIFFERENCE_RELATIVE = 1e-4
"""The same of a derivative against a central difference of step 1e-3, whose own error is of the second order."""
CONFIDENT_RELATIVE = 1e-4
"""Largest relative error on a sample whose own class has probability 1 − 1e-8."""
BF16_CONFIDENT_RELATIVE = 0.1
"""The same where features and weights are rounded to bfloat16: a logit of 20 moves by a few hundredths, and e^z with it."""
BF16_SPEARMAN = 0.999
"""Smallest rank correlation of bf16 scores with float64 on real data."""
BF16_LOWEST_SHARE = 0.97
"""Smallest share of the lowest 5 % of the scores that bf16 has in common with float64."""
BATCH_RELATIVE = 1e-6
"""Largest relative difference between batch sizes."""
AUTOCAST_RELATIVE = 0.05
"""Largest difference between a network's scores under bf16 autocast and in float32, of the largest score: eight bits, through
a few layers forward and backward."""
SOLVE_RELATIVE = 1e-8
"""Largest relative error of a float64 solve against dense linear algebra."""
UNROLLED_RELATIVE = 0.01
"""Largest difference between a training run that is unrolled step by step and SOURCE's segments, of the largest score."""
TRAINED_RELATIVE = 0.01
"""Largest error of what training in float32 without a sample changes, of the largest change: rounding, through every step."""
MASK_P_VALUE = 1e-4
"""Smallest p-value of a test of the distribution of masks, or of draws. Both are reproducible, so a test that passes goes on
passing."""
MAPPED_MEMORY = 150 * 2**20
"""Bytes by which scoring a memory-mapped file may raise the peak resident memory, whatever the file's size."""
VECTORS_MEMORY = 400 * 2**20
"""Bytes by which a curvature of a million parameters may raise the peak resident memory: vectors of them in float64, the
activations of a batch with their derivatives, the patches of a few samples."""
PEER_SPEARMAN = 0.999
"""Smallest rank correlation of scores with those of another library that computes the same."""


def assert_within_rule(kernel: Tensor, truth: Tensor, reference: Tensor, magnitude: Tensor, eps: float) -> None:
    """Assert the rule elementwise; the message names the worst element."""
    kernel, truth, reference, magnitude = (t.detach().cpu().double() for t in (kernel, truth, reference, magnitude))
    allowed = 2 * (reference - truth).abs() + SLACK * eps * magnitude
    error = (kernel - truth).abs()
    excess = torch.where(torch.isfinite(kernel), error - allowed, torch.full_like(error, torch.inf))
    worst = int(excess.argmax())
    assert excess[worst] <= 0, (
        f"element {worst}: kernel {kernel[worst]:.9g}, truth {truth[worst]:.9g}, reference {reference[worst]:.9g}; "
        f"error {error[worst]:.3g} exceeds {allowed[worst]:.3g}"
    )


def assert_relative(got: Tensor, truth: Tensor, relative: float) -> None:
    """Assert |got − truth| ≤ relative·|truth| elementwise, with the mean magnitude as a floor where truth is nearly zero."""
    assert got.shape == truth.shape, f"shape {list(got.shape)}, expected {list(truth.shape)}"
    got, truth = got.detach().cpu().double().flatten(), truth.detach().cpu().double().flatten()
    floor = 1e-3 * truth.abs().mean()
    error = torch.where(got == truth, 0, (got - truth).abs() / torch.maximum(truth.abs(), floor))
    worst = int(error.argmax())
    assert error[worst] <= relative, (
        f"element {worst}: got {got[worst]:.17g}, truth {truth[worst]:.17g}, relative {error[worst]:.3g}"
    )


def assert_same_rounding(got: Tensor, plain: Tensor) -> None:
    """Assert that two runs of one fp32 computation differ by no more than the order of its sums explains."""
    error = (got.double() - plain.double()).abs().max()
    assert error <= BATCH_RELATIVE * plain.double().abs().max(), f"largest difference {error:.3g}"


def assert_relative_to_largest(got: Tensor, truth: Tensor, relative: float) -> None:
    """Assert |got − truth| ≤ relative·max|truth|."""
    error = (got.double() - truth.double()).abs().max() / truth.double().abs().max()
    assert error <= relative, f"largest difference {error:.3g} of the largest value"
