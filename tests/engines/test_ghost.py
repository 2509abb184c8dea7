"""The ghost engine against autograd, one sample at a time, in float64: exact, or by forward mode, but never silently wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import (
    PROBLEMS,
    assert_unchanged,
    gradient_loop,
    images,
    products,
    queries_like,
    snapshot,
    squared_norms,
    texts,
)
from tolerances import (
    AUTOCAST_RELATIVE,
    BATCH_RELATIVE,
    FLOAT64_RELATIVE,
    assert_relative,
    assert_relative_to_largest,
    assert_within_rule,
)
from torch import nn

from ipfast.engines.explicit import ExplicitEngine
from ipfast.engines.forward import ForwardEngine
from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.errors import InputError, UnavailableError
from ipfast.losses import CrossEntropy

CLASSES = 5
COUNTS = [1, 2, 9]


def labels(samples):
    return torch.arange(samples) % CLASSES


def assert_exact(engine, x, y, at=None):
    """dot for few and many queries, and norm_sq, against the loop over the model, or over its copy with the state `at`."""
    model, names = engine.network.model, engine.network.parameters
    if at is not None:
        model = copy.deepcopy(model)
        model.load_state_dict(at)
        at = engine.network.state(at)
    gradients = {name: value for name, value in gradient_loop(model, x, y).items() if name in names}
    for count in COUNTS:
        q = queries_like(names, count)
        got = engine.dot(x, y, q, at=at)
        assert_relative(got, products(gradients, q), FLOAT64_RELATIVE)
        assert_relative(sum(engine.by_layer.values(), torch.zeros_like(got)), got, FLOAT64_RELATIVE)
    got = engine.norm_sq(x, y, at=at)
    assert_relative(got, squared_norms(gradients), FLOAT64_RELATIVE)
    assert_relative(sum(engine.by_layer.values(), torch.zeros_like(got)), got, FLOAT64_RELATIVE)


def ghost(model, params="all", loss=None):
    return GhostEngine(Network("test", model, CrossEntropy() if loss is None else loss, params=params))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("params", ["all", ["norm", "weight$"], ["bias$"], ["encoder|grouped"], ["twice|fc"]])
def test_scores_are_inner_products_of_autograd_gradients(problem, params):
    model, x, y = PROBLEMS[problem](5)
    before = snapshot(model)
    assert_exact(ghost(model, params), x, y)
    assert_unchanged(model, before)


def test_the_plan_names_what_goes_through_forward_mode_and_why():
    model, x, y = texts(3)
    plan = ghost(model).plan(x, y)
    assert plan.remainder == {
        "embed.weight": "used by linear, outside of its layer",
        "encoder.self_attn.in_proj_weight": "no layer of a known type has it",
        "encoder.self_attn.in_proj_bias": "no layer of a known type has it",
        "encoder.self_attn.out_proj.weight": "no layer of a known type has it",
        "encoder.self_attn.out_proj.bias": "no layer of a known type has it",
    }
    assert plan.repeated == {"twice.weight", "twice.bias"}
    assert not ghost(images(1)[0]).plan(*images(3)[1:]).remainder


@pytest.mark.parametrize("problem", PROBLEMS)
def test_scores_do_not_depend_on_the_batch(problem):
    model, x, y = PROBLEMS[problem](64)
    engine = ghost(model)
    q = queries_like(engine.network.parameters)
    whole, norms = engine.dot(x, y, q), engine.norm_sq(x, y)
    for size in (1, 7):
        engine = ghost(model)  # which makes its plan of the first batch
        rows = [slice(first, first + size) for first in range(0, 64, size)]
        assert_relative(torch.cat([engine.dot(x[r], y[r], q) for r in rows]), whole, BATCH_RELATIVE)
        assert_relative(torch.cat([engine.norm_sq(x[r], y[r]) for r in rows]), norms, BATCH_RELATIVE)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_single_precision_is_as_good_as_plain_torch(problem):
    model, x, y = PROBLEMS[problem](6)
    q = queries_like(dict(model.named_parameters()))
    gradients = gradient_loop(model, x, y)
    truth = products(gradients, q)
    magnitude = products({k: v.abs() for k, v in gradients.items()}, {k: v.abs() for k, v in q.items()})
    model.float()
    x32 = x.float() if x.is_floating_point() else x
    q32 = {name: value.float() for name, value in q.items()}
    plain, got = products(gradient_loop(model, x32, y), q32), ghost(model).dot(x32, y, q32)
    for column in range(got.shape[1]):
        eps = torch.finfo(torch.float32).eps
        assert_within_rule(got[:, column], truth[:, column], plain[:, column], magnitude[:, column], eps)


def test_a_checkpoint_brings_its_own_statistics():
    model, x, y = images(4)
    assert_exact(ghost(model), x, y, at=images(1, seed=3)[0].state_dict())


class Tied(nn.Module):
    """An embedding and an output layer with one weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.embed(x)).mean(1)))


