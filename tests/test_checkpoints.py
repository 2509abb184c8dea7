"""Points of a training run: TracIn's checkpoints and GEX's extra training, against autograd at each state."""

import copy

import oracles
import pytest
import torch
from problems import ROWS, VALIDATION_ROWS, Recorded, linear_problem, network_problem
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch.utils.data import DataLoader, TensorDataset

import ipfast
from ipfast.points import base


def moved(model, count=3):
    """States of the model with other parameters and buffers, in a fixed order."""
    generator = torch.Generator().manual_seed(5)
    states = []
    for _ in range(count):
        state = copy.deepcopy(model.state_dict())
        for value in state.values():
            if value.dtype.is_floating_point:
                value += 0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
        states.append(state)
    return states


def truth(problem, states):
    """[N, T] by loading each state into a copy of the model and one backward pass a sample."""
    columns = []
    for state in states:
        model = copy.deepcopy(problem.model)
        model.load_state_dict(state)
        head = model if problem.model is problem.head else model.fc
        gradients = [
            oracles.model_gradients(model, head, list(zip(*data, strict=True)), "cross_entropy")
            for data in (problem.train, problem.val)
        ]
        columns.append(gradients[0] @ gradients[1].mean(dim=0))
    return torch.stack(columns, dim=1)


def tracin(states, weights=None):
    return ipfast.Method(points=ipfast.Checkpoints(states, weights), name="tracin")


def stored(states, kind, folder):
    paths = []
    for index, state in enumerate(states):
        paths.append(folder / f"{index}.{'safetensors' if kind == 'safetensors' else 'pt'}")
        save_file(state, paths[-1]) if kind == "safetensors" else torch.save(state, paths[-1])
    return paths


@pytest.mark.parametrize("kind", ["values", "safetensors", "torch"])
@pytest.mark.parametrize("make", [linear_problem, network_problem])
def test_tracin_is_autograd_at_every_state_with_its_own_buffers(make, kind, tmp_path):
    problem = make()
    states = moved(problem.model)
    before = copy.deepcopy(problem.model.state_dict())
    given = states if kind == "values" else stored(states, kind, tmp_path)
    got = ipfast.score(problem.model, problem.train, problem.val, method=tracin(given), keep_members=True)
    expected = truth(problem, states)
    assert_relative(got.members, expected, FLOAT64_RELATIVE)
    assert_relative(got.values, expected.mean(dim=1), FLOAT64_RELATIVE)
    rates = [0.5, 0.25, 0.125]
    got = ipfast.score(problem.model, problem.train, problem.val, method=tracin(given, rates))
    assert_relative(got.values, expected @ torch.tensor(rates, dtype=torch.float64), FLOAT64_RELATIVE)
    assert got.method == "tracin"
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())


@pytest.mark.parametrize("make", [linear_problem, network_problem])
def test_each_file_is_read_once(make, tmp_path, monkeypatch):
    problem = make()
    paths = stored(moved(problem.model), "torch", tmp_path)
    read = []
    original = base.read_state
    monkeypatch.setattr(base, "read_state", lambda where, argument, path: read.append(path) or original(where, argument, path))
    ipfast.score(problem.model, problem.train, problem.val, method=tracin(paths))
    assert read == paths


def test_a_network_runs_once_a_state():
    problem = network_problem()
    recorded = Recorded(problem.model)
    states = [{f"inner.{name}": value for name, value in state.items()} for state in moved(problem.model)]
    runs = []
    recorded.register_forward_hook(lambda module, arguments, _: runs.append(len(arguments[0])))
    ipfast.score(recorded, problem.train, problem.val, method=tracin(states), head="inner.fc", check=False)
    assert not recorded.calls  # the caller's model is not the one that states are loaded into
    assert sum(runs) in (0, 3 * (ROWS + VALIDATION_ROWS))  # a deep copy keeps the hook


def test_a_query_refers_to_files_and_notices_a_change(tmp_path):
    problem = network_problem()
    states = moved(problem.model)
    paths = stored(states, "safetensors", tmp_path)
    direct = ipfast.score(problem.model, problem.train, problem.val, method=tracin(paths))
    ipfast.query(problem.model, problem.val, method=tracin(paths)).save(tmp_path / "q.safetensors")
    query = ipfast.Query.load(tmp_path / "q.safetensors")
    assert torch.equal(ipfast.score(problem.model, problem.train, query).values, direct.values)
    parts = [ipfast.Scorer(problem.model, query, group=group)(problem.train) for group in range(3)]
    assert_relative(parts[0] + parts[1] + parts[2], direct.values, FLOAT64_RELATIVE)
    with pytest.raises(
        ipfast.InputError, match="Scorer: expected group to be a number, since the points do not share features"
    ):
        ipfast.Scorer(problem.model, query)
    with pytest.raises(ipfast.InputError, match="Scorer: expected group to be below the number of groups; got 3"):
        ipfast.Scorer(problem.model, query, group=3)
    save_file(states[0], paths[1])
    with pytest.raises(ipfast.InputError, match=r"expected the checkpoint '.*1\.safetensors' that the query was made with"):
        ipfast.score(problem.model, problem.train, query)


