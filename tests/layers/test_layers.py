"""Every layer rule alone and inside a small network, against autograd, one sample at a time, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from networks import gradient_loop, products, queries_like, squared_norms, unusual_statistics
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn
from torch.nn.utils import prune

from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.layers import layer_rule
from ipfast.losses import CrossEntropy

# torch pads by hand where the sides are uneven, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

SAMPLES, CLASSES, TOKENS = 4, 5, 11


def numbers(*shape):
    return torch.randn(SAMPLES, *shape, dtype=torch.float64)


def tokens(*shape):
    """Few different ones, so that most come several times in a sample."""
    return torch.randint(0, 4, (SAMPLES, *shape))


def hugging_face_conv1d():
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)


CASES = {
    # name: (layer, inputs)
    "linear": (lambda: nn.Linear(4, 6), lambda: numbers(4)),
    "linear, no bias": (lambda: nn.Linear(4, 6, bias=False), lambda: numbers(4)),
    "linear, one token": (lambda: nn.Linear(4, 6), lambda: numbers(1, 4)),
    "linear, tokens": (lambda: nn.Linear(4, 6), lambda: numbers(7, 4)),
    "linear, many tokens": (lambda: nn.Linear(4, 6), lambda: numbers(80, 4)),
    "linear, two kinds of tokens": (lambda: nn.Linear(4, 6), lambda: numbers(3, 5, 4)),
    "linear, one output": (lambda: nn.Linear(4, 1), lambda: numbers(3, 4)),
    "conv1d of Hugging Face": (hugging_face_conv1d, lambda: numbers(4)),
    "conv1d of Hugging Face, tokens": (hugging_face_conv1d, lambda: numbers(7, 4)),
    "embedding": (lambda: nn.Embedding(TOKENS, 3), lambda: tokens(6)),
    "embedding, one token": (lambda: nn.Embedding(TOKENS, 3), lambda: tokens()),
    "embedding, two kinds of tokens": (lambda: nn.Embedding(TOKENS, 3), lambda: tokens(2, 5)),
    "embedding, padding": (lambda: nn.Embedding(TOKENS, 3, padding_idx=1), lambda: tokens(6)),
    "embedding, padding from the end": (lambda: nn.Embedding(TOKENS, 3, padding_idx=2 - TOKENS), lambda: tokens(6)),
    "embedding, one token, padding": (lambda: nn.Embedding(TOKENS, 3, padding_idx=1), lambda: tokens()),
    "layer norm": (lambda: nn.LayerNorm(4), lambda: numbers(4)),
    "layer norm, tokens": (lambda: nn.LayerNorm(4, eps=0.1), lambda: numbers(7, 4)),
    "layer norm, no bias": (lambda: nn.LayerNorm(4, bias=False), lambda: numbers(7, 4)),
    "layer norm, two dimensions": (lambda: nn.LayerNorm((3, 4)), lambda: numbers(5, 3, 4)),
    "layer norm, the whole sample": (lambda: nn.LayerNorm((3, 4)), lambda: numbers(3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), lambda: numbers(4)),
    "rms norm, eps": (lambda: nn.RMSNorm(4, eps=0.1), lambda: numbers(7, 4)),
    "rms norm, two dimensions": (lambda: nn.RMSNorm((3, 4)), lambda: numbers(5, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda: numbers(4)),
    "group norm, positions": (lambda: nn.GroupNorm(2, 4, eps=0.1), lambda: numbers(4, 5)),
    "group norm, images": (lambda: nn.GroupNorm(1, 4), lambda: numbers(4, 3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(4), lambda: numbers(4)),
    "batch norm, positions": (lambda: nn.BatchNorm1d(4, eps=0.1), lambda: numbers(4, 5)),
    "batch norm, images": (lambda: nn.BatchNorm2d(4), lambda: numbers(4, 3, 5)),
    "batch norm, volumes": (lambda: nn.BatchNorm3d(4), lambda: numbers(4, 2, 3, 2)),
}

CONVOLUTIONS = {1: (nn.Conv1d, (9,)), 2: (nn.Conv2d, (7, 6)), 3: (nn.Conv3d, (4, 5, 3))}
OPTIONS = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": 1},
    "padding wider than the kernel": {"padding": 2, "kernel_size": 2, "stride": 2},
    "same": {"padding": "same", "dilation": 2},
    "same, even kernel": {"padding": "same", "kernel_size": 2},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 1, "padding_mode": "circular", "stride": 2},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise, no bias": {"groups": 4, "bias": False},
    "one by one": {"kernel_size": 1, "stride": 2},
    "everything": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "kernel_size": 2, "padding_mode": "reflect"},
}
for _dimensions, _name in itertools.product(CONVOLUTIONS, OPTIONS):
    _kind, _places = CONVOLUTIONS[_dimensions]
    _arguments = {"kernel_size": 3, **OPTIONS[_name]}
    CASES[f"conv{_dimensions}d, {_name}"] = (
        lambda kind=_kind, arguments=_arguments: kind(4, 8, **arguments),
        lambda places=_places: numbers(4, *places),
    )
CASES["conv2d, uneven"] = (
    lambda: nn.Conv2d(4, 8, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)),
    lambda: numbers(4, 7, 6),
)


class Alone(nn.Module):
    """The layer, then functions without parameters."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.after(self.layer(x))

    @staticmethod
    def after(x):
        flat = x.flatten(1)
        mixing = torch.cos(torch.arange(flat.shape[1] * CLASSES, dtype=flat.dtype)).view(-1, CLASSES)
        return torch.tanh(flat) @ mixing