def test_the_gradients_of_tied_weights_add_up():
    torch.manual_seed(0)
    model, x, y = Tied().double().eval(), torch.randint(0, CLASSES, (6, 3)), labels(6)
    engine = ghost(model)
    assert_exact(engine, x, y)
    plan = engine.plan(x, y)
    assert not plan.remainder
    assert plan.repeated == {"embed.weight"}


@pytest.mark.parametrize("make", [ForwardEngine, GhostEngine, ExplicitEngine])
def test_a_state_with_tied_weights_may_hold_them_twice(make):
    torch.manual_seed(0)
    model, other, x, y = Tied().double().eval(), Tied().double().eval(), torch.randint(0, CLASSES, (6, 3)), labels(6)
    engine = make(Network("test", model, CrossEntropy()))
    state = {name: value.clone() for name, value in other.state_dict().items()}
    q = queries_like(engine.network.parameters)
    got = engine.dot(x, y, q, at=engine.network.state(state))
    assert_relative(got, products(gradient_loop(other, x, y), q), FLOAT64_RELATIVE)
    state["head.weight"] += 1
    with pytest.raises(InputError, match=r"embed\.weight"):
        engine.network.state(state)


class Blocks(nn.Module):
    """Two linear layers, with what `between` does to the output `y` of the first and its input `x`."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.between = between

    def forward(self, x):
        return self.head(torch.sin(self.between(self, torch.tanh(x.clone()))))


def added_to_the_output(net, x):
    y = net.first(x)
    y += x
    return net.second(y)


def output_added_to_the_input(net, x):
    y = net.first(x)
    x += y
    return net.second(x)


def residual(net, x):
    x = x + net.first(x)
    return x + net.second(x)


def activation_of_the_output(net, x):
    return net.second(F.relu(net.first(x), inplace=True))


def activation_of_the_input(net, x):
    x = net.second(x) * 2
    y = net.first(x)
    return y + F.relu(x, inplace=True)


def activation_of_the_output_seen_twice(net, x):
    y = net.first(x)
    z = net.second(y)
    return z + F.relu(y, inplace=True)


def part_of_the_output_replaced(net, x):
    y = net.first(x)
    y[:, 1] = 0
    y[:, 2:] *= 3
    return net.second(y)


def input_overwritten(net, x):
    x = net.second(x) + 1
    y = net.first(x)
    x.zero_()
    return y + x


def called_again(net, x):
    return net.first(torch.tanh(net.first(x))) + net.second(x)


def output_unused(net, x):
    net.first(x)
    return net.second(x)


def output_detached(net, x):
    return net.second(x + net.first(x).detach())


def output_constant(net, x):
    with torch.no_grad():
        y = torch.tanh(net.first(x))
    return net.second(x + y)


def keyword(net, x):
    return net.second(input=net.first(input=x))


BETWEEN = [
    *(added_to_the_output, output_added_to_the_input, residual, activation_of_the_output, activation_of_the_input),
    *(activation_of_the_output_seen_twice, part_of_the_output_replaced, input_overwritten, called_again),
    *(output_unused, output_detached, output_constant, keyword),
]


def blocks(between):
    torch.manual_seed(0)
    return Blocks(between).double().eval(), torch.randn(6, 4, dtype=torch.float64), labels(6)


@pytest.mark.parametrize("between", BETWEEN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("params", ["all", ["first"], ["first.bias"], ["first.weight"], ["bias"], ["second"]])
def test_whatever_a_network_does_between_its_layers(between, params):
    model, x, y = blocks(between)
    engine = ghost(model, params)
    before = x.clone()
    assert_exact(engine, x, y)
    assert torch.equal(x, before)
    assert not engine.plan(x, y).remainder


@pytest.mark.parametrize("between", BETWEEN, ids=lambda f: f.__name__)
def test_forward_mode_does_as_autograd_does_between_the_layers(between):
    model, x, y = blocks(between)
    engine = ForwardEngine(Network("test", model, CrossEntropy()))
    q = queries_like(engine.network.parameters)
    assert_relative(engine.dot(x, y, q), products(gradient_loop(model, x, y), q), FLOAT64_RELATIVE)


class Sequences(nn.Module):
    """Tokens [B, T] with position embeddings, and `body` in between."""

    def __init__(self, body, length=4, width=4):
        super().__init__()
        self.embed, self.position = nn.Embedding(CLASSES, width), nn.Embedding(16, width)
        self.scale = nn.LayerNorm(width)
        self.layer, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)
        self.body = body

    def forward(self, tokens):
        return self.head(torch.tanh(self.body(self, tokens)).mean(1))


def places(tokens, *shape):
    return torch.arange(tokens.shape[1]).view(*shape, -1)


def positions_for_all(net, tokens):
    return net.embed(tokens) + net.layer(net.scale(net.position(places(tokens, 1))))


def positions_without_samples(net, tokens):
    return net.embed(tokens) + net.layer(net.position(places(tokens)))


def positions_of_each(net, tokens):
    return net.embed(tokens) + net.position(places(tokens, 1).expand_as(tokens))


def positions_taken_out_of_their_batch(net, tokens):
    return net.embed(tokens) + net.layer(net.position(places(tokens, 1))[0])


def sequence_first(net, tokens):
    x = net.embed(tokens.T) + net.position(places(tokens).view(-1, 1))
    return net.layer(net.scale(x)).transpose(0, 1)


def windows(net, tokens):
    x = net.embed(tokens).view(-1, 2, 4)
    return net.layer(net.scale(x)).view(len(tokens), -1, 4)


def one_window_or_more(net, tokens):
    x = net.embed(tokens)
    return net.layer(x.view(-1, 3, 4) if tokens.shape[1] % 3 == 0 else x).view(x.shape)


def rows_of_all_samples(net, tokens):
    return net.layer(net.embed(tokens).flatten(0, 1)).view(*tokens.shape, 4)


def samples_back_to_front(net, tokens):
    return net.layer(net.embed(tokens).flip(0)).flip(0)


def halves_swapped(net, tokens):
    """The first dimension is as long as the batch and holds parts of several samples."""
    x = net.embed(tokens)
    y = net.layer(x.transpose(0, 1).reshape(x.shape))
    return y.view(x.shape[1], x.shape[0], 4).transpose(0, 1)


BODIES = [
    *(positions_for_all, positions_without_samples, positions_of_each, positions_taken_out_of_their_batch),
    *(sequence_first, windows, one_window_or_more, rows_of_all_samples, samples_back_to_front, halves_swapped),
]


def sequences(body, shape):
    torch.manual_seed(1)
    return Sequences(body).double().eval(), torch.randint(0, CLASSES, shape), labels(shape[0])


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (2, 2), (1, 2), (5, 2)], ids=str)
def test_samples_wherever_a_layer_has_them(body, shape):
    model, x, y = sequences(body, shape)
    assert_exact(ghost(model), x, y)


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
def test_a_plan_made_of_one_batch_holds_for_others(body):
    engine = ghost(sequences(body, (1, 1))[0])
    for shape in ((1, 2), (5, 2), (3, 6), (1, 4)):
        _, x, y = sequences(body, shape)
        assert_exact(engine, x, y)


def test_a_plan_made_of_one_token_finds_the_samples_elsewhere_later():
    engine = ghost(sequences(sequence_first, (1, 1))[0])
    for shape in ((1, 1), (5, 1), (5, 2)):
        _, x, y = sequences(sequence_first, shape)
        assert_exact(engine, x, y)


def swapped_if(condition):
    def body(net, tokens):
        return halves_swapped(net, tokens) if condition(tokens.shape[1]) else net.layer(net.embed(tokens))

    return body


@pytest.mark.parametrize(
    ("condition", "lengths"),
    [(lambda length: length > 5, (4, 5, 6, 4, 8)), (lambda length: length < 4, (5, 6, 3, 5, 2))],
    ids=["longer", "shorter"],
)
@pytest.mark.parametrize("rows", [2, 3])
def test_samples_mixed_only_where_they_are_longer_or_shorter_than_before(condition, lengths, rows):
    """Mixed in a way that keeps the first dimension as long as the batch, which no layer can see."""
    engine = ghost(sequences(swapped_if(condition), (rows, lengths[0]))[0])
    mixed = False
    for length in lengths:
        _, x, y = sequences(swapped_if(condition), (rows, length))
        assert_exact(engine, x, y)
        mixed |= condition(length)
        assert ("layer.weight" in engine.plan(x, y).remainder) == mixed


def test_the_plan_is_checked_again_only_on_lengths_beyond_those_before(monkeypatch):
    engine, checked = ghost(sequences(positions_of_each, (3, 4))[0]), []
    monkeypatch.setattr(engine, "_check", lambda inputs, labels: checked.append(inputs.shape[1]))
    for length in (4, 6, 5, 4, 6, 2, 3, 7):
        _, x, y = sequences(positions_of_each, (3, length))
        engine.plan(x, y)
    assert checked == [4, 4, 6, 6, 2, 2, 7, 7]  # the samples in both orders


def test_what_stays_with_its_layer_and_what_does_not():
    kept = {
        positions_for_all: set(),
        positions_of_each: set(),
        positions_without_samples: {"position.weight", "layer.weight", "layer.bias"},
        sequence_first: {"embed.weight", "position.weight", "scale.weight", "scale.bias", "layer.weight", "layer.bias"},
        windows: {"scale.weight", "scale.bias", "layer.weight", "layer.bias"},
        rows_of_all_samples: {"layer.weight", "layer.bias"},
    }
    for body, expected in kept.items():
        model, x, y = sequences(body, (3, 4))
        unused = {name for name, _ in model.named_parameters() if name not in gradient_names(model, x, y)}
        remainder = ghost(model).plan(x, y).remainder
        assert set(remainder) - unused == expected, body.__name__
        assert all("samples in its first dimension" in remainder[name] for name in expected)


def gradient_names(model, x, y):
    """Names of the parameters on which the losses depend."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values()), allow_unused=True)
    return {name for name, g in zip(named, found, strict=True) if g is not None}


