"""What silently ruins influence is found before scoring, by name; what is sound passes, and nothing is left behind."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import PROBLEMS, assert_unchanged, images, snapshot
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ipfast
from ipfast.errors import InputError, IpfastWarning

D, C = 6, 3


class Stack(nn.Module):
    """Two blocks and a head, the second block of a test's choosing."""

    def __init__(self, block, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(D, D)
        self.block = block
        self.head = nn.Linear(D, C)
        self.double().eval()

    def forward(self, x):
        return self.head(self.block(torch.tanh(self.first(x))))


class Called(nn.Module):
    """A function as a module, without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Between(nn.Module):
    """A function between two layers, in the code of the module that holds them."""

    def __init__(self, function):
        super().__init__()
        self.before, self.after, self.function = nn.Linear(D, D), nn.Linear(D, D), function

    def forward(self, x):
        return self.after(self.function(self.before(x)))


class Counting(nn.Module):
    """A state that grows with each pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.seen += 1
        return x + self.seen


def rarely(x):
    return 2 * x if float(torch.rand(())) < 0.25 else x


def data(samples=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, D, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, C, (samples,), generator=generator)


def scored(model, params="all", train=None, **options):
    """Scores against other data of the same kind; nothing of the model may change, whatever comes of it."""
    x, y = data(12)
    before, states = snapshot(model), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    try:
        return ipfast.score(
            model, (x[:8], y[:8]) if train is None else train, (x[8:], y[8:]), params=params, progress=False, **options
        )
    finally:
        assert_unchanged(model, before)
        if params != "last" and train is None:  # a loader draws its seed; the search for the head runs the model
            assert torch.equal(torch.get_rng_state(), states[0])
            assert random.getstate() == states[1]
            assert np.random.get_state()[1].tolist() == states[2]


def sample_losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Attending(nn.Module):
    """Attention that takes the batch for a sequence."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 1, batch_first=True)

    def forward(self, x):
        return self.attention(x[None], x[None], x[None])[0][0]


RANDOM = {
    "functional dropout": (Called(lambda x: F.dropout(x, 0.2)), r"block \(Called\)"),
    "functional dropout between layers": (Between(lambda x: F.dropout(x, 0.2)), r"block \(Between\)"),
    "deeper": (nn.Sequential(nn.Linear(D, D), Called(F.dropout)), r"block\.1 \(Called\)"),
    "noise": (Called(lambda x: x + 0.1 * torch.randn_like(x)), r"block \(Called\)"),
    "a layer that is rarely doubled": (Called(rarely), r"block \(Called\)"),
    "numpy's noise": (Called(lambda x: x * np.random.rand()), r"block \(Called\)"),
}
COUPLED = {
    "centring": (Called(lambda x: x - x.mean(0)), r"block \(Called\)"),
    "centring between layers": (Between(lambda x: x - x.mean(0)), r"block \(Between\)"),
    "functional BatchNorm": (Called(lambda x: F.batch_norm(x, x.new_zeros(D), x.new_ones(D), training=True)), "block"),
    "deeper": (nn.Sequential(nn.Linear(D, D), Called(lambda x: x / x.abs().max())), r"block\.1 \(Called\)"),
    "attention over the batch": (Attending(), r"block\.attention \(MultiheadAttention\)"),
}


@pytest.mark.parametrize("params", ["all", "last", ["head"]])
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_named(name, params):
    block, where = RANDOM[name]
    with pytest.raises(InputError, match=rf"two runs on the same samples; {where} gives something else"):
        scored(Stack(block), params)


@pytest.mark.parametrize("params", ["all", "last"])
@pytest.mark.parametrize("name", COUPLED)
def test_what_depends_on_the_rest_of_the_batch_is_named(name, params):
    block, where = COUPLED[name]
    with pytest.raises(
        InputError,
        match=rf"rest of its batch; {where}.* gives sample \d something else|Are there statistics of the batch",
    ):
        scored(Stack(block), params)


def test_the_sample_that_others_change_is_named():
    model = Stack(Called(lambda x: torch.cat([x[:1], x[1:] + x[:1]])))
    with pytest.raises(InputError, match=r"block \(Called\) gives sample 1 something else"):
        scored(model)


def test_fewer_samples_are_looked_at_where_memory_does_not_suffice():
    sizes = []

    def losses(model, batch):
        sizes.append(len(batch[1]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("too many")
        return sample_losses(model, batch)

    ipfast.query(Stack(nn.Identity()), data(), params="all", loss=losses, batch_size=2)
    assert sizes == [4, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2]


def test_a_state_that_grows_is_named_and_stays_what_it_was():
    model = Stack(Counting())
    with pytest.raises(InputError, match=r"block \(Counting\)"):
        scored(model)
    assert model.block.seen == 0


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sound_networks_pass(name, dtype):
    model, x, y = PROBLEMS[name](8)
    model, x = model.to(dtype), x.to(dtype) if x.dtype.is_floating_point else x
    before, state = snapshot(model), torch.get_rng_state()
    query = ipfast.query(model, (x, y), params="all")
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(query.terms[0].gradients[next(iter(dict(model.named_parameters())))]).all()


class Narrow(nn.Module):
    """A network that computes in bfloat16 and gives float32, whatever casts it."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = Stack(nn.Linear(D, D)).to(torch.bfloat16 if how == "parameters" else torch.float32), how

    def forward(self, x):
        if self.how == "parameters":
            z = self.inner(x.bfloat16())
        else:
            with torch.autocast("cpu", torch.bfloat16):
                z = self.inner(x)
        return z.float() * (1 + 0.004 * len(x))  # differs by batch size, as rounding to 8 bits may


@pytest.mark.parametrize("how", ["parameters", "autocast"])
def test_rounding_of_a_network_that_computes_in_bfloat16_is_no_defect(how):
    x, y = data()
    ipfast.query(Narrow(how).eval(), (x.float(), y), params=["head"])


def test_rounding_of_losses_that_are_nearly_zero_is_no_defect():
    model, (x, y) = Stack(nn.Identity()).float(), data()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([40.0, 0.0, 0.0]))

    def losses(model, batch, size):
        z = model(batch[0])
        return F.cross_entropy(z, torch.zeros_like(batch[1]), reduction="none") + size * len(z)

    ipfast.query(model, (x.float(), y), params="all", loss=lambda *given: losses(*given, size=1e-7))
    with pytest.raises(InputError, match="the loss itself"):
        ipfast.query(model, (x.float(), y), params="all", loss=lambda *given: losses(*given, size=1e-2))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            r"shape \[4\] for 4 samples; got shape \[\].*reduction",
        ),
        (lambda model, batch: F.mse_loss(model(batch[0]), model(batch[0]), reduction="none"), r"got shape \[4, 3\]"),
        (lambda model, batch: 1.0, "got a float"),
        (lambda model, batch: sample_losses(model, batch).detach(), "no gradient reaches any of 4, such as first.weight"),
        (lambda model, batch: sample_losses(model, batch) / sample_losses(model, batch).mean(), "the loss itself gives"),
        (lambda model, batch: sample_losses(model, batch) * torch.rand(len(batch[1])), "two runs.* the loss itself gives"),
    ],
    ids=["mean", "elements", "number", "detached", "of the batch", "random"],
)
def test_a_loss_of_ones_own_must_be_of_samples(loss, words):
    with pytest.raises(InputError, match=words):
        scored(Stack(nn.Identity()), loss=loss)


