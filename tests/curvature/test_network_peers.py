"""Other people's code, where it computes the same: kronfluence's EKFAC, curvlinops' products."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from tolerances import FLOAT64_RELATIVE, PEER_SPEARMAN, SOLVE_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.data import TensorDataset

import ipfast
from ipfast import EKFAC, Method

KINDS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4, 4)
    ),
}


def problem(kind):
    """(model, train, val)"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS[kind]().double().eval()
        x, y = torch.randn(70, *((6,) if kind == "linear" else (2, 8, 8)), dtype=torch.float64), torch.randint(0, 4, (70,))
    return model, (x[:50], y[:50]), (x[50:], y[50:])


def spearman(one, other):
    ranks = torch.stack([one.argsort().argsort().double(), other.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


def kronfluence_scores(model, train, val, folder, damping):
    """Their "ekfac" with the labels of the data and every sum in float64, of the summed query gradient: [N].

    Theirs is ⟨∇ℓ_V, H⁻¹ ∇ℓ_i⟩ with the sum over V where ours has the mean, and without a sign: large is a sample that lowers
    the validation loss, as ours is positive then. H is of mean second moments in both.
    """
    import logging

    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Losses(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = Losses()
    analyzer = Analyzer(
        "peer", prepare_model(model, task), task, cpu=True, disable_tqdm=True, log_level=logging.ERROR, output_dir=str(folder)
    )
    factors = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        activation_covariance_dtype=torch.float64,
        gradient_covariance_dtype=torch.float64,
        eigendecomposition_dtype=torch.float64,
        lambda_dtype=torch.float64,
        per_sample_gradient_dtype=torch.float64,
    )
    arguments = ScoreArguments(
        damping_factor=damping,
        aggregate_query_gradients=True,
        query_gradient_svd_dtype=torch.float64,
        precondition_dtype=torch.float64,
        score_dtype=torch.float64,
        per_sample_gradient_dtype=torch.float64,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its use of torch
        analyzer.fit_all_factors("f", TensorDataset(*train), per_device_batch_size=16, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "s",
            "f",
            TensorDataset(*val),
            TensorDataset(*train),
            per_device_query_batch_size=8,
            per_device_train_batch_size=16,
            score_args=arguments,
        )
    return analyzer.load_pairwise_scores("s")["all_modules"][0].double() / len(val[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [None, 1e-3])
def test_ekfac_is_that_of_kronfluence(kind, damping, tmp_path):
    pytest.importorskip("kronfluence")
    model, train, val = problem(kind)
    scores = ipfast.score(
        model,
        train,
        val,
        method=Method(curvature=EKFAC(empirical=True, damping=damping)),
        params="all",
        progress=False,
    )
    theirs = kronfluence_scores(model, train, val, tmp_path, damping)
    assert spearman(scores.values, theirs) >= PEER_SPEARMAN
    assert_relative_to_largest(theirs, scores.values, SOLVE_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ggn", [False, True])
def test_products_are_those_of_curvlinops(kind, ggn):
    curvlinops = pytest.importorskip("curvlinops")
    from functools import partial

    from ipfast.curvature import NetworkProblem
    from ipfast.data import open_source
    from ipfast.engines.network import Network
    from ipfast.groups import NetworkJob
    from ipfast.losses import CrossEntropy

    model, train, _ = problem(kind)
    network = Network("test", model, CrossEntropy())
    job = NetworkJob("test", network, engine="auto", batch_size=16)
    mine = NetworkProblem(network, partial(job.blocks, "train", open_source("test", "train", train, batch_size=16)), {})
    v = torch.randn(mine.size, dtype=torch.float64)
    kind_of = curvlinops.GGNLinearOperator if ggn else curvlinops.HessianLinearOperator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = kind_of(model, nn.CrossEntropyLoss(), list(model.parameters()), [train]) @ v
    assert_relative_to_largest(mine.hessian(v[None], ggn=ggn)[0], theirs.detach(), FLOAT64_RELATIVE)