class Branches(nn.Module):
    """Layers that are called, or called again, only on some batches; `again` shares its weight with `always`."""

    def __init__(self):
        super().__init__()
        self.always, self.some, self.again = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.always.weight

    def forward(self, x):
        y = torch.tanh(self.always(x))
        if bool((x[:, 0] > 5).all()):
            y = torch.tanh(self.some(y))
        if bool((x[:, 1] > 5).all()):
            y = torch.tanh(self.always(y))
        if bool((x[:, 2] > 5).all()):
            y = self.again(y)
        return y


@pytest.mark.parametrize("params", ["all", ["some"], ["always"], ["again"]])
@pytest.mark.parametrize("first", [(), (0, 1, 2)], ids=["first none", "first all"])
def test_layers_that_only_some_batches_call(params, first):
    torch.manual_seed(0)
    model, y = Branches().double().eval(), labels(6) % 4
    engine = ghost(model, params)
    for columns in (first, (), (0,), (1,), (2,), (0, 1, 2), ()):
        x = torch.randn(6, 4, dtype=torch.float64).clamp(-1, 1)
        x[:, list(columns)] += 7
        assert_exact(engine, x, y)


def test_hooks_of_the_models_own_see_and_change_what_they_did():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double().eval(), torch.randn(6, 4), labels(6)
    model[0].register_forward_hook(lambda module, arguments, output: output * 3)
    model[2].register_forward_pre_hook(lambda module, arguments: arguments[0] + 1)
    engine = ghost(model)
    before = snapshot(model)
    assert_exact(engine, x.double(), y)
    assert_unchanged(model, before)
    assert not engine.plan(x.double(), y).remainder


