"""score() over whole networks: every method, every way for data to come, against per-sample autograd in float64."""

import pytest
import torch
from networks import PROBLEMS, assert_unchanged, gradient_loop, images, products, snapshot, squared_norms
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ipfast
from ipfast.errors import InputError, InputTypeError, NonFiniteError


def problem(name, train=9, val=6):
    """(model, (train inputs, labels), (val inputs, labels))"""
    model, x, y = PROBLEMS[name](train + val)
    return model, (x[:train], y[:train]), (x[train:], y[train:])


def truth(model, train, val, weights=None):
    """⟨mean validation gradient, g_i⟩ by autograd."""
    gradients = gradient_loop(model, *val)
    query = {name: g.mean(dim=0, keepdim=True) for name, g in gradients.items()}
    return products(gradient_loop(model, *train), query)[:, 0]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ["auto", "forward", "ghost", "explicit"])
def test_ip_over_all_parameters_is_the_inner_product_of_gradients(name, engine):
    model, train, val = problem(name)
    before = snapshot(model)
    scores = ipfast.score(model, train, val, params="all", engine=engine, progress=False)
    assert_unchanged(model, before)
    assert_relative(scores.values, truth(model, train, val), FLOAT64_RELATIVE)
    assert scores.engine == ("forward" if engine == "auto" else engine)
    assert scores.stats["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [1, 4, 64])
def test_batch_sizes_agree(size):
    model, train, val = problem("images")
    scores = ipfast.score(model, train, val, params="all", batch_size=size, progress=False)
    assert_relative(scores.values, truth(model, train, val), BATCH_RELATIVE)


def test_loaders_datasets_and_dictionaries_give_the_same_scores():
    model, train, val = problem("texts")
    expected = truth(model, train, val)

    class Called(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens, unused=None):
            return {"logits": self.inner(tokens)}

    class Dictionaries(Dataset):
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data[1])

        def __getitem__(self, index):
            return {"tokens": self.data[0][index], "labels": self.data[1][index]}

    wrapped = Called(model).eval()
    for data in (
        (Dictionaries(train), Dictionaries(val)),
        (DataLoader(Dictionaries(train), batch_size=4), DataLoader(Dictionaries(val), batch_size=5)),
    ):
        assert_relative(ipfast.score(wrapped, *data, params="all", progress=False).values, expected, FLOAT64_RELATIVE)
    tuples = ipfast.score(
        model, DataLoader(TensorDataset(*train), batch_size=2), TensorDataset(*val), params="all", progress=False
    )
    assert_relative(tuples.values, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize("engine", ["auto", "explicit"])
def test_several_queries_give_a_column_each(engine):
    model, train, val = problem("images", val=7)
    groups = torch.tensor([0, 1, 0, 2, 1, 2, 2])
    scores = ipfast.score(model, train, val, params="all", val_groups=groups, engine=engine, progress=False)
    for q in range(3):
        rows = groups == q
        assert_relative(scores.values[:, q], truth(model, train, (val[0][rows], val[1][rows])), FLOAT64_RELATIVE)
    assert scores.engine == ("ghost" if engine == "auto" else engine)


def test_every_validation_sample_may_be_a_query():
    model, train, val = problem("images")
    scores = ipfast.score(model, train, val, params="all", aggregate=False, progress=False)
    expected = products(gradient_loop(model, *train), gradient_loop(model, *val))
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ["auto", "explicit"])
def test_self_influence_is_the_negated_squared_norm(name, engine):
    model, train, _ = problem(name)
    gradients = gradient_loop(model, *train)
    expected = -sum(g.flatten(1).square().sum(dim=1) for g in gradients.values())
    scores = ipfast.score(model, train, method="self_tracin", params="all", engine=engine, progress=False)
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


class Scaled(nn.Module):
    """A network with a parameter that is a number."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.fc(x).sin() * self.scale


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_a_parameter_may_be_a_number(engine):
    torch.manual_seed(0)
    model, x, y = Scaled().double().eval(), torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    train, val = (x[:6], y[:6]), (x[6:], y[6:])
    scores = ipfast.score(model, train, val, params="all", engine=engine, progress=False)
    assert_relative(scores.values, truth(model, train, val), FLOAT64_RELATIVE)
    if engine != "forward":
        norms = ipfast.score(model, train, method="self_tracin", params="all", engine=engine, progress=False)
        assert_relative(norms.values, -squared_norms(gradient_loop(model, *train)), FLOAT64_RELATIVE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_scores_are_the_same_where_the_caller_has_switched_gradients_off(mode, engine):
    model, *plain = problem("images")
    with mode():
        _, train, val = problem("images")  # tensors of that mode
        arguments = {"params": "all", "engine": engine, "progress": False}
        scores = ipfast.score(model, train, val, **arguments)
        stored = ipfast.query(model, val, params="all")
        by_batch = ipfast.Scorer(model, stored)(train)
        selves = None if engine == "forward" else ipfast.score(model, train, method="self_tracin", **arguments)
    expected = truth(model, *plain)
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)
    assert_relative(by_batch, expected, FLOAT64_RELATIVE)
    if selves is not None:
        assert_relative(selves.values, -squared_norms(gradient_loop(model, *plain[0])), FLOAT64_RELATIVE)


def test_the_control_loss_is_the_negated_loss():
    model, train, _ = problem("images")
    scores = ipfast.score(model, train, method="loss", params="all", progress=False)
    with torch.no_grad():
        expected = -nn.functional.cross_entropy(model(train[0]), train[1], reduction="none")
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


def masked(model, member, rate, *, scope_names=None, rescale=True):
    """The model at θ_m, by hand."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.dim() >= 2 and (scope_names is None or name in scope_names):
                dropped = ipfast.dropout_mask(name, tuple(parameter.shape), rate, 0, member)
                parameter.mul_(1 / (1 - rate) if rescale else 1)
                parameter.view(-1)[dropped] = 0
    return other


