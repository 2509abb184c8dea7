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


class Untied(nn.Module):
    """Token ids or vectors [B, T] with padding, positions, attention, a pooled layer; `copies` gives each position its own copy
    of a layer's parameters, which is the definition of a position's part."""

    def __init__(self, classes=5, width=4):
        super().__init__()
        self.embed, self.position = nn.Embedding(9, width, padding_idx=0), nn.Embedding(16, width)
        self.norm, self.root = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.whole = nn.LayerNorm((6, width))
        self.pooled = nn.Linear(width, classes)
        self.copies = None

    def at_each(self, layer, x):
        """layer(x), position by position with the copies of its parameters where there are any."""
        if self.copies is None:
            return getattr(self, layer)(x)
        columns = [torch.func.functional_call(getattr(self, layer), own, x[:, t]) for t, own in enumerate(self.copies[layer])]
        return torch.stack(columns, dim=1)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])[None]
        x = self.at_each("embed", tokens) + self.at_each("position", places)
        if tokens.shape[1] == 6:
            x = self.whole(x)
        q, k, v = self.at_each("qkv", self.at_each("norm", x)).chunk(3, -1)
        x = x + self.at_each("out", (q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = torch.tanh(self.conv(x.transpose(1, 2)).transpose(1, 2)) + self.at_each("root", x)
        return self.pooled(x.mean(1))


EACH = ("embed", "position", "norm", "qkv", "out", "root")


def untied(samples, length=6, seed=0):
    torch.manual_seed(seed)
    model = Untied().double().eval()
    tokens = torch.randint(1, 9, (samples, length))
    tokens[::2, length - 2 :] = 0
    return model, tokens, torch.arange(samples) % 5


def token_parts(model, x, y, query):
    """Σ over layers of ⟨q, ∂ℓ_i/∂(the copy of position t)⟩ [N, T], by autograd, one sample at a time."""
    copies = {
        layer: [
            {name: value.detach().clone().requires_grad_() for name, value in getattr(model, layer).named_parameters()}
            for _ in range(x.shape[1])
        ]
        for layer in EACH
    }
    model.copies = copies
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        row = []
        for t in range(x.shape[1]):
            leaves = {f"{layer}.{name}": value for layer in EACH for name, value in copies[layer][t].items()}
            found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
            row.append(sum((g * query[name][0]).sum() for name, g in zip(leaves, found, strict=True)))
        rows.append(torch.stack(row))
    model.copies = None
    return torch.stack(rows)


def test_a_positions_part_is_the_derivative_along_the_query_at_its_copy_of_the_parameters():
    model, x, y = untied(9)
    train, val = (x[:6], y[:6]), (x[6:], y[6:])
    before = snapshot(model)
    scores = ipfast.score(model, train, val, params="all", by="token", progress=False)
    assert_unchanged(model, before)
    query, gradients = mean_query(model, val), gradient_loop(model, *train)
    assert_relative(scores.by_token, token_parts(model, *train, query), FLOAT64_RELATIVE)
    assert_relative(scores.values, products(gradients, query)[:, 0], FLOAT64_RELATIVE)
    rest = {name: g for name, g in gradients.items() if name.split(".")[0] not in EACH}
    expected = products(rest, {name: query[name] for name in rest})[:, 0]
    assert_relative(scores.values - scores.by_token.sum(dim=1), expected, FLOAT64_RELATIVE)
    assert scores.stats["at_no_position"] == ["conv", "whole", "pooled"]
    assert scores.by_layer is None


def test_where_all_parameters_have_positions_the_parts_add_up_to_the_score():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)).double().eval()
    x, y = torch.randint(0, 7, (8, 4)), torch.randint(0, 5, (8, 4))
    y[0, 2:] = y[3, 1] = y[5] = -100
    scores = ipfast.score(model, (x, y), (x[:3], y[:3]), params="all", by="token", check=False, progress=False)
    assert_relative(scores.by_token.sum(dim=1), scores.values, FLOAT64_RELATIVE)
    assert scores.stats["at_no_position"] == []
    assert not scores.by_token[0, 2:].any()  # no label there, and nobody looks at it


def test_several_queries_and_sequences_of_several_lengths():
    model, x, y = untied(5, 7)
    _, longer, more = untied(4, 8, seed=1)
    loader = [(x, y), (longer, more)]

    class Lengths(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(row, label) for inputs, labels in loader for row, label in zip(inputs, labels, strict=True)])

    batches = torch.utils.data.DataLoader(Lengths(), batch_size=1)
    val = (x[:4], y[:4])
    scores = ipfast.score(model, batches, val, val_groups=["a", "b", "b", "a"], params="all", by="token", progress=False)
    assert scores.by_token.shape == (9, 8, 2)
    assert not scores.by_token[:5, 7].any()
    for q, rows in enumerate(([0, 3], [1, 2])):
        query = mean_query(model, (x[rows], y[rows]))
        assert_relative(scores.by_token[:5, :7, q], token_parts(model, x, y, query), FLOAT64_RELATIVE)
        assert_relative(scores.by_token[5:, :, q], token_parts(model, longer, more, query), FLOAT64_RELATIVE)


def test_parts_by_token_are_saved(tmp_path):
    model, x, y = untied(6)
    method = ipfast.Method(points=ipfast.Dropout(2, 0.1))
    options = {"params": "all", "by": "token", "method": method, "keep_members": True, "progress": False}
    before = ipfast.score(model, (x, y), (x[:3], y[:3]), out=tmp_path / "s.safetensors", **options)
    after = Scores.load(tmp_path / "s.safetensors")
    assert torch.equal(after.by_token, before.by_token)
    assert after.members.shape == (6, 2)
    assert_relative(after.members.mean(dim=1), after.values, FLOAT64_RELATIVE)
    before.save(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().startswith("index,score\n")
    with pytest.raises(InputError, match="expected by_token of a column for each position"):
        Scores(torch.zeros(2), "ip", "ghost", "reference", by_token=torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "self_tracin", "val": None}, "expected a query, which a score is linear in"),
        ({"engine": "forward"}, "expected engine='ghost'"),
        ({"params": "last"}, "expected params that name more"),
        ({"params": ["pooled", "conv"]}, "expected layers that work position by position"),
    ],
)
def test_parts_by_token_are_refused_where_there_are_none(arguments, words):
    model, x, y = untied(6)
    with pytest.raises(InputError, match=words):
        ipfast.score(model, (x, y), progress=False, **{"val": (x[:3], y[:3]), "params": "all", "by": "token", **arguments})