def test_parameters_that_a_layer_was_given_have_no_rule():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), torch.randn(6, 4).double(), labels(6)
    model[0].gain, model[0].idle = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
    model[0].register_forward_hook(lambda module, arguments, output: output * module.gain)
    model[2].register_forward_hook(lambda module, arguments, output: output + module.weight.square().sum(1))
    model = model.double().eval()
    engine = ghost(model)
    assert_exact(engine, x, y)
    assert set(engine.plan(x, y).remainder) == {"0.gain", "0.idle", "2.weight"}


class _NoForwardDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class _NoForwardDerivativeNewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.head, self.shift = nn.Linear(4, 4), nn.Linear(4, CLASSES), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.head(self.function.apply(self.first(x) + self.shift))


@pytest.mark.parametrize("function", [_NoForwardDerivative, _NoForwardDerivativeNewStyle])
def test_functions_without_a_forward_derivative(function):
    torch.manual_seed(0)
    model, x, y = Odd(function).double().eval(), torch.randn(6, 4, dtype=torch.float64), labels(6)
    assert_exact(ghost(model, ["first", "head"]), x, y)
    engine = ghost(model)
    with pytest.raises(UnavailableError, match="shift"):
        engine.dot(x, y, queries_like(engine.network.parameters))
    assert_relative(engine.norm_sq(x, y), squared_norms(gradient_loop(model, x, y)), FLOAT64_RELATIVE)


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
def test_a_plan_is_checked_where_there_is_no_forward_derivative(body):
    """What no layer's rule gives cannot be had then, but it is not given wrong."""
    model, x, y = sequences(lambda net, tokens: _NoForwardDerivative.apply(body(net, tokens)), (4, 4))
    engine = ghost(model)
    q = queries_like(engine.network.parameters)
    truth = products(gradient_loop(model, x, y), q)
    try:
        got = engine.dot(x, y, q)
    except UnavailableError:
        assert engine.plan(x, y).remainder
    else:
        assert_relative(got, truth, FLOAT64_RELATIVE)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_model_is_what_it_was_after_an_error_and_an_interrupt(error, where):
    model, x, y = texts(3)
    before = snapshot(model)

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            if where == "forward":
                raise error
            return z.clone()

        @staticmethod
        def backward(ctx, grad):
            raise error

    engine = ghost(model)
    engine.plan(x, y)
    engine.network.step.loss = lambda net, batch: Failing.apply(net(batch[0])).sum(1)
    with pytest.raises(error):
        engine.norm_sq(x, y)
    assert_unchanged(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in engine.network.structure.modules())


