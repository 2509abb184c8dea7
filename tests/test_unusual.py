"""Unusual models and data that people have: scored as the definition says, or refused; never wrong without a word."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative_to_largest
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ipfast
from ipfast import Dropout, Method
from ipfast.curvature import passes

N, M, D, C = 12, 6, 5, 3


def numbers(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count, seed=0) -> Tensor:
    return torch.randint(0, C, (count,), generator=torch.Generator().manual_seed(seed))


X, Y, X_VAL, Y_VAL = numbers(N, D), labels(N), numbers(M, D, seed=1), labels(M, seed=1)


def gradients(model, x, y, names=None, loss=F.cross_entropy) -> Tensor:
    """[B, P] by plain autograd, one sample at a time."""
    named = {name: value for name, value in model.named_parameters() if names is None or name in names}
    rows = []
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(value, list(named.values()), materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows).detach()


def by_definition(model, x, y, x_val, y_val, names=None, loss=F.cross_entropy) -> Tensor:
    return gradients(model, x, y, names, loss) @ gradients(model, x_val, y_val, names, loss).mean(dim=0)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()


# Whole networks


class Sorting(nn.Module):
    """Brings the samples into the order of their lengths, as is done before packing, and back."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.outer = nn.Embedding(20, 6), nn.Linear(6, 5), nn.Linear(5, C)

    def forward(self, ids):
        lengths = (ids > 0).sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        h = torch.tanh(self.inner(self.embed(ids[order]).sum(dim=1) / lengths[order, None]))
        return self.outer(h)[torch.argsort(order)]


def ids_of(count, longest_first):
    found = torch.randint(1, 20, (count, 7), generator=torch.Generator().manual_seed(2))
    for row in range(count):
        found[row, 7 - row % 5 if longest_first else 1 + row % 5 :] = 0
    return found


@pytest.mark.parametrize("longest_first", [True, False])
def test_a_network_that_reorders_its_batch(longest_first):
    model = seeded(Sorting)
    ids, val = ids_of(N, longest_first), ids_of(M, longest_first)
    for engine in ("ghost", "forward"):
        found = ipfast.score(model, (ids, Y), (val, Y_VAL), params="all", engine=engine, progress=False)
        assert_relative_to_largest(found.values, by_definition(model, ids, Y, val, Y_VAL), FLOAT64_RELATIVE)
    selves = ipfast.score(model, (ids, Y), method="self_tracin", params="all", progress=False)
    assert_relative_to_largest(selves.values, -gradients(model, ids, Y).square().sum(dim=1), FLOAT64_RELATIVE)