@pytest.mark.parametrize("name", PROBLEMS)
def test_dropout_members_are_the_model_with_masked_weights(name):
    model, train, val = problem(name)
    before = snapshot(model)
    method = ipfast.Method(points=ipfast.Dropout(3, 0.1, scope="all"))
    scores = ipfast.score(model, train, val, method=method, params="all", progress=False, keep_members=True)
    assert_unchanged(model, before)
    for member in range(3):
        expected = truth(masked(model, member, 0.1), train, val)
        assert_relative(scores.members[:, member], expected, FLOAT64_RELATIVE)
    assert_relative(scores.values, scores.members.mean(dim=1), FLOAT64_RELATIVE)


@pytest.mark.parametrize("chain", [False, True])
def test_masks_in_place_give_the_same_scores_and_leave_the_model_as_it_was(monkeypatch, chain):
    model, train, val = problem("texts")
    method = ipfast.Method(points=ipfast.Dropout(2, 0.1, scope="all", chain=chain))
    copied = ipfast.score(model, train, val, method=method, params="all", progress=False)
    before = snapshot(model)
    monkeypatch.setattr("ipfast.groups.network.COPY_SHARE", 0.0)
    edited = ipfast.score(model, train, val, method=method, params="all", progress=False)
    assert torch.equal(edited.values, copied.values)
    assert_unchanged(model, before)
    stored = ipfast.query(model, val, method=method, params="all")
    scorers = [ipfast.Scorer(model, stored, group=member) for member in range(2)]
    assert_relative(scorers[0](train) + scorers[1](train), copied.values, FLOAT64_RELATIVE)
    assert_unchanged(model, before)
    train[0][2] = 99  # no such token
    with pytest.raises(IndexError):
        ipfast.score(model, train, val, method=method, params="all", progress=False)
    assert_unchanged(model, before)


def test_masks_of_the_scored_parameters_alone():
    model, train, val = problem("images")
    names = {"fc.weight", "fc.bias"}
    method = ipfast.Method(points=ipfast.Dropout(2, 0.2))
    scores = ipfast.score(model, train, val, method=method, params=["^fc"], progress=False)
    expected = 0
    for member in range(2):
        other = masked(model, member, 0.2, scope_names=names)
        gradients = {n: g for n, g in gradient_loop(other, *train).items() if n in names}
        query = {n: g.mean(dim=0, keepdim=True) for n, g in gradient_loop(other, *val).items() if n in names}
        expected = expected + products(gradients, query)[:, 0] / 2
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


def test_masking_the_backbone_recomputes_the_features_of_the_last_layer():
    model, train, val = problem("images")
    method = ipfast.Method(points=ipfast.Dropout(2, 0.2, scope="all"))
    scores = ipfast.score(model, train, val, method=method, progress=False)
    names, expected = {"fc.weight", "fc.bias"}, 0
    for member in range(2):
        other = masked(model, member, 0.2)
        gradients = {n: g for n, g in gradient_loop(other, *train).items() if n in names}
        query = {n: g.mean(dim=0, keepdim=True) for n, g in gradient_loop(other, *val).items() if n in names}
        expected = expected + products(gradients, query)[:, 0] / 2
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)
    assert scores.engine == "head"


def test_checkpoints_carry_their_buffers():
    model, train, val = problem("images")
    other, _, _ = images(1, seed=5)
    states = [model.state_dict(), other.state_dict()]
    method = ipfast.Method(points=ipfast.Checkpoints(states, weights=[0.5, 2.0]))
    scores = ipfast.score(model, train, val, method=method, params="all", progress=False)
    expected = 0.5 * truth(model, train, val) + 2.0 * truth(other, train, val)
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


