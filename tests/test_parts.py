"""Scores taken apart: what each layer has in them, against per-sample autograd split by parameters."""

import csv

import numpy as np
import pytest
import torch
from networks import PROBLEMS, assert_unchanged, gradient_loop, products, snapshot, squared_norms
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast import Scores
from ipfast.errors import InputError, InputTypeError


def problem(name, train=9, val=6):
    """(model, (train inputs, labels), (val inputs, labels))"""
    model, x, y = PROBLEMS[name](train + val)
    return model, (x[:train], y[:train]), (x[train:], y[train:])


def split(gradients):
    """Layer -> the gradients of its parameters."""
    found = {}
    for name, value in gradients.items():
        found.setdefault(".".join(name.split(".")[:-1]), {})[name] = value
    return found


def expected_dots(gradients, queries):
    """[N, L, Q] and the names of the layers."""
    layers = split(gradients)
    return torch.stack([products(own, {name: queries[name] for name in own}) for own in layers.values()], dim=1), list(layers)


def mean_query(model, val):
    return {name: g.mean(dim=0, keepdim=True) for name, g in gradient_loop(model, *val).items()}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ["auto", "ghost"])
def test_each_layer_has_its_parameters_part_and_they_add_up(name, engine):
    model, train, val = problem(name)
    before = snapshot(model)
    scores = ipfast.score(model, train, val, params="all", engine=engine, by="layer", progress=False)
    assert_unchanged(model, before)
    expected, layers = expected_dots(gradient_loop(model, *train), mean_query(model, val))
    assert scores.layers == tuple(layers)
    assert scores.engine == "ghost"
    for index, layer in enumerate(layers):
        assert_relative(scores.of_layer(layer), expected[:, index, 0], FLOAT64_RELATIVE)
    assert_relative(scores.by_layer.sum(dim=1), scores.values, FLOAT64_RELATIVE)
    plain = ipfast.score(model, train, val, params="all", engine="ghost", progress=False)
    assert_relative(scores.values, plain.values, FLOAT64_RELATIVE)
    assert plain.by_layer is plain.layers is None


def test_attention_and_tied_weights_have_entries_of_their_own():
    """What goes through forward mode is told apart too, and a tied weight counts where it has its first name."""
    model, train, val = problem("texts")
    scores = ipfast.score(model, train, val, params="all", by="layer", progress=False)
    assert {"encoder.self_attn", "encoder.self_attn.out_proj", "embed"} <= set(scores.layers)
    assert bool((scores.of_layer("encoder.self_attn") != 0).all())


class TiedWithBias(nn.Module):
    """The output layer has the weight of the embedding, and a bias of its own; `unused` takes no part."""

    def __init__(self):
        super().__init__()
        self.embed, self.unused = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)).mean(1) * self.scale)


@pytest.mark.parametrize("target", ["val", "self"])
def test_a_tied_weight_and_the_bias_beside_it_belong_to_different_layers(target):
    torch.manual_seed(0)
    model, x, y = TiedWithBias().double().eval(), torch.randint(0, 7, (8, 3)), torch.arange(8) % 7
    train, val = (x[:5], y[:5]), (x[5:], y[5:])
    gradients = gradient_loop(model, *train)
    if target == "val":
        scores = ipfast.score(model, train, val, params="all", by="layer", progress=False)
        expected, layers = expected_dots(gradients, mean_query(model, val))
        expected = expected[..., 0]
    else:
        scores = ipfast.score(model, train, method="self_tracin", params="all", by="layer", progress=False)
        layers = split(gradients)
        expected = -torch.stack([squared_norms(own) for own in layers.values()], dim=1)
    assert scores.layers == tuple(layers) == ("", "embed", "unused", "head")
    for index, layer in enumerate(layers):
        assert_relative(scores.of_layer(layer), expected[:, index], FLOAT64_RELATIVE)
    assert not scores.of_layer("unused").any()


