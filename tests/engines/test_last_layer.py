"""Finding the head of a model, and its features."""

import pytest
import torch
from problems import SmallNet, network_problem
from torch import nn

import ipfast
from ipfast.engines import find_last_layer

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Answer(nn.Module):
    """A network that wraps its logits as some libraries do."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.fc, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.wrap = wrap

    def forward(self, x):
        h = self.body(x).relu()
        self.other(h)
        return self.wrap(self.fc(h))


class Output:
    def __init__(self, logits):
        self.logits = logits


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.fc(x))


WRAPS = {
    "tensor": lambda z: z,
    "tuple": lambda z: (z, None),
    "list": lambda z: [z],
    "attribute": Output,
    "view": lambda z: z.view(-1, 3),
    "mapping": lambda z: {"logits": z},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_layer_that_makes_the_logits_is_found(wrap):
    model = Answer(WRAPS[wrap]).eval()
    last = find_last_layer("f", model, first_inputs=lambda: X)
    assert last.name == "fc"
    assert torch.equal(last.features("f", X), model.body(X).relu())
    assert (last.outputs, last.width) == (3, 6)


@pytest.mark.parametrize("wrap", [lambda z: z.softmax(dim=1), lambda z: z + 1, lambda z: z[:, :2], lambda z: {"scores": z}])
def test_what_is_not_the_output_of_a_linear_layer_is_refused(wrap):
    with pytest.raises(
        ipfast.InputError,
        match=r"f: expected a model whose output is the output of an nn\.Linear; Answer ends otherwise "
        r"\(linear layers that ran: body, other, fc\)\. .*head='fc'",
    ):
        find_last_layer("f", Answer(wrap).eval(), first_inputs=lambda: X)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ipfast.InputError, match="linear layers that ran: none"):
        find_last_layer("f", nn.Sequential(nn.ReLU()), first_inputs=lambda: X)


def test_a_named_head():
    model = Answer(lambda z: z.softmax(dim=1)).eval()
    assert find_last_layer("f", model, head="other").weight.data_ptr() == model.other.weight.data_ptr()
    with pytest.raises(ipfast.InputError, match=r"no 'fd'\. Its linear layers are: body, fc, other"):
        find_last_layer("f", model, head="fd")


def test_a_head_that_runs_twice_is_refused():
    last = find_last_layer("f", Twice(), first_inputs=lambda: X)
    with pytest.raises(ipfast.InputError, match="f: expected the head 'fc' to be called once a batch; it was called 2 times"):
        last.features("f", X)


def test_features_of_tokens_keep_their_axis_and_others_are_refused():
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3))
    last = find_last_layer("f", model, first_inputs=lambda: X)
    assert last.features("f", torch.zeros(5, 2, 4)).shape == (5, 2, 4)
    with pytest.raises(
        ipfast.InputError, match=r"expected features of shape \[N, 4\] for this head; got \[5, 1, 2, 4\]\. .* \[N, T, 4\]"
    ):
        last.features("f", torch.zeros(5, 1, 2, 4))


def test_a_bare_linear_layer_may_be_in_train_mode():
    layer = nn.Linear(4, 3)
    assert layer.training
    last = find_last_layer("f", layer)
    assert last.backbone is None
    assert torch.equal(last.features("f", X.numpy()), X)


MODES = {
    "dropout": (nn.Dropout(0.1), True),
    "dropout_of_nothing": (nn.Dropout(0.0), False),
    "alpha_dropout": (nn.AlphaDropout(0.1), True),
    "batch_norm": (nn.BatchNorm1d(4), True),
    "rrelu": (nn.RReLU(), True),
    "recurrent_dropout": (nn.LSTM(4, 4, num_layers=2, dropout=0.1), True),
    "recurrent": (nn.GRU(4, 4), False),
    "attention_dropout": (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    "attention": (nn.MultiheadAttention(4, 2), False),
    "transformer": (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1), True),
    "layer_norm": (nn.LayerNorm(4), False),
    "relu": (nn.ReLU(), False),
}


@pytest.mark.parametrize("name", MODES)
def test_a_model_in_train_mode_is_refused_where_that_matters(name):
    module, matters = MODES[name]
    model = nn.ModuleDict({"part": module, "fc": nn.Linear(4, 3)}).train()
    if matters:
        with pytest.raises(
            ipfast.InputError,
            match=r"f: expected model in eval mode; part\S* \(\w+\) is in train mode.*Call model\.eval\(\) first",
        ):
            find_last_layer("f", model, head="fc")
        find_last_layer("f", model, head="fc", check=False)
    else:
        find_last_layer("f", model, head="fc")
    find_last_layer("f", model.eval(), head="fc")


def test_one_module_left_in_train_mode_is_found():
    problem = network_problem()
    problem.model.drop.train()
    with pytest.raises(ipfast.InputError, match=r"drop \(Dropout\) is in train mode"):
        ipfast.score(problem.model, problem.train, problem.val)


def test_batch_norm_without_statistics_is_refused_in_eval_mode_too():
    """It couples the samples of a batch in either mode."""
    model = SmallNet().eval()
    model.norm = nn.BatchNorm2d(3, track_running_stats=False).eval()
    with pytest.raises(ipfast.InputError, match=r"norm \(BatchNorm2d\) keeps no running statistics.* track_running_stats=True"):
        find_last_layer("f", model, head="fc")
