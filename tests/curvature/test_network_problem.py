"""The problem of a whole network against matrices that autograd makes in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dense_networks import Dense, small
from networks import assert_unchanged, snapshot
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, SOLVE_RELATIVE, assert_relative, assert_relative_to_largest
from torch import nn

import ipfast
from ipfast.curvature import HeadProblem, NetworkProblem, TrainRows
from ipfast.curvature.base import Basis
from ipfast.curvature.sampled import sampled_cotangents
from ipfast.data import open_source
from ipfast.engines import HeadEngine, find_last_layer
from ipfast.engines.network import Network
from ipfast.errors import InputError, InputTypeError, UnavailableError
from ipfast.groups import NetworkJob
from ipfast.losses import MSE, BCEWithLogits, CrossEntropy

KINDS = ["mlp", "conv", "tokens"]


def problem_of(model, x, y, *, size=7, loss=None, params="all", tokens="mean"):
    network = Network("test", model, loss or CrossEntropy(), params=params, tokens=tokens)
    job = NetworkJob("test", network, engine="auto", batch_size=size)
    return NetworkProblem(network, partial(job.blocks, "train", open_source("test", "train", (x, y), batch_size=size)), {})


def vectors(problem, count=3):
    return torch.randn(count, problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_is_the_difference_of_gradients(kind):
    model, x, y = small(kind)
    dense = Dense(model)
    truth, step = dense.hessian(x, y), 1e-5
    for index in range(0, len(dense.theta), 25):
        unit = torch.zeros_like(dense.theta)
        unit[index] = step
        ends = [Dense(model) for _ in range(2)]
        ends[0].theta, ends[1].theta = dense.theta + unit, dense.theta - unit
        upper, lower = (end.gradients(x, y).mean(dim=0) for end in ends)
        assert_relative_to_largest((upper - lower) / (2 * step), truth[index], BATCH_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ggn", [False, True])
def test_products_are_those_of_the_dense_matrix(kind, ggn):
    model, x, y = small(kind)
    before, dense = snapshot(model), Dense(model)
    problem = problem_of(model, x, y)
    truth = dense.gauss_newton(x, y) if ggn else dense.hessian(x, y)
    v = vectors(problem)
    assert_relative_to_largest(problem.hessian(v, ggn=ggn), v @ truth, FLOAT64_RELATIVE)
    assert_relative_to_largest(problem.dense(ggn=ggn), truth, FLOAT64_RELATIVE)
    assert_unchanged(model, before)
    assert [(part.name, part.place) for part in problem.parts] == list(dense.parts().items())
    assert problem.samples == len(y)


def test_the_trace_is_exact_for_few_parameters_and_estimated_for_more(monkeypatch):
    model, x, y = small("mlp")
    problem, truth = problem_of(model, x, y), Dense(model).hessian(x, y)
    assert problem.size <= 64
    assert problem.trace() == pytest.approx(float(truth.trace()), rel=SOLVE_RELATIVE)
    monkeypatch.setattr("ipfast.curvature.network_problem.EXACT_TRACE", 0)
    calls = []
    product = problem.hessian
    problem.hessian = lambda v, **options: calls.append(len(v)) or product(v, **options)
    estimate = problem.trace()
    # Three standard errors, at which the estimate stops, of signs: Var zᵀHz = 2 Σ_{j≠k} H_jk².
    spread = float((2 * (truth - truth.diagonal().diag()).square().sum() / len(calls)).sqrt())
    assert 8 <= len(calls) <= 64
    assert abs(estimate - float(truth.trace())) < 3 * spread
    assert estimate == problem_of(model, x, y).trace()


@pytest.mark.parametrize("loss", [BCEWithLogits(), MSE()], ids=["bce", "mse"])
def test_gauss_newton_products_of_other_losses(loss):
    model, x, _ = small("mlp")
    y = torch.rand(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    function = F.mse_loss if isinstance(loss, MSE) else F.binary_cross_entropy_with_logits
    dense = Dense(model, lambda z, y: function(z, y, reduction="none").sum(1) / (3 if isinstance(loss, MSE) else 1))
    v = vectors(problem := problem_of(model, x, y, loss=loss))
    assert_relative_to_largest(problem.hessian(v, ggn=True), v @ dense.gauss_newton(x, y), FLOAT64_RELATIVE)
    assert_relative_to_largest(problem.hessian(v), v @ dense.hessian(x, y), FLOAT64_RELATIVE)


class PerToken(nn.Module):
    """Logits for each token."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.inner(self.embed(tokens))))