class Experts(nn.Module):
    """Each sample goes to one of two layers."""

    def __init__(self):
        super().__init__()
        self.experts, self.head = nn.ModuleList([nn.Linear(D, 4), nn.Linear(D, 4)]), nn.Linear(4, C)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == number).nonzero()[:, 0]
            if len(rows):
                h = h.index_add(0, rows, expert(x[rows]).tanh())
        return self.head(h)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_experts_that_get_some_of_the_samples(first):
    model, order = seeded(Experts), torch.argsort(X[:, 0] > 0, stable=True).roll(first)
    x, y = X[order], Y[order]
    found = ipfast.score(model, (x, y), (X_VAL, Y_VAL), params="all", engine="ghost", progress=False)
    assert_relative_to_largest(found.values, by_definition(model, x, y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


def test_logits_without_a_class_dimension():
    body = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)))
    y, y_val = (Y > 0).double(), (Y_VAL > 0).double()
    found = ipfast.score(body, (X, y), (X_VAL, y_val), params="all", loss="bce_with_logits", progress=False)
    expected = by_definition(body, X, y, X_VAL, y_val, loss=F.binary_cross_entropy_with_logits)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Pairs(nn.Module):
    """Called on both halves of a pair at once, in a way that ipfast cannot know."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 4)

    def forward(self, *, left, right):
        return (self.inner(left) * self.inner(right)).sum(dim=1)


FORMS = {
    "a tuple": lambda a, b, w, y: (a, b, w, y),
    "a mapping": lambda a, b, w, y: {"a": a, "b": b, "labels": w, "target": y},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_loss_of_ones_own_gets_the_batch_as_the_data_gives_it(form, batch_size):
    model, y, weights = seeded(Pairs), numbers(N, seed=5), numbers(N, seed=6).abs()
    others = numbers(N, D, seed=7)

    def loss(model, batch):
        a, b, w, y = batch if form == "a tuple" else (batch[name] for name in ("a", "b", "labels", "target"))
        return w * (model(left=a, right=b) - y).square()

    data = [FORMS[form](*sample) for sample in zip(X, others, weights, y, strict=True)]
    options = {"loss": loss, "params": "all", "labels_key": "target", "batch_size": batch_size, "progress": False}
    found = ipfast.score(model, DataLoader(data, 4), DataLoader(data[:M], 3), **options)
    rows = []
    for i in range(N):
        one = slice(i, i + 1)
        value = weights[one] * (model(left=X[one], right=others[one]) - y[one]).square()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), list(model.parameters()))]))
    g = torch.stack(rows)
    assert_relative_to_largest(found.values, g @ g[:M].mean(dim=0), FLOAT64_RELATIVE)


class Attending(nn.Module):
    """Causal attention over sequences that are padded on the left, with a mask that is added."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, 4), nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, ids):
        h, hidden = self.embed(ids), torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        mask = torch.zeros(len(ids), *hidden.shape, dtype=h.dtype).masked_fill(hidden | (ids == 0)[:, None], -torch.inf)
        for _ in range(2):
            h = F.scaled_dot_product_attention(self.inner(h), h, h, mask)
        return self.head(h[:, -1])


@pytest.mark.parametrize("engine", ["forward", "ghost"])
def test_rows_of_attention_that_see_nothing(engine):
    model, ids, val = seeded(Attending), ids_of(N, True).flip(1), ids_of(M, True).flip(1)
    found = ipfast.score(model, (ids, Y), (val, Y_VAL), params="all", engine=engine, progress=False)
    assert_relative_to_largest(found.values, by_definition(model, ids, Y, val, Y_VAL), FLOAT64_RELATIVE)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(D, C)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.calls.add_(1)
        return self.head(x)


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_buffers_that_a_network_changes_stay_the_callers(engine):
    model = seeded(Counts)
    ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", engine=engine, check=False, progress=False)
    assert float(model.calls) == 0


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
def test_weights_that_a_lookup_renormalises_stay_the_callers(engine):
    model = seeded(lambda: nn.Sequential(nn.Embedding(20, 4, max_norm=0.5), nn.Flatten(), nn.Linear(28, C)))
    before = model[0].weight.detach().clone()
    assert float(before.norm(dim=1).min()) > 0.5
    for params in ("all", ["^2"]):
        ipfast.score(model, (ids_of(N, True), Y), (ids_of(M, True), Y_VAL), params=params, engine=engine, progress=False)
        assert torch.equal(model[0].weight, before)