def test_a_query_holds_the_states_of_a_head(tmp_path):
    problem = linear_problem()
    method = tracin(moved(problem.model))
    ipfast.query(problem.model, problem.val, method=method).save(tmp_path / "q.safetensors")
    query = ipfast.Query.load(tmp_path / "q.safetensors")
    direct = ipfast.score(problem.model, problem.train, problem.val, method=method).values
    assert torch.equal(ipfast.score(problem.model, problem.train, query).values, direct)
    assert torch.equal(ipfast.Scorer(problem.model, query)(problem.train), direct)


def test_a_query_does_not_hold_networks(tmp_path):
    problem = network_problem()
    query = ipfast.query(problem.model, problem.val, method=tracin(moved(problem.model)))
    with pytest.raises(ipfast.InputError, match=r"Query\.save: expected checkpoints of a whole network as files"):
        query.save(tmp_path / "q.safetensors")


def test_tracin_without_checkpoints_shows_the_call():
    problem = linear_problem()
    with pytest.raises(
        ipfast.InputError, match=r"score: expected the checkpoints .*ipfast\.Method\(points=ipfast\.Checkpoints"
    ):
        ipfast.score(problem.model, problem.train, problem.val, method="tracin")


@pytest.mark.parametrize(
    ("states", "weights", "error", "message"),
    [
        ("a.pt", None, ipfast.InputTypeError, "expected states to be a list of state dicts or paths; got str"),
        (["missing.pt"], None, ipfast.MissingFileError, "expected states to be a file; 'missing.pt' does not exist"),
        ([{"model": {}}], None, ipfast.InputTypeError, "expected states to hold state dicts .*; got a dict under 'model'"),
        ([3], None, ipfast.InputTypeError, "expected states to hold .* got int"),
        ([{}, {}], [1.0], ipfast.InputError, "expected weights to be one finite number for each of the 2 states"),
        ([{}], [float("inf")], ipfast.InputError, "expected weights to be one finite"),
    ],
)
def test_what_is_no_checkpoint_is_refused(states, weights, error, message):
    with pytest.raises(error, match=f"Checkpoints: {message}"):
        ipfast.Checkpoints(states, weights)