@pytest.mark.parametrize("name", PROBLEMS)
def test_self_influence_by_layer_is_each_layers_squared_norm(name):
    model, train, _ = problem(name)
    scores = ipfast.score(model, train, method="self_tracin", params="all", by="layer", progress=False)
    for layer, own in split(gradient_loop(model, *train)).items():
        assert_relative(scores.of_layer(layer), -squared_norms(own), FLOAT64_RELATIVE)
    assert_relative(scores.by_layer.sum(dim=1), scores.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize("pairs", [False, True])
def test_several_queries_give_parts_of_each(pairs):
    model, train, val = problem("texts", val=4)
    options = {"aggregate": False} if pairs else {"val_groups": ["a", "b", "b", "a"]}
    scores = ipfast.score(model, train, val, params=["norm", "twice"], by="layer", progress=False, **options)
    gradients = {n: g for n, g in gradient_loop(model, *train).items() if "norm" in n or "twice" in n}
    queries = gradient_loop(model, *val)
    if not pairs:
        queries = {n: torch.stack([g[[0, 3]].mean(0), g[[1, 2]].mean(0)]) for n, g in queries.items()}
    expected, layers = expected_dots(gradients, queries)
    assert scores.layers == tuple(layers)
    assert_relative(scores.by_layer, expected, FLOAT64_RELATIVE)
    assert_relative(scores.values, expected.sum(dim=1), FLOAT64_RELATIVE)
    if not pairs:
        assert scores.lowest(1, query="a").shape == (1,)


def test_members_are_averaged_by_layer_and_kept_as_a_whole():
    model, train, val = problem("images")
    method = ipfast.Method(points=ipfast.Dropout(3, 0.1, scope="all"))
    options = {"method": method, "params": "all", "keep_members": True, "progress": False}
    plain = ipfast.score(model, train, val, engine="ghost", **options)
    scores = ipfast.score(model, train, val, by="layer", **options)
    assert_relative(scores.members, plain.members, FLOAT64_RELATIVE)
    assert_relative(scores.by_layer.sum(dim=1), plain.values, FLOAT64_RELATIVE)
    each = [
        ipfast.score(model, train, ipfast.query(model, val, method=method, params="all"), by="layer", progress=False).by_layer
    ]
    assert_relative(each[0], scores.by_layer, FLOAT64_RELATIVE)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_parts_do_not_depend_on_the_batch_size(size):
    model, train, val = problem("texts")
    expected, _ = expected_dots(gradient_loop(model, *train), mean_query(model, val))
    scores = ipfast.score(model, train, val, params="all", by="layer", batch_size=size, progress=False)
    assert_relative(scores.by_layer, expected[..., 0], BATCH_RELATIVE)


def by_layer(queries=None):
    values = torch.tensor([0.5, -1.0]) if queries is None else torch.tensor([[0.5, 3], [-1.0, 4]])
    parts = torch.stack([values * 0.25, values * 0.75], dim=1)
    return Scores(values, "ip", "ghost", "reference", {}, queries=queries, by_layer=parts, layers=("", "fc"))


@pytest.mark.parametrize("queries", [None, ("a", "b")], ids=["one", "several"])
def test_safetensors_brings_the_parts_back(queries, tmp_path):
    before = by_layer(queries)
    before.save(tmp_path / "s.safetensors")
    after = Scores.load(tmp_path / "s.safetensors")
    assert after.layers == before.layers
    assert after.queries == queries
    assert torch.equal(after.by_layer, before.by_layer)
    assert torch.equal(after.of_layer("fc"), before.values * 0.75)


def test_tables_have_a_column_for_each_layer(tmp_path):
    by_layer().save(tmp_path / "s.csv")
    rows = list(csv.reader((tmp_path / "s.csv").read_text().splitlines()))
    assert rows == [
        ["index", "score", "score, the model itself", "score, fc"],
        ["0", "0.5", "0.125", "0.375"],
        [*("1", "-1.0", "-0.25", "-0.75")],
    ]
    by_layer(("a", "b")).save(tmp_path / "two.csv")
    assert next(csv.reader((tmp_path / "two.csv").read_text().splitlines()))[3:] == [
        *("score a, the model itself", "score b, the model itself", "score a, fc", "score b, fc")
    ]
    for ending in (".csv", ".parquet", ".npy"):
        by_layer().save(tmp_path / f"s{ending}")
        assert Scores.load(tmp_path / f"s{ending}").values.tolist() == [0.5, -1.0]
    assert np.load(tmp_path / "s.npy").shape == (2,)


@pytest.mark.parametrize(
    "beside",
    [
        {"by_layer": torch.zeros(2, 2)},
        {"layers": ("fc",)},
        {"by_layer": torch.zeros(2, 2), "layers": ("fc",)},
        {"by_layer": torch.zeros(3, 1), "layers": ("fc",)},
        {"by_layer": torch.zeros(2, 1, 1), "layers": ("fc",)},
    ],
)
def test_parts_and_names_fit_each_other(beside):
    with pytest.raises(InputError, match="expected by_layer of shape"):
        Scores(torch.zeros(2), "ip", "ghost", "reference", **beside)


def test_an_unknown_layer_is_told():
    with pytest.raises(InputError, match="Did you mean 'fc'"):
        by_layer().of_layer("fcc")
    with pytest.raises(InputError, match="by='layer'"):
        Scores(torch.zeros(2), "ip", "ghost", "reference").of_layer("fc")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"by": "layers"}, InputError, "Did you mean 'layer'"),
        ({"by": 3}, InputTypeError, "expected by"),
        ({"by": "layer", "params": "last"}, InputError, "expected params that name more than the last layer"),
        ({"by": "layer", "engine": "forward"}, InputError, "expected engine='ghost'"),
        ({"by": "layer", "engine": "explicit"}, InputError, "expected engine='ghost'"),
        ({"by": "layer", "method": "loss", "val": None}, InputError, "expected a method that scores by gradients"),
        ({"by": "layer", "method": "random", "val": None}, InputError, "expected a method that scores by gradients"),
        ({"by": "layer", "method": ipfast.Method(points=ipfast.Dropout(2, combine="rank"))}, InputError, "combine='rank'"),
    ],
)
def test_parts_that_there_are_not_are_refused_before_the_model_runs(arguments, error, words):
    model, train, val = problem("images")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=words):
        ipfast.score(model, train, progress=False, **{"val": val, "params": "all", **arguments})
    assert not calls


def test_the_choice_of_an_engine_knows_of_parts():
    assert ipfast.select_engine(by="layer").name == "ghost"
    assert "by='layer'" in ipfast.select_engine(by="layer", queries=9).reason
    for arguments in ({"engine": "forward"}, {"engine": "explicit"}, {"params": "last"}):
        with pytest.raises(InputError, match="expected engine='ghost'"):
            ipfast.select_engine(by="layer", **arguments)
