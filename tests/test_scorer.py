"""Scorer: one batch at a time, in any process."""

import copy
import pickle

import pytest
import torch
from problems import ROWS, ScoringCollate, linear_problem, network_problem
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch.utils.data import DataLoader, TensorDataset

import ipfast


@pytest.mark.parametrize("method", ["ip", "self_tracin", "loss"])
@pytest.mark.parametrize("make", [linear_problem, network_problem])
def test_batches_get_the_scores_of_the_whole(make, method):
    problem = make()
    val = problem.val if method == "ip" else None
    scorer = ipfast.Scorer(problem.model, ipfast.query(problem.model, val, method=method, train=problem.train))
    pieces = [scorer((problem.x[i : i + 4], problem.y[i : i + 4])) for i in range(0, ROWS, 4)]
    whole = ipfast.score(problem.model, problem.train, val, method=method).values
    assert_relative(torch.cat(pieces), whole, BATCH_RELATIVE)


def test_a_query_of_the_network_scores_stored_features():
    problem = network_problem()
    seen = []
    handle = problem.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    problem.model(problem.x)
    handle.remove()
    scorer = ipfast.Scorer(problem.head, ipfast.query(problem.model, problem.val))
    whole = ipfast.score(problem.model, problem.train, problem.val).values
    assert_relative(scorer((seen[0], problem.y)), whole, FLOAT64_RELATIVE)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scorer: pickle.loads(pickle.dumps(scorer))])
def test_a_copy_gives_the_same_bits(copied):
    problem = network_problem()
    scorer = ipfast.Scorer(problem.model, ipfast.query(problem.model, problem.val))
    assert torch.equal(copied(scorer)(problem.train), scorer(problem.train))


@pytest.mark.parametrize(("make", "start"), [(linear_problem, "fork"), (network_problem, "fork"), (network_problem, "spawn")])
def test_workers_of_a_loader_score(make, start):
    """Also after this process has scored, whose threads a forked worker does not have."""
    problem = make()
    whole = ipfast.score(problem.model, problem.train, problem.val).values
    scorer = ipfast.Scorer(problem.model, ipfast.query(problem.model, problem.val))
    loader = DataLoader(
        TensorDataset(*problem.train),
        batch_size=8,
        num_workers=2,
        collate_fn=ScoringCollate(scorer),
        multiprocessing_context=start,
        timeout=60,
    )
    assert_relative(torch.cat(list(loader)), whole, BATCH_RELATIVE)


def test_what_does_not_fit_is_refused():
    problem = linear_problem()
    query = ipfast.query(problem.model, problem.val)
    scorer = ipfast.Scorer(problem.model, query)
    with pytest.raises(ipfast.InputTypeError, match=r"expected query to be made by ipfast.query; got tuple"):
        ipfast.Scorer(problem.model, problem.val)
    with pytest.raises(ipfast.InputError, match=r"expected features of shape \[N, 12\] for this head; got \[29, 11\]"):
        scorer((problem.x[:, 1:], problem.y))
    with pytest.raises(ipfast.InputError, match=r"Scorer, batch: expected labels in 0\.\.4"):
        scorer((problem.x, problem.y + 5))
    with pytest.raises(
        ipfast.InputTypeError, match=r"expected batches of batch to be tuples \(inputs, labels\) or dictionaries; got Tensor"
    ):
        scorer(problem.x)
    with pytest.raises(ipfast.InputError, match=r"expected a query for a head of weight \[2, 3\]"):
        ipfast.Scorer(torch.nn.Linear(3, 2), query)
    with pytest.raises(ipfast.InputError, match="Did you mean 'cpp'"):
        ipfast.Scorer(problem.model, query, backend="cp")
    x = problem.x.clone()
    x[2, 1] = torch.nan
    with pytest.raises(ipfast.NonFiniteError, match="Scorer: expected finite batch features; got nan at row 2, column 1"):
        scorer((x, problem.y))


def test_a_model_in_train_mode_is_refused():
    problem = network_problem()
    query = ipfast.query(problem.model, problem.val)
    with pytest.raises(ipfast.InputError, match=r"Call model\.eval\(\)"):
        ipfast.Scorer(problem.model.train(), query)