def test_foreign_files_and_states_are_refused(tmp_path):
    problem = linear_problem()
    torch.save({"model": problem.model.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    torch.save(problem.model, tmp_path / "pickled.pt")
    (tmp_path / "text.safetensors").write_text("no header")
    cases = [
        (tmp_path / "nested.pt", "expected states to hold state dicts .* with model, epoch"),
        (tmp_path / "pickled.pt", "expected states to be files of tensors; .* cannot be read"),
        (tmp_path / "text.safetensors", "expected states to be files of tensors; .* cannot be read"),
        ({"weight": torch.zeros(2, 2)}, r"expected states to be state dicts of the nn\.Linear, for a head on features; one"),
        ({**problem.model.state_dict(), "bias": torch.full((5,), torch.nan)}, "expected a finite bias of the head"),
    ]
    for state, message in cases:
        with pytest.raises(ipfast.InputError, match=f"score: {message}"):
            ipfast.score(problem.model, problem.train, problem.val, method=tracin([state]))


# GEX


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def gex(train, **options):
    return ipfast.Method(points=ipfast.ExtraSGD(train, sgd, **{"members": 3, **options}), name="gex")


def states_of(query):
    return [term.point.state.values for term in query.terms if term.point.state is not None]


@pytest.mark.parametrize("arrival", ["pair", "dataset", "loader", "seeded"])
@pytest.mark.parametrize("make", [linear_problem, network_problem])
def test_gex_is_autograd_at_states_that_the_seed_decides(make, arrival):
    problem = make()
    data = TensorDataset(*problem.train)
    generator = torch.Generator().manual_seed(9)
    train = {
        "pair": problem.train,
        "dataset": data,
        "loader": DataLoader(data, batch_size=8, shuffle=True),
        "seeded": DataLoader(data, batch_size=8, shuffle=True, generator=generator),
    }[arrival]
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    randomness = torch.get_rng_state(), generator.get_state()
    method = gex(train, seed=4)
    states = states_of(ipfast.query(problem.model, problem.val, method=method))
    got = ipfast.score(problem.model, problem.train, problem.val, method=method)
    assert_relative(got.values, truth(problem, states).mean(dim=1), FLOAT64_RELATIVE)
    assert len(states) == 3
    assert not torch.equal(states[0][next(iter(before))], states[1][next(iter(before))])
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert problem.model.training == (make is linear_problem)
    assert all(value.grad is None for value in problem.model.parameters())
    assert torch.equal(torch.get_rng_state(), randomness[0])
    assert torch.equal(generator.get_state(), randomness[1])
    other = ipfast.score(problem.model, problem.train, problem.val, method=gex(train, seed=5))
    assert make is linear_problem or not torch.equal(other.values, got.values)


@pytest.mark.parametrize("make", [linear_problem, network_problem])
@pytest.mark.parametrize("target", ["val", "self"])
def test_the_loss_deviation_estimator(target, make):
    problem = make()
    points = ipfast.ExtraSGD(problem.train, sgd, members=3, estimator="loss_deviation")
    method = ipfast.Method(points=points, target=target)
    val = problem.val if target == "val" else None
    states = states_of(ipfast.query(problem.model, val, method=method, train=problem.train))
    got = ipfast.score(problem.model, problem.train, val, method=method, keep_members=True)

    def losses(state, data):
        model = copy.deepcopy(problem.model).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(data[0]), data[1], reduction="none")

    start = problem.model.state_dict()
    base_train, base_val = losses(start, problem.train).clamp(min=0.05), losses(start, problem.val).mean().clamp(min=0.05)
    columns = []
    for state in states:
        own = losses(state, problem.train) - base_train
        columns.append(own * (losses(state, problem.val).mean() - base_val) if target == "val" else -own.square())
    expected = torch.stack(columns, dim=1)
    assert_relative(got.members, expected, FLOAT64_RELATIVE)
    assert_relative(got.values, expected.mean(dim=1), FLOAT64_RELATIVE)


def test_the_loss_deviation_query_comes_back(tmp_path):
    problem = linear_problem()
    method = gex(problem.train, estimator="loss_deviation")
    query = ipfast.query(problem.model, problem.val, method=method)
    query.save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(tmp_path / "q.safetensors")
    direct = ipfast.score(problem.model, problem.train, problem.val, method=method).values
    assert torch.equal(ipfast.score(problem.model, problem.train, after).values, direct)
    assert torch.equal(ipfast.Scorer(problem.model, after)(problem.train), direct)


def test_gex_of_a_fitted_estimator_takes_its_labels():
    problem = linear_problem()
    names = [f"class {int(label)}" for label in problem.y]
    estimator = LogisticRegression().fit(problem.x.numpy(), names)
    train = (problem.x.float(), names)
    got = ipfast.score(estimator, train, (problem.x_val, names[: len(problem.y_val)]), method=gex(train))
    assert torch.isfinite(got.values).all()


def test_gex_without_its_arguments_shows_the_call():
    problem = linear_problem()
    with pytest.raises(ipfast.InputError, match=r"score: expected what to train on and an optimiser .*ipfast\.ExtraSGD\(train"):
        ipfast.score(problem.model, problem.train, problem.val, method="gex")


def test_what_gex_cannot_do_is_refused():
    problem = network_problem()
    problem.model.requires_grad_(False)
    with pytest.raises(ipfast.InputError, match="ExtraSGD: expected model to have parameters that require gradients"):
        ipfast.score(problem.model, problem.train, problem.val, method=gex(problem.train))
    method = gex(problem.train, estimator="loss_deviation")
    with pytest.raises(ipfast.InputError, match="expected no impact with the loss-deviation estimator"):
        ipfast.score(problem.model, problem.train, problem.val, method=method, impact=lambda z, y: z.sum())
    for options, message in [
        ({"members": 0}, "expected members"),
        ({"epochs": 0}, "expected epochs"),
        ({"seed": -1}, "expected seed"),
        ({"estimator": "loss"}, "expected estimator"),
        ({"optimizer": 0.1}, "expected optimizer to be a function"),
        ({"loss": "hinge"}, "expected loss"),
    ]:
        with pytest.raises(ipfast.IpfastError, match=f"ExtraSGD: {message}"):
            ipfast.ExtraSGD(problem.train, **options)