def test_parameters_that_have_no_score_are_refused():
    model = seeded(lambda: nn.Linear(D, C))
    model.register_parameter("wave", nn.Parameter(torch.zeros(2, dtype=torch.cfloat)))
    with pytest.raises(ipfast.InputTypeError, match=r"expected real parameters .*; wave is complex"):
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
    model = seeded(lambda: nn.Sequential(nn.Embedding(20, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(28, C)))
    with pytest.raises(ipfast.InputError, match=r"0 \(Embedding\) divides its gradient .* scale_grad_by_freq"):
        ipfast.score(model, (ids_of(N, True), Y), (ids_of(M, True), Y_VAL), params="all", progress=False)


# The last layer


class Scaled(nn.Module):
    """What comes out of its head is changed in place afterwards, or what goes in."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.head, self.how = nn.Linear(D, 4), nn.Linear(4, C), how

    def forward(self, x):
        h = self.inner(x)
        if self.how == "by name":
            return self.head(input=h)
        z = self.head(h)
        if self.how == "logits":
            z /= 3
        elif self.how == "features":
            h.add_(1)
        return z


class Cosine(nn.Linear):
    def forward(self, h):
        return 10 * F.linear(F.normalize(h, dim=1), F.normalize(self.weight, dim=1))


def hooked():
    linear = nn.Linear(D, C)
    linear.register_forward_hook(lambda _module, _inputs, z: z / 3)
    return linear


@pytest.mark.parametrize("how", ["by name", "features"])
def test_features_are_those_that_went_into_the_head(how):
    model = seeded(lambda: Scaled(how))
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    model.how = ""  # the same logits, which autograd can differentiate
    expected = by_definition(model, X, Y, X_VAL, Y_VAL, ("head.weight", "head.bias"))
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


BUILDERS = {
    "in place": lambda: Scaled("logits"),
    "hook": lambda: nn.Sequential(nn.Linear(D, D), hooked()),
    "subclass": lambda: nn.Sequential(nn.Linear(D, D), Cosine(D, C)),
    "bare hook": hooked,
    "bare subclass": lambda: Cosine(D, C),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_heads_that_are_not_linear_are_refused(name):
    model = seeded(BUILDERS[name])
    with pytest.raises(ipfast.InputError, match=r"expected outputs W h \+ b of the head; those of .* differ from it by"):
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    if name in ("hook", "subclass"):  # a head that is named is looked at too; its own outputs are taken for the logits
        with pytest.raises(ipfast.InputError, match=r"those of the layer '1' differ"):
            ipfast.score(model, (X, Y), (X_VAL, Y_VAL), head="1", progress=False)


def test_a_bare_layer_whose_weight_is_computed_is_taken_as_it_is():
    linear = seeded(lambda: nn.Linear(D, C))
    prune.l1_unstructured(linear, "weight", 0.4)
    with torch.no_grad():
        linear.weight_orig.mul_(2)  # the attribute is that of before until the layer is called
    plain = seeded(lambda: nn.Linear(D, C))
    with torch.no_grad():
        plain.weight.copy_(linear.weight_orig * linear.weight_mask)
    found = ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False)
    assert_relative_to_largest(found.values, by_definition(plain, X, Y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


class Once(IterableDataset):
    """A stream that can be read a single time."""

    def __init__(self, *pair):
        self.batches = iter(zip(*(part.split(4) for part in pair), strict=True))

    def __iter__(self):
        return self.batches


def test_a_stream_that_can_be_read_once_loses_nothing():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))

    def stream(*pair):
        return DataLoader(Once(*pair), batch_size=None)

    whole = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), progress=False)
    found = ipfast.score(model, stream(X, Y), stream(X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, whole.values)
    selves = ipfast.score(model, stream(X, Y), method="self_tracin", progress=False)
    assert torch.equal(selves.values, ipfast.score(model, (X, Y), method="self_tracin", progress=False).values)
    with pytest.raises(ipfast.InputError, match="at least one sample in"):
        ipfast.score(model, DataLoader(Once(X[:0], Y[:0]), batch_size=None), method="self_tracin", progress=False)


class Mixed(Dataset):
    """Targets that are whole numbers in some batches."""

    def __init__(self, x, targets):
        self.x, self.targets = x, targets

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.targets[row]


def test_targets_of_later_batches_keep_their_fractions():
    linear = seeded(lambda: nn.Linear(D, 1))
    targets = [1] * 4 + [0.3 * row for row in range(4, N)]
    y, y_val = torch.tensor(targets, dtype=torch.float64), torch.rand(M, dtype=torch.float64)
    found = ipfast.score(linear, DataLoader(Mixed(X, targets), 4), (X_VAL, y_val), loss="mse", progress=False)
    expected = ipfast.score(linear, (X, y), (X_VAL, y_val), loss="mse", progress=False)
    assert_relative_to_largest(found.values, expected.values, FLOAT64_RELATIVE)


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"params": "all"}, {"params": "all", "engine": "ghost"}])
def test_the_callers_autocast_does_not_narrow_scores(options):
    model = seeded(lambda: nn.Linear(D, C)).float()
    data, val = (X.float(), Y), (X_VAL.float(), Y_VAL)
    expected = ipfast.score(model, data, val, progress=False, **options).values
    with torch.autocast("cpu", torch.bfloat16):
        found = ipfast.score(model, data, val, progress=False, **options).values
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)


def test_a_backbone_runs_in_the_callers_autocast():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(D, 4), nn.Linear(4, C)

        def forward(self, x):
            h = self.inner(x)
            seen.append(h.dtype)
            return self.head(h)

    model = seeded(Watching).float()
    with torch.autocast("cpu", torch.bfloat16):
        ipfast.score(model, (X.float(), Y), (X_VAL.float(), Y_VAL), progress=False)
    assert set(seen) == {torch.bfloat16}


def test_weights_of_classes_that_an_estimator_was_fitted_with_are_not_left_out_without_a_word():
    model = LogisticRegression(class_weight={0: 1, 1: 20, 2: 1}).fit(X.numpy(), Y.numpy())
    data, val = (X.numpy(), Y.numpy()), (X_VAL.numpy(), Y_VAL.numpy())
    with pytest.raises(ipfast.InputError, match=r"class_weight=\{0: 1, 1: 20, 2: 1\}.*Pass loss='cross_entropy'"):
        ipfast.score(model, data, val, progress=False)
    found = ipfast.score(model, data, val, loss=ipfast.losses.CrossEntropy(weight=[1.0, 20.0, 1.0]), progress=False)
    linear = seeded(lambda: nn.Linear(D, C))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(model.coef_))
        linear.bias.copy_(torch.from_numpy(model.intercept_))
    weight = torch.tensor([1.0, 20.0, 1.0], dtype=torch.float64)

    def loss(z, y):
        return F.cross_entropy(z, y, weight=weight, reduction="none").sum()

    assert_relative_to_largest(found.values, by_definition(linear, X, Y, X_VAL, Y_VAL, loss=loss), FLOAT64_RELATIVE)


# Dropout of whole networks


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(C, 4), nn.Linear(4, C, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


@pytest.mark.parametrize("chain", [False, True])
def test_masks_of_all_parameters_reach_tied_ones_and_the_chain(chain):
    """Against autograd through θ_m = (1 − D)∘θ/(1 − rate), with the masks of `ipfast.dropout_mask`."""
    model, rate, members = seeded(Tied), 0.3, 3
    x, x_val = labels(N, seed=3), labels(M, seed=4)
    method = Method(points=Dropout(members, rate, scope="all", chain=chain))
    found = ipfast.score(model, (x, Y), (x_val, Y_VAL), method=method, progress=False)
    weight, expected = model.embed.weight.detach(), torch.zeros(N, dtype=torch.float64)
    for member in range(members):
        keep = torch.ones_like(weight)
        keep.view(-1)[ipfast.dropout_mask("embed.weight", tuple(weight.shape), rate, 0, member)] = 0
        masked = weight * keep / (1 - rate)

        def rows(x, y, masked=masked, keep=keep):
            h, made = masked[x], []
            for i in range(len(x)):
                theta = masked.clone().requires_grad_()
                F.cross_entropy(h[i : i + 1] @ theta.T, y[i : i + 1]).backward()
                made.append((theta.grad * keep / (1 - rate) if chain else theta.grad).flatten())
            return torch.stack(made)

        expected += rows(x, Y) @ rows(x_val, Y_VAL).mean(dim=0) / members
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


# Curvatures that are fitted once


def test_a_fitted_curvature_is_of_its_parameters_loss_and_bias():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))
    y, y_val = torch.arange(N) % D, torch.arange(M) % D
    fitted = ipfast.fit(model, (X, y), method="ekfac", params=[r"^0\."], progress=False)
    words = "the model, params, loss, tokens and points that the curvature was fitted for"
    for options in ({"params": [r"^2\."]}, {"params": [r"^0\."], "loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match=words):
            ipfast.score(model, (X, y), (X_VAL, y_val), method=fitted, progress=False, **options)
    head = model[2]
    fitted = ipfast.fit(head, (X, y), method="ekfac", progress=False)
    for options in ({"include_bias": False}, {"loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match=words):
            ipfast.score(head, (X, y), (X_VAL, y_val), method=fitted, progress=False, **options)


def test_what_an_interrupted_fit_has_left_is_of_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "KEPT_EVERY", 0.0)
    model, out = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C))), tmp_path / "fit.safetensors"
    journal = passes.Journal

    class Stopping(journal):
        def keep(self, *args, **options):
            super().keep(*args, **options)
            raise KeyboardInterrupt

    def fit(x=X, **options):
        return ipfast.fit(model, (x, Y), params="all", batch_size=4, out=out, progress=False, **options)

    fits = sys.modules["ipfast.fit"]  # the function hides the module
    monkeypatch.setattr(fits, "Journal", Stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(loss=ipfast.losses.CrossEntropy())
    assert out.with_suffix(".part").exists()
    monkeypatch.setattr(fits, "Journal", journal)
    for options in ({"x": X + 1}, {"tokens": "sum"}, {"loss": ipfast.losses.CrossEntropy(label_smoothing=0.1)}):
        with pytest.raises(ipfast.InputError, match="to be what this fit has left; it is of"):
            fit(**{"loss": ipfast.losses.CrossEntropy(), **options})
    fit(loss=ipfast.losses.CrossEntropy())  # another object of the same loss
    assert not out.with_suffix(".part").exists()


def test_arnoldi_takes_rounding_of_a_convex_loss_for_what_it_is():
    """A softmax head has directions without curvature, whose eigenvalues are rounding of either sign."""
    linear = seeded(lambda: nn.Linear(8, 4)).float()
    x, y = numbers(40, 8).float(), torch.arange(40) % 4
    found = ipfast.score(linear, (x, y), (x[:10], y[:10]), method="arnoldi", progress=False)
    assert bool(torch.isfinite(found.values).all())
    assert 1 < found.stats["curvature"][0]["of"]["rank"] <= 27  # (C − 1)(d + 1)


# Files and arguments


def test_queries_whose_columns_look_like_parts_of_others_are_not_written(tmp_path):
    several = {"cats": (X_VAL, Y_VAL), "cats, dogs": (X_VAL, Y_VAL)}
    scores = ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), several, progress=False)
    with pytest.raises(ipfast.InputError, match="'cats, dogs' looks like a part of 'cats'"):
        scores.save(tmp_path / "scores.csv")
    scores.save(tmp_path / "scores.safetensors")
    assert ipfast.Scores.load(tmp_path / "scores.safetensors").queries == ("cats", "cats, dogs")
    with pytest.raises(ipfast.InputError, match="validation sets of different names; got 1, '1'"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), {1: (X_VAL, Y_VAL), "1": (X_VAL, Y_VAL)}, progress=False)


@pytest.mark.parametrize("ids", [[7, 3, 12], ["007", "3", "12"], ["a", "3", "12"]])
def test_ids_of_a_table_are_those_that_were_written(ids, tmp_path):
    ipfast.Scores(torch.rand(3), "ip", "head", "reference", {}, np.asarray(ids)).save(tmp_path / "scores.csv")
    assert ipfast.Scores.load(tmp_path / "scores.csv").ids.tolist() == ids


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and more"])
def test_checkpoints_that_are_none_are_named(content, tmp_path):
    file = tmp_path / "epoch.pt"
    file.write_bytes(content)
    method = Method(points=ipfast.Checkpoints([file]))
    with pytest.raises(ipfast.InputError, match=r"files of tensors; .*epoch\.pt' cannot be read"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL), method=method, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params": None}, "expected params to be one of 'last', .*got NoneType"),
        ({"params": 3}, "got int"),
        ({"params": "all", "loss": nn.CrossEntropyLoss()}, "got the module CrossEntropyLoss, which takes logits"),
    ],
)
def test_arguments_of_another_kind_are_refused(options, words):
    with pytest.raises(ipfast.InputTypeError, match=words):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), (X, Y), (X_VAL, Y_VAL), progress=False, **options)


def test_patterns_may_be_a_tuple():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Linear(4, C)))
    found, expected = (
        ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params=params, progress=False) for params in (("^1",), ["^1"])
    )
    assert torch.equal(found.values, expected.values)


def test_labels_that_are_words_are_named_over_networks_too():
    data = DataLoader([(row, "cat") for row in X], 4)
    with pytest.raises(ipfast.InputError, match="expected labels as numbers; got"):
        ipfast.score(seeded(lambda: nn.Linear(D, C)), data, method="self_tracin", params="all", progress=False)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_pairs_of_two_precisions(kind):
    other = torch.float32 if kind == torch.float64 else torch.float64
    linear = seeded(lambda: nn.Linear(D, C))
    found = ipfast.score(linear, (X.to(kind), Y), (X_VAL.to(other), Y_VAL), aggregate=False, progress=False)
    expected = gradients(linear, X, Y) @ gradients(linear, X_VAL, Y_VAL).T
    assert_relative_to_largest(found.values.double(), expected, FLOAT32_RELATIVE)


def test_models_in_a_wrapper_are_taken_out():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))
    expected = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        found = ipfast.score(wrapped.eval(), (X, Y), (X_VAL, Y_VAL), params="all", progress=False)
        assert torch.equal(found.values, expected.values)


def test_a_scorer_works_within_inference_mode():
    model = seeded(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)))
    several = {"cats": (X_VAL, Y_VAL), "dogs": (X_VAL + 1, Y_VAL)}
    scorer = ipfast.Scorer(model, ipfast.query(model, several, params="all"))
    expected = scorer((X, Y))
    with torch.inference_mode():
        assert torch.equal(scorer((X, Y)), expected)


def test_a_checkpoint_that_was_moved_is_named(tmp_path):
    linear, file = seeded(lambda: nn.Linear(D, C)), tmp_path / "epoch.pt"
    torch.save(linear.state_dict(), file)
    ipfast.query(linear, (X_VAL, Y_VAL), method=Method(points=ipfast.Checkpoints([file])), out=tmp_path / "query.safetensors")
    file.rename(tmp_path / "moved.pt")
    with pytest.raises(ipfast.MissingFileError, match=r"states to be a file; .*epoch\.pt' does not exist"):
        ipfast.score(linear, (X, Y), ipfast.Query.load(tmp_path / "query.safetensors"), progress=False)


def test_a_head_of_another_byte_order(tmp_path):
    linear = seeded(lambda: nn.Linear(D, C))
    weight, bias = (value.detach().numpy() for value in (linear.weight, linear.bias))
    np.savez(tmp_path / "head.npz", weight=weight.astype(">f8"), bias=bias.astype(">f8"))
    found = ipfast.score(tmp_path / "head.npz", (X, Y), (X_VAL, Y_VAL), progress=False)
    assert torch.equal(found.values, ipfast.score(linear, (X, Y), (X_VAL, Y_VAL), progress=False).values)