def test_a_loss_of_another_model_than_it_is_given_is_refused():
    model = Stack(nn.Identity())
    with pytest.raises(InputError, match="call the model that it is given"):
        scored(model, loss=lambda _, batch: sample_losses(model, batch))
    scores = scored(model, loss=sample_losses)
    assert_relative(scores.values, scored(model).values, FLOAT64_RELATIVE)


def test_parameters_that_the_loss_does_not_use_are_refused():
    model = Stack(nn.Identity())
    model.unused = nn.Linear(2, 2).double().eval()
    with pytest.raises(InputError, match=r"any of 2, such as unused\.weight"):
        scored(model, ["unused"])


def test_a_model_that_cannot_take_one_sample_is_refused():
    for loss in ("cross_entropy", sample_losses):
        with pytest.raises(InputError, match="a single"):
            scored(Stack(Called(torch.squeeze)), loss=loss)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_parameter_that_is_not_finite_is_named(bad):
    model = Stack(nn.Linear(D, D))
    with torch.no_grad():
        model.block.bias[2] = bad
    x, y = data(12)
    with pytest.raises(InputError, match=r"finite parameters of the model; block\.bias"):
        ipfast.score(model, (x[:8], y[:8]), (x[8:], y[8:]), params=["head"], progress=False)
    with pytest.raises(InputError, match=r"block\.bias"):
        ipfast.query(model, (x, y), params=["head"])


def test_a_checkpoint_that_is_not_finite_is_refused():
    model, (x, y) = Stack(nn.Identity()), data(12)
    state = {**model.state_dict(), "head.bias": torch.full((C,), torch.nan, dtype=torch.float64)}
    method = ipfast.Method(points=ipfast.Checkpoints([model.state_dict(), state]))
    with pytest.raises(InputError, match=r"finite parameters; head\.bias of one"):
        ipfast.score(model, (x[:8], y[:8]), (x[8:], y[8:]), params="all", method=method, progress=False)


def test_masks_may_hold_infinity_and_statistics_may_not_be_nan():
    model, x, y = images(8)
    model.register_buffer("mask", torch.full((3, 3), -torch.inf))
    ipfast.query(model, (x, y), params="all")
    model.norm.running_var[1] = torch.nan
    with pytest.raises(InputError, match=r"norm\.running_var has NaN"):
        ipfast.query(model, (x, y), params="all")