class Inside(Alone):
    """The layer before a parameter without a rule and a linear layer."""

    def __init__(self, layer):
        super().__init__(layer)
        self.gain = nn.Parameter(torch.tensor([0.7]))
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        return self.head(torch.sin(self.after(F.silu(self.layer(x)) * self.gain)))


def made(kind, case):
    """(model, inputs, labels)"""
    torch.manual_seed(0)
    layer, inputs = CASES[case]
    model = unusual_statistics(kind(layer()))
    return model, inputs(), torch.randint(0, CLASSES, (SAMPLES,))


def assert_exact(model, x, y, gradients):
    """dot for few and many queries, and norm_sq, of the parameters whose gradients are given; returns the plan."""
    network = Network("test", model, CrossEntropy(), params=[f"^{name}$" for name in gradients])
    engine = GhostEngine(network)
    for count in (1, 2, 9):
        q = queries_like(network.parameters, count)
        assert_relative(engine.dot(x, y, q), products(gradients, q), FLOAT64_RELATIVE)
    assert_relative(engine.norm_sq(x, y), squared_norms(gradients), FLOAT64_RELATIVE)
    return engine.plan(x, y)


@pytest.mark.parametrize("case", CASES)
def test_a_layer_alone_for_each_subset_of_its_parameters(case):
    model, x, y = made(Alone, case)
    gradients = gradient_loop(model, x, y)
    for size in range(1, len(gradients) + 1):
        for params in itertools.combinations(gradients, size):
            plan = assert_exact(model, x, y, {name: gradients[name] for name in params})
            assert not plan.remainder
            assert [use.name for use in plan.uses] == ["layer"]


@pytest.mark.parametrize("case", CASES)
def test_a_layer_inside_a_network(case):
    model, x, y = made(Inside, case)
    plan = assert_exact(model, x, y, gradient_loop(model, x, y))
    assert set(plan.remainder) == {"gain"}


class Doubled(nn.Linear):
    """A subclass that computes something else than its class."""

    def forward(self, x):
        return 2 * super().forward(x) + self.bias.sin()


REFUSED = {
    "embedding, largest norm": (lambda: nn.Embedding(TOKENS, 3, max_norm=1.0), lambda: tokens(6)),
    "embedding, sparse": (lambda: nn.Embedding(TOKENS, 3, sparse=True), lambda: tokens(6)),
    "subclass": (lambda: Doubled(4, 6), lambda: numbers(7, 4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), lambda: numbers(7, 4)),
    "weight norm of the whole": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=None),
        lambda: numbers(4, 5),
    ),
    "weight norm of the columns": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 6), dim=1), lambda: numbers(4)),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), lambda: numbers(7, 4)),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(4, 6), "weight", 0.5), lambda: numbers(7, 4)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(4, 3, 3), lambda: numbers(4, 5)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), lambda: numbers(4, 5)),
    "prelu": (lambda: nn.PReLU(4), lambda: numbers(4, 5)),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [Alone, Inside])
def test_a_layer_without_a_rule_is_exact_by_forward_mode(case, kind):
    torch.manual_seed(0)
    layer, inputs = REFUSED[case]
    model, x, y = unusual_statistics(kind(layer())), inputs(), torch.randint(0, CLASSES, (SAMPLES,))
    plan = assert_exact(model, x, y, gradient_loop(model, x, y))
    own = {name for name, _ in model.named_parameters() if name.startswith("layer") and name != "layer.bias"}
    assert own <= set(plan.remainder)


def test_options_that_change_a_gradient_have_no_rule():
    for layer in (
        nn.Embedding(3, 2, max_norm=1.0),
        nn.Embedding(3, 2, sparse=True),
        nn.Embedding(3, 2, scale_grad_by_freq=True),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm1d(3),
        Doubled(3, 2),
    ):
        assert layer_rule(layer) is None