def test_extra_training_scores_the_states_it_reaches():
    model, train, val = problem("images")
    before = snapshot(model)
    points = ipfast.ExtraSGD(train, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), members=2)
    scores = ipfast.score(model, train, val, method=ipfast.Method(points=points), params="all", progress=False)
    assert_unchanged(model, before)
    again = ipfast.score(model, train, val, method=ipfast.Method(points=points), params="all", progress=False)
    assert torch.equal(scores.values, again.values)
    assert scores.stats["members"] == 2
    assert not torch.equal(scores.values, ipfast.score(model, train, val, params="all", progress=False).values)


def test_a_stored_query_gives_the_same_scores(tmp_path):
    model, train, val = problem("images")
    direct = ipfast.score(model, train, val, params=["norm", "fc"], progress=False)
    query = ipfast.query(model, val, params=["norm", "fc"])
    query.save(tmp_path / "query.safetensors")
    loaded = ipfast.Query.load(tmp_path / "query.safetensors")
    assert torch.equal(ipfast.score(model, train, loaded, progress=False).values, direct.values)
    scorer = ipfast.Scorer(model, loaded)
    assert_relative(scorer(train), direct.values, FLOAT64_RELATIVE)


def test_the_head_alone_agrees_with_the_head_engine():
    model, train, val = problem("images")
    whole = ipfast.score(model, train, val, params=["^fc"], progress=False)
    head = ipfast.score(model, train, val, progress=False)
    assert_relative(whole.values, head.values, FLOAT64_RELATIVE)


def test_token_losses_are_means_over_the_counted_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)).double().eval()
    x, y = torch.randint(0, 7, (8, 4)), torch.randint(0, 5, (8, 4))
    y[0, 2:] = y[3, 1] = y[5] = -100
    train, val = (x, y), (x[:3], y[:3])

    def losses(inputs, labels):
        flat = nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
        return flat.view(labels.shape).sum(1) / (labels != -100).sum(1).clamp(min=1)

    def gradients(inputs, labels):
        named = dict(model.named_parameters())
        rows = [
            torch.autograd.grad(losses(inputs[i : i + 1], labels[i : i + 1]).sum(), list(named.values()))
            for i in range(len(labels))
        ]
        return {name: torch.stack(column) for name, column in zip(named, zip(*rows, strict=True), strict=True)}

    query = {name: g.mean(dim=0, keepdim=True) for name, g in gradients(*val).items()}
    expected = products(gradients(*train), query)[:, 0]
    scores = ipfast.score(model, train, val, params="all", progress=False)
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)
    assert scores.values[5] == 0


@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("impact", ["utility", lambda z, y: z.softmax(1).gather(1, y[:, None]).square().mean()])
def test_token_queries_are_those_of_the_head_engine(tokens, impact):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5)).double().eval()
    x, y = torch.randint(0, 7, (9, 4)), torch.randint(0, 5, (9, 4))
    y[0, 2:] = y[3, 1] = y[5] = y[7] = -100  # two sequences without a token that counts, one of them in V
    train, val = (x[:6], y[:6]), (x[6:], y[6:])
    options = {"tokens": tokens, "impact": impact, "batch_size": 2, "progress": False}
    head = ipfast.score(model, TensorDataset(*train), TensorDataset(*val), **options)
    whole = ipfast.score(model, TensorDataset(*train), TensorDataset(*val), params=["^1"], **options)
    assert_relative(whole.values, head.values, FLOAT64_RELATIVE)
    assert whole.stats["M"] == head.stats["M"] == 2
    assert whole.stats["val_empty_sequences"] == head.stats["val_empty_sequences"] == 1


def test_token_labels_of_another_length_are_refused():
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5)).eval()
    x, y = torch.randint(0, 7, (4, 3)), torch.randint(0, 5, (4, 3))
    with pytest.raises(InputError, match="of the same tokens"):
        ipfast.score(model, (x, y[:, :2]), (x, y), params="all", check=False, progress=False)


def test_nan_inputs_are_found_and_leave_no_output(tmp_path):
    model, train, val = problem("images")
    train[0][4, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="4"):
        ipfast.score(model, train, val, params="all", progress=False, out=tmp_path / "scores.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"params": "most"}, InputTypeError, "params"),
        ({"params": ["nothing"]}, InputError, "none of its"),
        ({"params": "all", "engine": "head"}, InputError, "params='last'"),
        ({"engine": "forward"}, InputError, "params"),
        ({"params": "all", "method": "self_tracin", "val": None, "engine": "forward"}, InputError, "self-influence"),
        ({"params": "all", "head": "fc"}, InputError, "head"),
        ({"params": "all", "include_bias": False}, InputError, "include_bias"),
        ({"params": "all", "backend": "reference"}, InputError, "expected no backend='reference'"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(arguments, error, words):
    model, train, val = problem("images")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"val": val, **arguments}
    with pytest.raises(error, match=words):
        ipfast.score(model, train, progress=False, **arguments)
    assert not calls


def test_train_mode_is_refused():
    model, train, val = problem("images")
    model.train()
    with pytest.raises(InputError, match="eval"):
        ipfast.score(model, train, val, params="all", progress=False)