def test_float16_is_warned_of():
    model = Stack(nn.Identity()).half()
    x, y = data()
    with pytest.warns(IpfastWarning, match=r"first\.weight is float16"):
        ipfast.query(model, (x.half(), y), params="all")


class Augmented(Dataset):
    """Samples with noise that is new each time, drawn by one of the three generators that there are."""

    def __init__(self, draw, of_labels=False):
        self.x, self.y = data()
        self.draw, self.of_labels, self.reads = draw, of_labels, 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        if self.of_labels:
            self.reads += 1
            return self.x[index], (self.y[index] + self.reads) % C
        return self.x[index] + self.draw(), self.y[index]


DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}


@pytest.mark.parametrize("params", ["all", "last"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_augmentation_is_warned_of(draw, params):
    for train in (Augmented(draw), DataLoader(Augmented(draw), batch_size=3)):
        with pytest.warns(IpfastWarning, match="the inputs of train differ each time.* without augmentation"):
            ipfast.score(Stack(nn.Identity()), train, method="loss", params=params, progress=False)
    with pytest.warns(IpfastWarning, match="the inputs of val differ"):
        ipfast.query(Stack(nn.Identity()), Augmented(draw), params=params)


def test_labels_that_change_are_warned_of():
    with pytest.warns(IpfastWarning, match="the labels of train differ"):
        scored_data(Augmented(random.random, of_labels=True))


def test_augmentation_in_workers_is_warned_of():
    with pytest.warns(IpfastWarning, match="the inputs of train differ"):
        scored_data(DataLoader(Augmented(DRAWS["torch"]), batch_size=4, num_workers=1))


def scored_data(train):
    return ipfast.score(Stack(nn.Identity()), train, method="loss", params="all", progress=False)


def test_data_sets_of_every_form_that_do_not_change_pass():
    x, y = data()
    expected = scored(Stack(nn.Identity()), train=(x, y)).values
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]

    class OfBatches(Dataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

    pairs = TensorDataset(x, y)
    for train in (
        pairs,
        DataLoader(pairs, batch_size=3, generator=torch.Generator()),
        DataLoader(pairs, batch_sampler=[[0, 1, 2], [3, 4, 5, 6, 7]]),
        DataLoader(pairs, sampler=range(8), batch_size=3),
        DataLoader(OfBatches(), batch_size=None),
    ):
        assert_relative(scored(Stack(nn.Identity()), train=train).values, expected, FLOAT64_RELATIVE)


def test_a_stream_that_can_be_read_only_once_is_left_whole():
    x, y = data()

    class Stream(IterableDataset):
        def __init__(self):
            self.rows = iter(zip(x, y, strict=True))

        def __iter__(self):
            return self.rows

    expected = scored(Stack(nn.Identity()), train=(x, y)).values
    scores = ipfast.score(
        Stack(nn.Identity()),
        DataLoader(Stream(), batch_size=3),
        tuple(part[8:] for part in data(12)),
        params="all",
        progress=False,
    )
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)
    order = iter(range(8))  # a sampler that is used up
    scores = scored(Stack(nn.Identity()), train=DataLoader(TensorDataset(x, y), sampler=order, batch_size=3))
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


def test_a_loader_keeps_its_random_numbers():
    generator = torch.Generator().manual_seed(3)
    ipfast.query(Stack(nn.Identity()), DataLoader(TensorDataset(*data()), batch_size=8, generator=generator), params="all")
    once = torch.Generator().manual_seed(3)
    list(DataLoader(TensorDataset(*data()), batch_size=8, generator=once))
    assert torch.equal(generator.get_state(), once.get_state())


def test_hooks_are_removed_when_a_module_fails():
    def failing(x):
        raise RuntimeError("broken")

    model = Stack(Called(failing))
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken"):
        ipfast.query(model, data(), params="all")
    assert_unchanged(model, before)


def test_nothing_is_looked_for_without_check():
    x, y = data(12)
    model = Stack(Called(F.dropout))
    assert len(ipfast.score(model, (x[:8], y[:8]), (x[8:], y[8:]), params="all", check=False, progress=False)) == 8
    assert len(ipfast.score(model, Augmented(random.random), (x, y), params="last", check=False, progress=False)) == 8


def test_a_final_softmax_is_warned_of():
    """Of a whole network, whose end need not be a linear layer; without the softmax nothing is said."""
    x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    ipfast.score(body, (x, y), (x[:4], y[:4]), params="all", progress=False)
    with pytest.warns(ipfast.IpfastWarning, match="the model gives probabilities"):
        ipfast.score(nn.Sequential(body, nn.Softmax(1)).eval(), (x, y), (x[:4], y[:4]), params="all", progress=False)