def token_problem():
    torch.manual_seed(2)
    model, x, y = PerToken().double().eval(), torch.randint(0, 7, (6, 5)), torch.randint(0, 3, (6, 5))
    y[0, 2:] = y[1] = y[4, 0] = -100
    return model, x, y


@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("ggn", [False, True])
def test_sequences_of_tokens(tokens, ggn):
    model, x, y = token_problem()

    def losses(z, y):
        each = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none", ignore_index=-100).view(y.shape)
        return each.sum(1) / ((y != -100).sum(1).clamp(min=1) if tokens == "mean" else 1)

    dense, counted = Dense(model, losses), (y != -100).any(1)
    problem = problem_of(model, x, y, size=4, tokens=tokens)
    v = vectors(problem)
    if ggn:  # each token's logits by themselves
        truth = torch.zeros(problem.size, problem.size, dtype=torch.float64)
        for i, t in (y != -100).nonzero().tolist():
            share = 1 / int((y[i] != -100).sum()) if tokens == "mean" else 1
            one = Dense(model, lambda z, y: F.cross_entropy(z[:, 0], y[:, 0], reduction="none"))
            jacobian = torch.autograd.functional.jacobian(lambda p, i=i, t=t: dense.logits(p, x[i : i + 1])[0, t], dense.theta)
            p = one.logits(one.theta, x[i : i + 1])[0, t].softmax(0)
            truth += share * jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        truth /= int(counted.sum())
    else:
        truth = dense.hessian(x[counted], y[counted])
    assert_relative_to_largest(problem.hessian(v, ggn=ggn), v @ truth, FLOAT64_RELATIVE)
    assert problem.samples == int(counted.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_parameter_are_those_of_a_loop(kind):
    model, x, y = small(kind)
    dense, problem = Dense(model), problem_of(model, x, y)
    truth, v = dense.gradients(x, y), vectors(problem)
    places = list(dense.parts().values())
    c = torch.randn(len(y), len(v), len(places), dtype=torch.float64)
    dots, squares, written, weighted = [], [], [], torch.zeros_like(v)
    start = 0
    for block in problem.gradients():
        dots.append(block.dots(v))
        squares.append(block.squares())
        written += list(block.dense())
        weighted += block.weighted(c[start : start + block.count])
        start += block.count
    expected = torch.stack([truth[:, place] @ v[:, place].T for place in places], dim=2)
    assert_relative(torch.cat(dots), expected, FLOAT64_RELATIVE)
    norms = torch.stack([truth[:, place].square().sum(dim=1) for place in places], dim=1)
    assert_relative(torch.cat(squares), norms, FLOAT64_RELATIVE)
    assert_relative(torch.cat(written), truth, FLOAT64_RELATIVE)
    sums = torch.cat([torch.einsum("nq,np->qp", c[:, :, i], truth[:, place]) for i, place in enumerate(places)], dim=1)
    assert_relative(weighted, sums, FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_without_a_rule_go_a_few_samples_at_a_time(kind, monkeypatch):
    """All parameters as if no layer were known, and then one sample at once."""
    monkeypatch.setattr("ipfast.engines.layer_plan.layer_rule", lambda module: None)
    monkeypatch.setattr("ipfast.curvature.network_gradients.DENSE_BYTES", 1)
    test_gradients_by_parameter_are_those_of_a_loop(kind)


def test_positions_of_a_layer_that_is_called_several_times_are_joined(monkeypatch):
    monkeypatch.setattr("ipfast.curvature.layer_gradients.JOINED_SAMPLES", 3)
    monkeypatch.setattr("ipfast.curvature.kronecker_layers.ROTATED_ELEMENTS", 1)
    monkeypatch.setattr("ipfast.curvature.layer_gradients.FORMED_ELEMENTS", 1)
    test_gradients_by_parameter_are_those_of_a_loop("tokens")
    test_moments_in_a_rotated_basis_are_those_of_written_gradients("tokens")
    test_moments_in_a_rotated_basis_are_those_of_written_gradients("conv")


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_are_those_of_inputs_and_cotangents(kind):
    model, x, y = small(kind)
    dense, problem = Dense(model), problem_of(model, x, y)
    found = problem.covariances(empirical=True, seed=0)
    matrices = dense.matrices()
    assert len(found) == len(matrices) == len(problem.layers)
    for (outputs, inputs), (module, places, group, groups) in zip(found, matrices, strict=True):
        a, b = (value.chunk(groups, dim=2)[group] for value in dense.layer_positions(module, x, y))
        if places.shape[1] > a.shape[2]:
            a = torch.cat([a, torch.ones_like(a[:, :, :1])], dim=2)
        assert_relative_to_largest(outputs, torch.einsum("nti,ntj->ij", b, b) / len(y), FLOAT64_RELATIVE)
        assert_relative_to_largest(inputs, torch.einsum("nti,ntj->ij", a, a) / len(y), FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_in_a_rotated_basis_are_those_of_written_gradients(kind):
    model, x, y = small(kind)
    dense, problem = Dense(model), problem_of(model, x, y)
    truth, matrices = dense.gradients(x, y), dense.matrices()
    generator = torch.Generator().manual_seed(5)

    def rotation(size):
        return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q

    bases = [Basis(rotation(places.shape[0]), rotation(places.shape[1])) for _, places, _, _ in matrices]
    moments = problem.second_moments(bases, empirical=True, seed=0)
    rest = problem.rest_moments(empirical=True, seed=0)
    loose = torch.ones(problem.size, dtype=torch.bool)
    block = problem.block(x, y)
    for index, ((_, places, _, _), basis) in enumerate(zip(matrices, bases, strict=True)):
        squares = (basis.output.T @ truth[:, places] @ basis.input).square()
        assert_relative(moments[index], squares.mean(dim=0), FLOAT64_RELATIVE)
        scale = torch.rand(places.shape, dtype=torch.float64, generator=generator)
        assert_relative(block.rotated(index, basis, scale), (squares * scale).sum(dim=(1, 2)), FLOAT64_RELATIVE)
        loose[places] = False
    assert bool(loose.any()), "a parameter must belong to no layer, or nothing is left for the rest"
    assert_relative(rest, truth.square().mean(dim=0) * loose, FLOAT64_RELATIVE)
    scale = torch.rand(problem.size, dtype=torch.float64, generator=generator) * loose
    assert_relative(block.scaled_squares(scale), truth.square() @ scale, FLOAT64_RELATIVE)
    again = problem_of(model, x, y).rest_moments(empirical=True, seed=0)  # by a pass of its own
    assert_relative(again, rest, FLOAT64_RELATIVE)


def test_a_matrix_in_the_transposed_layout_is_a_layer():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    turned = nn.Sequential(conv1d(5, 4), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        turned[0].weight.copy_(plain[0].weight.T)
        turned[0].bias.copy_(plain[0].bias)
        turned[2].load_state_dict(plain[2].state_dict())
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    for method in ("ekfac", "datainf", "self_ekfac"):
        val = None if method == "self_ekfac" else (x[:6], y[:6])
        found = [
            ipfast.score(m, (x, y), val, method=method, params="all", progress=False, check=False) for m in (plain, turned)
        ]
        assert_relative(found[1].values, found[0].values, SOLVE_RELATIVE)


def test_a_linear_network_is_a_head():
    model, x, y = small("linear")
    problem = problem_of(model, x, y)
    last = find_last_layer("test", model)
    engine = HeadEngine("test", last, CrossEntropy(), backend="reference", include_bias=True, batch_size=7, device=None)
    rows = TrainRows(engine, open_source("test", "train", (x, y), batch_size=7))
    head = HeadProblem(engine, rows, (model.weight.detach(), model.bias.detach()))
    v = vectors(problem)
    assert_relative(problem.hessian(v), head.hessian(v), FLOAT64_RELATIVE)
    assert problem.convex
    for mine, its in zip(problem.covariances(empirical=True, seed=0), head.covariances(empirical=True, seed=0), strict=True):
        for a, b in zip(mine, its, strict=True):
            assert_relative(a, b, FLOAT64_RELATIVE)
    # At their own labels one samples and the other does not: the same in the mean over seeds.
    drawn = torch.stack([problem.covariances(empirical=False, seed=seed)[0][0] for seed in range(100)])
    exact = head.covariances(empirical=False, seed=0)[0][0]
    assert bool(((drawn.mean(dim=0) - exact).abs() <= 4 * drawn.std(dim=0) / 10).all())


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(weight=[1.0, 2.0, 0.5]), BCEWithLogits(), MSE()])
def test_sampled_cotangents_have_the_curvature_of_the_loss_for_covariance(loss):
    model, x, y = small("mlp", samples=2)
    y = y if isinstance(loss, CrossEntropy) else torch.rand(2, 3, dtype=torch.float64)
    network = Network("test", model, loss)
    draws = 4000
    many = x.repeat(draws, 1), y.repeat(draws, *[1] * (y.dim() - 1))
    c = sampled_cotangents(network, {}, *many, torch.Generator().manual_seed(0)).view(draws, 2, 3)
    for row in range(2):
        z = model(x[row]).detach()
        expected = torch.autograd.functional.hessian(lambda z, row=row: loss.value(z[None], y[row : row + 1]).sum(), z)
        outer = torch.einsum("ni,nj->nij", c[:, row], c[:, row])
        error = outer.std(dim=0) / draws**0.5
        assert bool(((outer.mean(dim=0) - expected).abs() <= 4 * error + SOLVE_RELATIVE).all())
        assert bool((c[:, row].mean(dim=0).abs() <= 4 * c[:, row].std(dim=0) / draws**0.5).all()), "E c = 0"


@pytest.mark.parametrize("tokens", ["mean", "sum"])
def test_sampled_cotangents_of_tokens_carry_the_share_of_the_token(tokens):
    """E c_t c_tᵀ = share·∂²ℓ_t/∂z², so that the gradients of a sequence have its Gauss-Newton matrix for covariance."""
    model, x, y = token_problem()
    network, draws = Network("test", model, CrossEntropy(), tokens=tokens), 3000
    c = sampled_cotangents(network, {}, x.repeat(draws, 1), y.repeat(draws, 1), torch.Generator().manual_seed(0))
    c = c.view(draws, *y.shape, 3)
    assert torch.equal(torch.isnan(c).all(dim=3), (y == -100).expand(draws, -1, -1))
    p = model(x).softmax(dim=2).detach()
    for i, t in (y != -100).nonzero().tolist():
        share = 1 / int((y[i] != -100).sum()) if tokens == "mean" else 1
        outer = torch.einsum("ni,nj->nij", c[:, i, t], c[:, i, t])
        expected = share * (p[i, t].diag() - torch.outer(p[i, t], p[i, t]))
        assert bool(((outer.mean(dim=0) - expected).abs() <= 5 * outer.std(dim=0) / draws**0.5).all()), (i, t)


def test_sampled_labels_do_not_depend_on_the_batches_nor_on_the_pass():
    for model, x, y in (small("mlp"), token_problem()):
        first = problem_of(model, x, y, size=3)
        found = [p.covariances(empirical=False, seed=4) for p in (first, first, problem_of(model, x, y, size=5))]
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                for a, b in zip(one, two, strict=True):
                    assert_relative_to_largest(a, b, BATCH_RELATIVE)
        changed = first.covariances(empirical=False, seed=5)
        assert not torch.equal(changed[0][0], found[0][0][0])


def test_what_a_network_computes_without_gradients_is_constant_in_its_hessian_too():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.gate = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                gate = torch.sigmoid(self.fc(x))
            return self.fc(x) * gate + self.gate(x)

    torch.manual_seed(0)
    model, x, y = Gate().double().eval(), torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    problem = problem_of(model, x, y)
    gate = torch.sigmoid(model.fc(x)).detach()
    named = dict(model.named_parameters())

    def loss(theta):
        pieces = theta.split([p.numel() for p in named.values()])
        w, b, u, c = (piece.view(p.shape) for piece, p in zip(pieces, named.values(), strict=True))
        return F.cross_entropy(F.linear(x, w, b) * gate + F.linear(x, u, c), y)

    truth = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in named.values()]))
    assert_relative_to_largest(problem.dense(), truth, FLOAT64_RELATIVE)


def test_functions_without_a_second_derivative_are_told():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.exp()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(Once.apply(self.fc(x)))

    model, x, y = Net().double().eval(), torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    problem = problem_of(model, x, y)
    with pytest.raises(UnavailableError, match=r"symmetric.*Use EKFAC or DataInf"):
        problem.hessian(vectors(problem))


def test_narrow_parameters_and_callable_losses_are_refused_where_they_do_not_do():
    model, x, y = small("mlp")
    problem = problem_of(model.bfloat16(), x.bfloat16(), y)
    with pytest.raises(InputTypeError, match=r"float32 or float64 for products with the Hessian; scale is torch.bf"):
        problem.hessian(vectors(problem))
    model, x, y = small("mlp")
    problem = problem_of(model, x, y, loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"))
    v = vectors(problem)
    assert_relative_to_largest(problem.hessian(v), v @ Dense(model).hessian(x, y), FLOAT64_RELATIVE)
    with pytest.raises(InputError, match=r"loss of ipfast.losses for the Gauss-Newton matrix"):
        problem.hessian(v, ggn=True)
    with pytest.raises(InputError, match=r"got a callable.*EKFAC\(empirical=True\)"):
        problem.covariances(empirical=False, seed=0)
