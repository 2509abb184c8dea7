"""precision="bf16" through score, Scorer, query and the command line, and what it costs on real features."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from cases import LOSSES, HeadCase
from problems import linear_problem, network_problem
from tolerances import (
    AUTOCAST_RELATIVE,
    BATCH_RELATIVE,
    BF16_LOWEST_SHARE,
    BF16_SPEARMAN,
    FLOAT32_RELATIVE,
    assert_relative,
    assert_relative_to_largest,
    assert_same_rounding,
)
from torch import Tensor
from typer.testing import CliRunner

import ipfast
from ipfast.cli import app
from ipfast.data import cifar as files
from ipfast.demo import cifar
from ipfast.engines import ensemble

WIDE = HeadCase("wide", 67, 61, 7)


def nearest(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).double()


def single(loss: str = "cross_entropy", case: HeadCase = WIDE):
    return linear_problem(loss, torch.float32, case)


def truth(problem, query, loss="cross_entropy", weight=None, term=0) -> Tensor:
    """The scores at the rounded features, weight and query."""
    w, b, dot = problem.head.weight.detach() if weight is None else weight, problem.head.bias.detach(), query.terms[term]
    return oracles.head_dot(nearest(problem.x), problem.y, nearest(w), b, nearest(dot.gradient), dot.bias_gradient, loss)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_score_rounds_features_weight_and_query(loss, dtype, backend):
    problem = single(loss)
    problem = replace(problem, x=problem.x.to(dtype))
    query = ipfast.query(problem.model, problem.val, loss=loss, precision="bf16")
    assert torch.equal(query.terms[0].gradient, ipfast.query(problem.model, problem.val, loss=loss).terms[0].gradient)
    options = {"loss": loss, "backend": backend, "precision": "bf16"}
    got = ipfast.score(problem.model, (problem.x, problem.y), problem.val, **options)
    assert got.values.dtype == torch.float32
    assert got.stats["precision"] == "bf16"
    expected = truth(problem, query, loss)
    assert_relative(got.values, expected, FLOAT32_RELATIVE)
    assert "precision" not in ipfast.score(problem.model, (problem.x, problem.y), problem.val, loss=loss).stats


def test_self_influence_is_rounded_too():
    problem = single()
    got = ipfast.score(problem.model, problem.train, method="self_tracin", precision="bf16").values
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    assert_relative(got, -oracles.head_norm(nearest(problem.x), problem.y, nearest(w), b, "cross_entropy"), FLOAT32_RELATIVE)


@pytest.mark.parametrize("route", ["sparse", "dense"])
def test_every_member_of_an_ensemble_is_rounded(route, monkeypatch):
    monkeypatch.setattr(
        "ipfast.groups.head.select_ensemble", lambda **_: ensemble.EnsembleChoice(route, "asked for by the test")
    )
    problem = single()
    method = ipfast.Method(points=ipfast.Dropout(3, 0.1))
    query = ipfast.query(problem.model, problem.val, method=method)
    got = ipfast.score(problem.model, problem.train, query, precision="bf16", keep_members=True)
    assert got.stats["ensemble"] == route
    for member in range(3):
        w = problem.head.weight.detach() * (1 / 0.9)
        w.view(-1)[ipfast.dropout_mask("weight", w.shape, 0.1, 0, member)] = 0
        assert_relative(got.members[:, member], truth(problem, query, weight=w, term=member), FLOAT32_RELATIVE)


def test_the_route_of_an_ensemble_knows_the_precision(monkeypatch):
    seen = []

    def recorded(**options):
        seen.append(options["precision"])
        return ensemble.select_ensemble(**options)

    monkeypatch.setattr("ipfast.groups.head.select_ensemble", recorded)
    problem = single()
    for precision in (None, "bf16"):
        ipfast.score(problem.model, problem.train, problem.val, method="ip_ensemble", precision=precision)
    assert seen == [None, "bf16"]


@pytest.mark.parametrize("make", [single, lambda: network_problem(torch.float32)])
def test_a_scorer_rounds_as_score_does(make):
    problem = make()
    query = ipfast.query(problem.model, problem.val)
    scorer = pickle.loads(pickle.dumps(ipfast.Scorer(problem.model, query, precision="bf16")))
    whole, exact = (ipfast.score(problem.model, problem.train, query, precision=p).values for p in ("bf16", None))
    pieces = [scorer((problem.x[i : i + 4], problem.y[i : i + 4])) for i in range(0, len(problem.y), 4)]
    assert_relative(torch.cat(pieces), whole, BATCH_RELATIVE)
    assert not torch.equal(whole, exact)


def test_the_command_line_has_it(tmp_path):
    problem = single()
    head = {"weight": problem.head.weight.detach().numpy(), "bias": problem.head.bias.detach().numpy()}
    np.savez(tmp_path / "head.npz", **head)
    for name, x, y in (("train", problem.x, problem.y), ("val", problem.x_val, problem.y_val)):
        np.savez(tmp_path / f"{name}.npz", features=x.numpy(), labels=y.numpy())
    parts = [f"--{name}={tmp_path / f'{name}.npz'}" for name in ("head", "train", "val")]
    done = CliRunner().invoke(app, ["score", *parts, "--precision", "bf16", "--out", str(tmp_path / "s.npy")])
    assert done.exit_code == 0, done.output
    expected = ipfast.score(problem.model, problem.train, problem.val, precision="bf16").values
    assert_same_rounding(torch.from_numpy(np.load(tmp_path / "s.npy")), expected)
    assert CliRunner().invoke(app, ["score", *parts, "--precision", "bf17"]).exit_code == 2


def test_what_cannot_be_rounded_is_refused_before_any_work():
    problem, wide = single(), linear_problem()
    query = ipfast.query(problem.model, problem.val)
    with pytest.raises(ipfast.InputTypeError, match=r"score: expected float32, .* got float64\. Leave precision out"):
        ipfast.score(wide.model, wide.train, wide.val, precision="bf16")
    for call in (
        lambda: ipfast.score(problem.model, problem.train, problem.val, precision="half"),
        lambda: ipfast.query(problem.model, problem.val, precision="half"),
        lambda: ipfast.Scorer(problem.model, query, precision="half"),
    ):
        with pytest.raises(ipfast.InputError, match=r"expected precision to be 'bf16' or None.*; got 'half'"):
            call()
    with pytest.raises(ipfast.InputError, match="score: expected no precision with aggregate=False"):
        ipfast.score(problem.model, problem.train, problem.val, aggregate=False, precision="bf16")


def test_networks_run_under_autocast_and_agree_with_float32():
    network = network_problem(torch.float32)
    for method in ("ip", "self_tracin"):
        val = network.val if method == "ip" else None
        full = ipfast.score(network.model, network.train, val, method=method, params="all", progress=False).values
        for engine in ("forward", "ghost")[method != "ip" :]:
            got = ipfast.score(
                network.model, network.train, val, method=method, params="all", engine=engine, precision="bf16", progress=False
            )
            assert_relative_to_largest(got.values, full, AUTOCAST_RELATIVE)
            assert not torch.equal(got.values, full)
            assert got.values.dtype == torch.float32
    with pytest.raises(ipfast.InputTypeError, match="expected a model in float32"):
        ipfast.score(network.model.double(), network.train, network.val, params="all", precision="bf16")


def test_sequences_are_rounded_token_by_token_and_their_norms_refused():
    problem = single(case=HeadCase("tokens", 60, 61, 7))
    h, y = problem.x.view(12, 5, -1), problem.y.view(12, 5)
    query = ipfast.query(problem.model, (h, y))
    got = ipfast.score(problem.model, (h, y), query, precision="bf16").values
    each = oracles.head_dot(
        nearest(problem.x), problem.y, nearest(problem.head.weight.detach()), problem.head.bias.detach(),
        nearest(query.terms[0].gradient), query.terms[0].bias_gradient, "cross_entropy",
    )  # fmt: skip
    assert_relative(got, each.view(12, 5).mean(dim=1), FLOAT32_RELATIVE)
    with pytest.raises(ipfast.InputError, match="score: expected no precision with the self-influence of sequences"):
        ipfast.score(problem.model, (h, y), method="self_tracin", precision="bf16")


def ranks(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort().double()


@pytest.mark.data
@pytest.mark.skipif("IPFAST_DATA" not in os.environ, reason="IPFAST_DATA does not name the folder of the data sets")
@pytest.mark.parametrize("method", ["ip", "ip_ensemble"])
def test_real_features_are_ranked_as_in_float64(real_features, method):
    """CIFAR-10N, features of a network trained on the human labels, against a float64 run."""
    head, (h, y), val = real_features
    exact = ipfast.score(head, (h.double(), y), (val[0].double(), val[1]), method=method).values
    for dtype in (torch.float32, torch.bfloat16):
        got = ipfast.score(head, (h.to(dtype), y), val, method=method, precision="bf16").values
        spearman = float(torch.corrcoef(torch.stack([ranks(exact), ranks(got)]))[0, 1])
        assert spearman >= BF16_SPEARMAN, f"{method}, {dtype}: Spearman {spearman:.5f}"
        lowest = int(0.05 * len(exact))
        common = len(set(exact.argsort()[:lowest].tolist()) & set(got.argsort()[:lowest].tolist())) / lowest
        assert common >= BF16_LOWEST_SHARE, f"{method}, {dtype}: {common:.1%} of the lowest 5 % in common"


@pytest.fixture(scope="module")
def real_features():
    images, _, test_images, test_labels, noisy = files.read_cifar(
        "test", Path(os.environ["IPFAST_DATA"]), files.CIFAR10, "worse"
    )
    recipe = replace(cifar.SMALL, epochs=2)
    network = cifar.train_network(images[:2000], noisy[:2000], recipe, classes=10, seed=0, device=torch.device("cpu"))
    h, h_val = (torch.from_numpy(cifar.extract(network, x)) for x in (images[:6000], test_images[:1000]))
    return network[-1], (h, torch.from_numpy(noisy[:6000])), (h_val, torch.from_numpy(test_labels[:1000]))