def test_a_model_that_cannot_be_copied_is_what_it_was():
    class Held(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("held")

    torch.manual_seed(0)
    model = Held(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)).double().eval()
    before = snapshot(model)
    engine = ghost(model)
    assert engine.network.structure is model
    assert_exact_in_place(engine, torch.randn(6, 4, dtype=torch.float64), labels(6))
    assert_unchanged(model, before)


def assert_exact_in_place(engine, x, y):
    q = queries_like(engine.network.parameters)
    gradients = gradient_loop(engine.network.model, x, y)
    assert_relative(engine.dot(x, y, q), products(gradients, q), FLOAT64_RELATIVE)
    assert_relative(engine.norm_sq(x, y), squared_norms(gradients), FLOAT64_RELATIVE)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's own, of RMSNorm
@pytest.mark.parametrize("problem", PROBLEMS)
def test_bf16_products_are_close_to_single_precision_and_keep_the_plan(problem):
    model, x, y = PROBLEMS[problem](16)
    model.float()
    x = x.float() if x.is_floating_point() else x
    single = ghost(model)
    narrow = GhostEngine(Network("test", model, CrossEntropy(), precision="bf16"))
    q = queries_like(single.network.parameters)
    for got, plain in ((narrow.dot(x, y, q), single.dot(x, y, q)), (narrow.norm_sq(x, y), single.norm_sq(x, y))):
        assert got.dtype == torch.float32
        assert not torch.equal(got, plain)
        assert_relative_to_largest(got, plain, AUTOCAST_RELATIVE)
    assert narrow.plan(x, y).remainder == single.plan(x, y).remainder


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("make", [ForwardEngine, GhostEngine])
def test_the_callers_autocast_changes_nothing(problem, make):
    model, x, y = PROBLEMS[problem](3)
    model.float()
    x = x.float() if x.is_floating_point() else x
    q = queries_like(dict(model.named_parameters()))
    plain = make(Network("test", model, CrossEntropy())).dot(x, y, q)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make(Network("test", model, CrossEntropy())).dot(x, y, q), plain)


class NarrowInside(nn.Module):
    """Enters autocast by itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(torch.relu(self.norm(self.conv(x))).mean(2))


@pytest.mark.parametrize("make", [ForwardEngine, GhostEngine])
def test_a_network_may_enter_autocast_by_itself(make):
    torch.manual_seed(0)
    model, x, y = NarrowInside().eval(), torch.randn(6, 3, 9), labels(6)
    engine = make(Network("test", model, CrossEntropy()))
    q = queries_like(engine.network.parameters)
    got = engine.dot(x, y, q)
    assert_relative_to_largest(got, products(gradient_loop(model, x, y), q), AUTOCAST_RELATIVE)
    if isinstance(engine, GhostEngine):
        assert not engine.plan(x, y).remainder
