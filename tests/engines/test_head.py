"""The head engine's cuts: the same row always meets the same arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import linear_problem
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch.utils.data import TensorDataset

from ipfast import ops
from ipfast.data import open_source
from ipfast.engines import HeadEngine, find_last_layer
from ipfast.engines.head import BLOCK_BYTES, _collect, block_rows
from ipfast.losses import get_loss


@given(st.integers(1, 10**7))
def test_blocks_are_multiples_of_the_references_own_and_bounded(width):
    rows = block_rows(width)
    assert rows % ops.BLOCK_ROWS == 0
    assert rows == ops.BLOCK_ROWS or rows * width * torch.float32.itemsize <= BLOCK_BYTES


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_collect_cuts_any_batches_at_the_same_rows(batches, size):
    rows = sum(batches)
    h, y = torch.arange(2.0 * rows).reshape(rows, 2), torch.arange(rows)
    stream = zip(h.split(batches), y.split(batches), strict=True) if rows else iter(())
    found = [(start, part.clone(), labels.clone()) for start, part, labels in _collect(stream, size)]
    assert [start for start, _, _ in found] == list(range(0, rows, size))
    if rows:
        assert torch.equal(torch.cat([part for _, part, _ in found]), h)
        assert torch.equal(torch.cat([labels for _, _, labels in found]), y)


def engine(problem, loss="cross_entropy", **options):
    last = find_last_layer("f", problem.model)
    given = {"backend": "auto", "include_bias": True, "batch_size": 4, "device": None, **options}
    return HeadEngine("f", last, get_loss("f", loss), **given)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", "mse"])
def test_logits_and_losses_are_the_models(loss):
    problem = linear_problem(loss)
    made = engine(problem, loss)
    assert_relative(made.logits(problem.x), problem.model(problem.x), FLOAT64_RELATIVE)
    truth = get_loss("f", loss).value(problem.model(problem.x), problem.y)
    assert_relative(made.loss_values(problem.x, problem.y), truth, FLOAT64_RELATIVE)


def test_the_bias_is_scored_only_where_there_is_one():
    problem = linear_problem()
    problem.head.bias = None
    assert not engine(problem).include_bias


def test_norm_is_the_dot_with_the_samples_own_gradient():
    problem = linear_problem()
    made = engine(problem)
    h, y = problem.x[:1], problem.y[:1]
    r = made.loss.residual(made.logits(h), y)
    assert_relative(made.dot(h, y, r.T @ h, r[0]), made.norm(h, y), FLOAT64_RELATIVE)


def test_blocks_carry_their_first_row():
    problem = linear_problem()
    made = engine(problem)
    source = open_source("f", "train", TensorDataset(*problem.train), batch_size=4)
    ((start, h, y),) = made.blocks("train", source)
    assert start == 0
    assert torch.equal(h, problem.x)
    assert torch.equal(y, problem.y)
