"""The forward and the explicit engine against autograd, one sample at a time, in float64."""

import pytest
import torch
from networks import PROBLEMS, assert_unchanged, gradient_loop, images, products, queries_like, snapshot, texts
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative, assert_within_rule
from torch import nn

from ipfast.engines.explicit import ExplicitEngine
from ipfast.engines.forward import ForwardEngine
from ipfast.engines.network import Network
from ipfast.errors import InputError, InputTypeError, UnavailableError
from ipfast.losses import CrossEntropy

ENGINES = {
    "forward": ForwardEngine,
    "vmap": ExplicitEngine,
    "loop": lambda network: ExplicitEngine(network, loop=True),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("params", ["all", ["norm", "weight$"], ["encoder|grouped"], ["twice|fc"]])
def test_scores_are_inner_products_of_autograd_gradients(problem, engine, params):
    model, x, y = PROBLEMS[problem](5)
    network = Network("test", model, CrossEntropy(), params=params)
    q = queries_like(network.parameters)
    before = snapshot(model)
    got = ENGINES[engine](network).dot(x, y, q)
    assert_unchanged(model, before)
    assert_relative(got, products(gradient_loop(model, x, y), q), FLOAT64_RELATIVE)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_explicit_norms_are_those_of_autograd(problem):
    model, x, y = PROBLEMS[problem](4)
    truth = sum(g.flatten(1).square().sum(dim=1) for g in gradient_loop(model, x, y).values())
    assert_relative(ExplicitEngine(Network("test", model, CrossEntropy())).norm_sq(x, y), truth, FLOAT64_RELATIVE)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_single_precision_is_as_good_as_plain_torch(problem):
    model, x, y = PROBLEMS[problem](6)
    network = Network("test", model, CrossEntropy())
    q = queries_like(network.parameters)
    truth = products(gradient_loop(model, x, y), q)
    magnitude = products({k: v.abs() for k, v in gradient_loop(model, x, y).items()}, {k: v.abs() for k, v in q.items()})
    model.float()
    x32 = x.float() if x.dtype == torch.float64 else x
    single = Network("test", model, CrossEntropy())
    q32 = {name: value.float() for name, value in q.items()}
    plain = products(gradient_loop(model, x32, y), q32)
    eps = torch.finfo(torch.float32).eps
    got = ForwardEngine(single).dot(x32, y, q32)
    for column in range(got.shape[1]):
        assert_within_rule(got[:, column], truth[:, column], plain[:, column], magnitude[:, column], eps)


def test_scores_do_not_depend_on_the_batch():
    model, x, y = images(64)
    network = Network("test", model, CrossEntropy())
    q, engine = queries_like(network.parameters), ForwardEngine(network)
    whole = engine.dot(x, y, q)
    for size in (1, 7):
        parts = [engine.dot(x[i : i + size], y[i : i + size], q) for i in range(0, 64, size)]
        assert_relative(torch.cat(parts), whole, BATCH_RELATIVE)


def test_other_parameters_and_buffers_take_the_place_of_the_models_own():
    model, x, y = images(4)
    network = Network("test", model, CrossEntropy())
    q = queries_like(network.parameters)
    other, _, _ = images(1, seed=3)
    truth = products(gradient_loop(other, x, y), q)
    got = ForwardEngine(network).dot(x, y, q, at=network.state(other.state_dict()))
    assert_relative(got, truth, FLOAT64_RELATIVE)


def test_a_loss_of_the_callers_own_sees_model_and_batch():
    model, x, y = images(4)
    network = Network("test", model, lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none"))
    q = queries_like(network.parameters)
    assert_relative(ForwardEngine(network).dot(x, y, q), products(gradient_loop(model, x, y), q), FLOAT64_RELATIVE)


def test_the_model_is_what_it_was_after_an_error_and_an_interrupt():
    model, x, y = texts(3)
    before = snapshot(model)
    for error in (ValueError, KeyboardInterrupt):

        def loss(net, batch, error=error):
            net(batch[0])
            raise error

        network = Network("test", model, loss)
        with pytest.raises(error):
            ForwardEngine(network).dot(x, y, queries_like(network.parameters))
        assert_unchanged(model, before)


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_function_without_a_forward_derivative_is_named():
    class Odd(nn.Linear):
        def forward(self, x):
            return _NoDerivative.apply(super().forward(x))

    network = Network("test", Odd(3, 2).eval(), CrossEntropy())
    with pytest.raises(UnavailableError, match="ghost"):
        ForwardEngine(network).dot(torch.randn(2, 3), torch.tensor([0, 1]), queries_like(network.parameters))


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        (["nothing"], InputError, "none of its"),
        ("stem", InputTypeError, "list"),
        (["("], InputError, "regular"),
        ([], InputError, "at least one"),
    ],
)
def test_params_that_name_nothing_are_refused(params, error, words):
    model, _, _ = images(1)
    with pytest.raises(error, match=words):
        Network("test", model, CrossEntropy(), params=params)


def test_trainable_parameters_are_those_that_require_gradients():
    model, _, _ = images(1)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    assert set(Network("test", model, CrossEntropy(), params="trainable").parameters) == {"fc.weight", "fc.bias"}


def test_an_error_of_the_models_own_is_not_taken_for_a_missing_derivative():
    class Unfinished(nn.Linear):
        def forward(self, x):
            raise NotImplementedError("not yet")

    network = Network("test", Unfinished(3, 2).eval(), CrossEntropy())
    with pytest.raises(NotImplementedError, match="not yet"):
        ForwardEngine(network).dot(torch.randn(2, 3), torch.tensor([0, 1]), queries_like(network.parameters, 1))


def test_a_lack_of_memory_is_not_taken_for_a_network_without_vmap(monkeypatch):
    model, x, y = images(2)
    engine = ExplicitEngine(Network("test", model, CrossEntropy()))

    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(engine, "_at_once", full)
    with pytest.raises(torch.OutOfMemoryError):
        engine.gradients(x, y)
    assert engine.loop is None


def test_weights_that_a_forward_pass_renormalises_stay_what_they_are():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 3)).double().eval()
    x, y = torch.tensor([1, 2, 2]), torch.tensor([0, 1, 2])
    before = snapshot(model)
    network = Network("test", model, CrossEntropy())
    for engine in (ForwardEngine(network), ExplicitEngine(network, loop=True)):
        engine.dot(x, y, queries_like(network.parameters, 1))
        assert_unchanged(model, before)
