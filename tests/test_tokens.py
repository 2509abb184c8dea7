"""Token data: against autograd on whole sequences in float64, however far they are padded and however they arrive."""

import copy

import numpy as np
import oracles
import pytest
import torch
from cases import LOSSES
from problems import VALIDATION_ROWS, TokenProblem, linear_problem, marked, token_problem
from sklearn.linear_model import LogisticRegression
from tolerances import BATCH_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import ipfast
from ipfast.losses import MSE, BCEWithLogits, CrossEntropy

EMPTY, EMPTY_VAL = 2, 1


def of(problem: TokenProblem, loss: str, tokens: str, bias: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """(∇ℓ_i of every training sequence, their query) by autograd."""
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    parts = [
        oracles.sequence_gradients(x.nan_to_num(), y, counted, w, b, loss, tokens)
        for x, y, counted in (
            (problem.x, problem.y, problem.counted),
            (problem.x_val, problem.y_val, problem.counted_val),
        )
    ]
    train, val = (part if bias else part[:, : w.numel()] for part in parts)
    return train, val[problem.counted_val.any(dim=1)].mean(dim=0)


# Values


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_float64_equals_autograd_of_whole_sequences(loss, tokens, bias):
    problem = token_problem(loss)
    train, query = of(problem, loss, tokens, bias)
    options = {"loss": loss, "tokens": tokens, "include_bias": bias}
    got = ipfast.score(problem.head, problem.train, problem.val, **options)
    assert_relative(got.values, train @ query, FLOAT64_RELATIVE)
    assert got.values[EMPTY] == 0
    assert got.stats["M"] == VALIDATION_ROWS - 1
    assert (got.stats["N"], got.stats["empty_sequences"], got.stats["val_empty_sequences"]) == (len(problem.y), 1, 1)
    assert (got.stats["tokens"], got.stats["counted_tokens"]) == (tokens, int(problem.counted.sum()))
    own = ipfast.score(problem.head, problem.train, method="self_tracin", **options)
    assert_relative(own.values, -train.square().sum(dim=1), FLOAT64_RELATIVE)
    assert own.backend == "reference"


@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_control_loss_is_that_of_the_sequence(loss, tokens):
    problem = token_problem(loss)
    head = problem.head.weight.detach(), problem.head.bias.detach()
    truth = oracles.sequence_losses(problem.x.nan_to_num(), problem.y, problem.counted, *head, loss, tokens)
    got = ipfast.score(problem.head, problem.train, method="loss", loss=loss, tokens=tokens)
    assert_relative(got.values, -truth, FLOAT64_RELATIVE)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_token_meets_the_query_of_the_mean(loss):
    problem = token_problem(loss)
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    _, query = of(problem, loss, "mean")
    truth, norms = (
        torch.zeros_like(problem.counted, dtype=torch.float64),
        torch.zeros_like(problem.counted, dtype=torch.float64),
    )
    gradients = oracles.per_sample_gradients(problem.x[problem.counted], problem.y[problem.counted], w, b, loss)
    truth[problem.counted], norms[problem.counted] = gradients @ query, gradients.square().sum(dim=1)
    got = ipfast.score(problem.head, problem.train, problem.val, loss=loss, tokens="each")
    assert_relative(got.values, truth, FLOAT64_RELATIVE)
    assert torch.equal(got.counted, problem.counted)
    assert not got.values[~problem.counted].any()
    assert got.stats["N"] == len(got) == len(problem.y)
    own = ipfast.score(problem.head, problem.train, method="self_tracin", loss=loss, tokens="each")
    assert_relative(own.values, -norms, FLOAT64_RELATIVE)
    for how in ("mean", "sum"):
        summed = got.values.sum(dim=1) / (problem.counted.sum(dim=1).clamp(min=1) if how == "mean" else 1)
        assert_relative(got.by_sequence(how).values, summed, FLOAT64_RELATIVE)
    whole = ipfast.score(problem.head, problem.train, problem.val, loss=loss)
    assert_relative(got.by_sequence().values, whole.values, FLOAT64_RELATIVE)
    worst = [
        min((s for s, c in zip(*row, strict=True) if c), default=0) for row in zip(got.values, problem.counted, strict=True)
    ]
    assert got.by_sequence("min").values.tolist() == [float(value) for value in worst]


W = (0.5, 2.0, 0.0, 1.25, 3.0)


def classes(problem):
    return torch.randint(5, problem.y.shape, generator=torch.Generator().manual_seed(1))


def shares(problem):
    return torch.rand(*problem.y.shape, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OPTIONS = {
    "everything": (
        CrossEntropy(W, 0.3),
        classes,
        lambda z, y: F.cross_entropy(z, y, weight=z.new_tensor(W), label_smoothing=0.3, reduction="none"),
    ),
    "soft": (
        CrossEntropy(W, 0.2),
        shares,
        lambda z, y: F.cross_entropy(z, y, weight=z.new_tensor(W), label_smoothing=0.2, reduction="none"),
    ),
    "bce": (
        BCEWithLogits("mean", pos_weight=W, weight=W),
        shares,
        lambda z, y: F.binary_cross_entropy_with_logits(
            z, y, pos_weight=z.new_tensor(W), weight=z.new_tensor(W), reduction="none"
        ).mean(dim=1),
    ),
    "half": (MSE("half"), shares, lambda z, y: (z - y).square().sum(dim=1) / 2),
}


@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_losses(name, tokens):
    loss, labels, torchs = OPTIONS[name]
    problem = token_problem()
    y = labels(problem)
    rows = []
    for x, target, counted in zip(problem.x, y, problem.counted, strict=True):
        each = torchs(problem.head(x[counted]), target[counted])
        value = each.sum() / (max(len(each), 1) if tokens == "mean" else 1)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(problem.head.parameters()))]))
    gradients = torch.stack(rows)
    data = problem.x, marked(y, problem.counted)
    got = ipfast.score(problem.head, data, {"all": data}, loss=loss, tokens=tokens, check=False)
    assert_relative(got.values[:, 0], gradients @ gradients[problem.counted.any(dim=1)].mean(dim=0), FLOAT64_RELATIVE)
    own = ipfast.score(problem.head, data, method="self_tracin", loss=loss, tokens=tokens)
    assert_relative(own.values, -gradients.square().sum(dim=1), FLOAT64_RELATIVE)


@pytest.mark.parametrize("ignored", [-100, 3, 0, -1])
def test_the_ignore_index_of_the_loss_takes_the_place_of_its_default(ignored):
    problem = token_problem()
    y, y_val = ((y + 1) % 5 if ignored == 3 else y for y in (problem.y, problem.y_val))
    data = [problem.train, problem.val]
    true = ipfast.score(problem.head, *data).values
    if ignored in (3, 0):  # a class: no counted token may have it
        y, y_val = (torch.where(y == ignored, 4, y) for y in (problem.y, problem.y_val))
        true = ipfast.score(
            problem.head, (problem.x, marked(y, problem.counted)), (problem.x_val, marked(y_val, problem.counted_val))
        ).values
        data = [(problem.x, marked(y, problem.counted)), (problem.x_val, marked(y_val, problem.counted_val))]
    named = [(x, torch.where(y == -100, ignored, y)) for x, y in data]
    assert torch.equal(ipfast.score(problem.head, *named, loss=CrossEntropy(ignore_index=ignored)).values, true)


def test_a_mean_of_one_token_has_the_bits_of_the_sample():
    problem = linear_problem(dtype=torch.float32)
    one = ipfast.score(
        problem.model, (problem.x[:, None], problem.y[:, None]), (problem.x_val[:, None], problem.y_val[:, None])
    )
    assert torch.equal(one.values, ipfast.score(problem.model, problem.train, problem.val).values)


@pytest.mark.parametrize("loss", ["bce_with_logits", "mse"])
def test_one_output_with_targets_without_a_column(loss):
    problem = token_problem(loss, classes=1)
    true = ipfast.score(problem.head, problem.train, problem.val, loss=loss).values
    train, query = of(problem, loss, "mean")
    assert_relative(true, train @ query, FLOAT64_RELATIVE)
    flat = [(x, y[..., 0]) for x, y in (problem.train, problem.val)]
    assert torch.equal(ipfast.score(problem.head, *flat, loss=loss).values, true)


# Points


@pytest.mark.parametrize("tokens", ["mean", "sum"])
@pytest.mark.parametrize("points", [ipfast.Dropout(3, 0.05), ipfast.Dropout(3, 0.4, include_base=True, mask_bias=True)])
def test_dropout_members_are_autograd_at_masked_parameters(points, tokens):
    problem = token_problem()
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    columns, norms = [], []
    for member in ([None] if points.include_base else []) + list(range(points.members)):
        masked, masked_b = w.clone(), b.clone()
        if member is not None:
            masked /= 1 - points.rate
            masked.view(-1)[ipfast.dropout_mask("weight", w.shape, points.rate, points.seed, member)] = 0
            if points.mask_bias:
                masked_b /= 1 - points.rate
                masked_b[ipfast.dropout_mask("bias", b.shape, points.rate, points.seed, member)] = 0
        head = nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype)
        head.load_state_dict({"weight": masked, "bias": masked_b})
        train, query = of(TokenProblem(head, *list(vars(problem).values())[1:]), "cross_entropy", tokens)
        columns.append(train @ query)
        norms.append(train.square().sum(dim=1))
    truth = torch.stack(columns, dim=1)
    method = ipfast.Method(points=points)
    got = ipfast.score(problem.head, problem.train, problem.val, method=method, tokens=tokens, keep_members=True)
    assert_relative(got.members, truth, FLOAT64_RELATIVE)
    assert_relative(got.values, truth.mean(dim=1), FLOAT64_RELATIVE)
    own = ipfast.score(problem.head, problem.train, method=ipfast.Method(points=points, target="self"), tokens=tokens)
    assert_relative(own.values, -torch.stack(norms).mean(dim=0), FLOAT64_RELATIVE)


def test_members_of_tokens_keep_their_places():
    problem = token_problem()
    method = ipfast.Method(points=ipfast.Dropout(3, 0.2))
    got = ipfast.score(problem.head, problem.train, problem.val, method=method, tokens="each", keep_members=True)
    assert got.members.shape == (len(problem.y), 3, problem.y.shape[1])
    assert_relative(got.members.mean(dim=1), got.values, FLOAT64_RELATIVE)
    assert got.spread.shape == got.values.shape
    ranks = ipfast.Method(points=ipfast.Dropout(2, 0.2, combine="rank"))
    ranked = ipfast.score(problem.head, problem.train, problem.val, method=ranks, tokens="each")
    assert ranked.values[problem.counted].sum().abs() < BATCH_RELATIVE  # ranks are spread about 0 over the counted tokens


def test_checkpoints_and_extra_training():
    """GEX's step is one of torch's on the mean over sequences of their losses; then it is TracIn at that state."""
    problem = token_problem()
    module = copy.deepcopy(problem.head)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    losses = []
    for x, y, counted in zip(problem.x, problem.y, problem.counted, strict=True):
        losses.append(F.cross_entropy(module(x[counted]), y[counted]) if counted.any() else torch.zeros(()))
    torch.stack(losses).mean().backward()
    optimizer.step()
    states = [copy.deepcopy(module.state_dict())]
    tracin = ipfast.Method(points=ipfast.Checkpoints(states))
    head = TokenProblem(module, *list(vars(problem).values())[1:])
    train, query = of(head, "cross_entropy", "mean")
    got = ipfast.score(problem.head, problem.train, problem.val, method=tracin).values
    assert_relative(got, train @ query, FLOAT64_RELATIVE)
    for backbone in (problem.head, Tagger(problem.head)):
        given = [(x.nan_to_num(), y) for x, y in (problem.train, problem.val)] if backbone is not problem.head else None
        data, val = given or (problem.train, problem.val)
        points = ipfast.ExtraSGD(data, lambda p: torch.optim.SGD(p, lr=0.3), members=1)
        gex = ipfast.score(backbone, data, val, method=ipfast.Method(points=points)).values
        assert_relative(gex, got, FLOAT64_RELATIVE)


def test_the_loss_deviation_estimator():
    problem = token_problem()
    points = ipfast.ExtraSGD(problem.train, lambda p: torch.optim.SGD(p, lr=0.3), members=1, estimator="loss_deviation")
    got = ipfast.score(problem.head, problem.train, problem.val, method=ipfast.Method(points=points), keep_members=True)
    losses = [-ipfast.score(problem.head, data, method="loss").values for data in (problem.train, problem.val)]
    points = ipfast.ExtraSGD(problem.train, lambda p: torch.optim.SGD(p, lr=0.3), members=1)
    state = next(points.points(ipfast.points.Trainable(lambda: problem.head, extra_losses(problem)))).state.values
    moved = nn.Linear(12, 5, dtype=torch.float64)
    moved.load_state_dict(state)
    after = [-ipfast.score(moved, data, method="loss").values for data in (problem.train, problem.val)]
    floor = 0.05
    real = problem.counted_val.any(dim=1)
    c = after[1][real].mean() - losses[1][real].mean().clamp(min=floor)
    assert_relative(got.values, (after[0] - losses[0].clamp(min=floor)) * c, FLOAT64_RELATIVE)


def extra_losses(problem):
    def losses(module, batch, loss):
        rows = []
        for h, label in zip(batch.inputs, batch.labels, strict=True):
            keep = label != -100
            value = F.cross_entropy(module(h[keep]), label[keep]) if keep.any() else h.new_zeros(())
            rows.append(value)
        return torch.stack(rows)

    return losses


# Queries


def test_each_sequence_of_val_has_its_group():
    problem = token_problem()
    w, b = problem.head.weight.detach(), problem.head.bias.detach()
    groups = torch.arange(VALIDATION_ROWS) % 3
    got = ipfast.score(problem.head, problem.train, problem.val, val_groups=groups)
    x, y = problem.val
    sets = [(x[groups == q], y[groups == q]) for q in range(3)]
    several = ipfast.score(problem.head, problem.train, sets)
    train, _ = of(problem, "cross_entropy", "mean")
    val = oracles.sequence_gradients(x.nan_to_num(), problem.y_val, problem.counted_val, w, b, "cross_entropy")
    real = problem.counted_val.any(dim=1)
    for q in range(3):
        assert_relative(got.values[:, q], train @ val[(groups == q) & real].mean(dim=0), FLOAT64_RELATIVE)
    assert_relative(several.values, got.values, FLOAT64_RELATIVE)
    assert got.stats["M"] == [int(((groups == q) & real).sum()) for q in range(3)]
    with pytest.raises(ipfast.InputError, match=r"expected val_groups to be 11 integers"):
        ipfast.score(problem.head, problem.train, problem.val, val_groups=groups[1:])
    loader = DataLoader(Sequences(*problem.val), batch_size=4, collate_fn=padded_batch)
    with pytest.raises(ipfast.InputError, match=r"expected val_groups to be 11 integers"):
        ipfast.score(problem.head, problem.train, loader, val_groups=groups[1:])
    with pytest.raises(ipfast.InputError, match=r"expected a token that counts in val, for each query"):
        ipfast.score(problem.head, problem.train, problem.val, val_groups=torch.arange(VALIDATION_ROWS))


def test_an_impact_gets_the_counted_tokens():
    """And tokens are then weighted as it likes: torch's cross_entropy takes the mean over all tokens of V."""
    problem = token_problem()
    seen = []

    def impact(z, y):
        seen.append((z.shape, y.shape))
        return F.cross_entropy(z, y)

    got = ipfast.score(problem.head, problem.train, problem.val, impact=impact)
    count = int(problem.counted_val.sum())
    assert seen == [((count, 5), (count,))]
    value = F.cross_entropy(problem.head(problem.x_val[problem.counted_val]), problem.y_val[problem.counted_val])
    query = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(problem.head.parameters()))])
    train, _ = of(problem, "cross_entropy", "mean")
    assert_relative(got.values, train @ query, FLOAT64_RELATIVE)


@pytest.mark.parametrize("tokens", ["mean", "sum", "each"])
@pytest.mark.parametrize("method", ["ip", "ip_ensemble", "self_tracin", "loss"])
def test_a_stored_query_and_a_scorer_know_what_a_sample_is(method, tokens, tmp_path):
    problem = token_problem()
    val = problem.val if method.startswith("ip") else None
    whole = ipfast.score(problem.head, problem.train, val, method=method, tokens=tokens).values
    query = ipfast.query(problem.head, val, method=method, tokens=tokens)
    if val is not None:
        query.save(tmp_path / "query.safetensors")
        query = ipfast.Query.load(tmp_path / "query.safetensors")
        assert query.tokens == tokens
        assert torch.equal(ipfast.score(problem.head, problem.train, query).values, whole)
        with pytest.raises(ipfast.InputError, match="expected no tokens beside a stored Query"):
            ipfast.score(problem.head, problem.train, query, tokens="sum" if tokens == "mean" else tokens)
    x, y = problem.train
    scorer = ipfast.Scorer(problem.head, query)
    assert_relative(torch.cat([scorer((x[i : i + 2], y[i : i + 2])) for i in range(0, len(x), 2)]), whole, FLOAT64_RELATIVE)


# Padding and arrival


def padded(x, y, left, right):
    """The same sequences with more padding, of garbage."""
    n, _, d = x.shape
    garbage = lambda k: torch.full((n, k, d), torch.nan, dtype=x.dtype)  # noqa: E731
    ignored = lambda k: torch.full((n, k), -100)  # noqa: E731
    return torch.cat([garbage(left), x, garbage(right)], dim=1), torch.cat([ignored(left), y, ignored(right)], dim=1)


class Sequences(Dataset):
    """Sequences of different length, without their padding at the end."""

    def __init__(self, x, y):
        counts = [max([*(row != -100).nonzero().flatten().tolist(), 0]) + 1 for row in y]
        self.samples = [(h[:count], label[:count]) for h, label, count in zip(x, y, counts, strict=True)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def padded_batch(samples):
    x, y = zip(*samples, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(x, batch_first=True, padding_value=7.0), pad(y, batch_first=True, padding_value=-100)


def long_problem():
    """Several blocks of tokens, and sequences that lie across every multiple of the block."""
    return token_problem(dtype=torch.float32, rows=1500, length=11)


def both_long(problem):
    """Long training and validation data."""
    return problem.train, (problem.x.flip(0), problem.train[1].flip(0))


def npy(x, y, folder):
    np.save(folder / "h.npy", x.numpy())
    np.save(folder / "y.npy", y.numpy())
    return folder / "h.npy", folder / "y.npy"


ARRIVALS = {
    "numpy": lambda x, y, _: (x.numpy(), y.numpy()),
    "sequence_last": lambda x, y, _: (x.transpose(0, 1).contiguous().transpose(0, 1), y),
    "mapped": npy,
    "left": lambda x, y, _: padded(x, y, 3, 0),
    "right": lambda x, y, _: padded(x, y, 0, 5),
    "right_mapped": lambda x, y, folder: npy(*padded(x, y, 0, 5), folder),
    "loader": lambda x, y, _: DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7),
    "ragged": lambda x, y, _: DataLoader(Sequences(x, y), batch_size=13, collate_fn=padded_batch),
    "one_by_one": lambda x, y, _: DataLoader(Sequences(x, y), batch_size=1),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("method", ["ip", "self_tracin", "loss"])
def test_padding_and_arrival_do_not_change_a_bit(method, arrival, tmp_path, monkeypatch):
    monkeypatch.setattr("ipfast.engines.head.BLOCK_BYTES", 1)
    problem = long_problem()
    folders = [tmp_path / "train", tmp_path / "val"]
    for folder in folders:
        folder.mkdir()
    data = both_long(problem)
    for backend in ("auto", "reference"):
        arrived = [ARRIVALS[arrival](*part, folder) for part, folder in zip(data, folders, strict=True)]
        options = {"method": method, "backend": backend}
        true = ipfast.score(problem.head, data[0], data[1] if method == "ip" else None, **options).values
        got = ipfast.score(problem.head, arrived[0], arrived[1] if method == "ip" else None, **options).values
        assert torch.equal(got, true)


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_each_token_keeps_its_bits_and_its_place(arrival, tmp_path):
    problem = long_problem()
    true = ipfast.score(problem.head, problem.train, problem.val, tokens="each")
    got = ipfast.score(problem.head, ARRIVALS[arrival](*problem.train, tmp_path), problem.val, tokens="each")
    assert torch.equal(got.values[got.counted], true.values[true.counted])
    assert torch.equal(got.counted.sum(dim=1), true.counted.sum(dim=1))
    if arrival == "left":
        assert torch.equal(got.counted[:, 3:], true.counted)


@pytest.mark.parametrize("full", [True, False], ids=["full", "partial"])
def test_data_without_padding_gives_the_same_bits_from_memory_and_file(full, tmp_path, monkeypatch):
    """Without padding blocks are views of the features; with a single hole they are gathered."""
    monkeypatch.setattr("ipfast.engines.head.BLOCK_BYTES", 1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1500, 5, 12, generator=generator), torch.randint(5, (1500, 5), generator=generator)
    if not full:
        y[700, 2] = -100
    head = token_problem(dtype=torch.float32).head
    for method in ("ip", "self_tracin", "loss"):
        val = (x[:300], y[:300]) if method == "ip" else None
        true = ipfast.score(head, (x, y), val, method=method).values
        assert torch.equal(ipfast.score(head, npy(x, y, tmp_path), val, method=method).values, true)
        loader = DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=100)
        assert torch.equal(ipfast.score(head, loader, val, method=method).values, true)


def test_sequences_longer_than_a_block(monkeypatch):
    monkeypatch.setattr("ipfast.engines.head.BLOCK_BYTES", 1)
    problem = token_problem(rows=3, length=2500)
    train, query = of(problem, "cross_entropy", "mean")
    got = ipfast.score(problem.head, problem.train, problem.val)
    assert_relative(got.values, train @ query, FLOAT64_RELATIVE)
    own = ipfast.score(problem.head, problem.train, method="self_tracin")
    assert_relative(own.values, -train.square().sum(dim=1), FLOAT64_RELATIVE)


# Networks


class Tagger(nn.Module):
    """A head at every position of its input."""

    def __init__(self, head):
        super().__init__()
        self.fc = copy.deepcopy(head)

    def forward(self, x):
        return self.fc(x)


class LanguageModel(nn.Module):
    """Embedding, a causal mean over earlier positions, an output embedding that is the input's."""

    def __init__(self, vocabulary=23, width=6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids, attention=None):
        h = self.embed(ids)
        keep = torch.ones_like(ids, dtype=h.dtype) if attention is None else attention.to(h.dtype)
        h = (h * keep[..., None]).cumsum(dim=1) / keep.cumsum(dim=1).clamp(min=1)[..., None]
        output = type("Output", (), {})()
        output.logits = self.lm_head(self.mix(h).tanh())
        return output


def language_data(rows, length, seed):
    """(ids, attention, next tokens) padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(23, (rows, length), generator=generator)
    attention = torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    labels[:, :-1][~attention[:, 1:]] = -100
    return ids.masked_fill(~attention, 0), attention, labels


@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_a_language_model(method):
    """∇ of the loss as Hugging Face defines it, mean over next tokens, with respect to the head alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel().double().eval()
    train, val = language_data(19, 9, 0), language_data(8, 7, 1)
    untied = copy.deepcopy(model)
    untied.lm_head.weight = nn.Parameter(model.embed.weight.detach().clone())

    def gradients(ids, attention, labels):
        rows = []
        for one, mask, label in zip(ids, attention, labels, strict=True):
            z = untied(one[None], mask[None]).logits[0]
            loss = F.cross_entropy(z, label, ignore_index=-100)
            rows.append(torch.autograd.grad(loss, untied.lm_head.weight)[0].flatten())
        return torch.stack(rows)

    g = gradients(*train)
    truth = g @ gradients(*val).mean(dim=0) if method == "ip" else -g.square().sum(dim=1)
    datasets = [torch.utils.data.TensorDataset(*data) for data in (train, val)]
    for batch_size in (1, 4, 64):
        got = ipfast.score(model, datasets[0], datasets[1] if method == "ip" else None, method=method, batch_size=batch_size)
        assert_relative(got.values, truth, FLOAT64_RELATIVE)
        assert got.stats["head"] == "lm_head"
    unmasked = [(ids, labels) for ids, _, labels in (train, val)]  # padding at the end does not reach earlier positions
    got = ipfast.score(model, unmasked[0], unmasked[1] if method == "ip" else None, method=method)
    assert_relative(got.values, truth, FLOAT64_RELATIVE)


def test_a_vocabulary_in_several_tiles_of_validation(monkeypatch):
    monkeypatch.setattr("ipfast.groups.head_query.VALIDATION_LOGITS", 64)
    problem = token_problem(rows=40, length=9)
    small = ipfast.score(problem.head, problem.val, problem.train).values
    monkeypatch.undo()
    assert_relative(small, ipfast.score(problem.head, problem.val, problem.train).values, FLOAT64_RELATIVE)


def test_a_scikit_learn_classifier_of_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, 4, generator=generator, dtype=torch.float64)
    names = np.array(["b", "a", "c"])[(x[..., 0] > 0).long() + (x[..., 1] > 1).long()]
    estimator = LogisticRegression().fit(x.reshape(-1, 4).numpy(), names.ravel())
    got = ipfast.score(estimator, (x, names), (x[:5], names[:5]))
    head = nn.Linear(4, 3, dtype=torch.float64)
    head.load_state_dict({"weight": torch.tensor(estimator.coef_), "bias": torch.tensor(estimator.intercept_)})
    y = torch.from_numpy(np.searchsorted(estimator.classes_, names))
    assert_relative(got.values, ipfast.score(head, (x, y), (x[:5], y[:5])).values, FLOAT64_RELATIVE)


# What is refused


def test_labels_that_do_not_fit_the_tokens_are_refused():
    problem = token_problem()
    (x, y), val = problem.train, problem.val

    def refused(train, message, loss="auto", **options):
        with pytest.raises((ipfast.InputError, ipfast.InputTypeError), match=message):
            ipfast.score(problem.head, train, val, loss=loss, **options)
        loader = DataLoader(torch.utils.data.TensorDataset(*train), batch_size=9)
        with pytest.raises((ipfast.InputError, ipfast.InputTypeError), match=message):
            ipfast.score(problem.head, loader, val, loss=loss, **options)

    refused((x, y[:, 1:]), r"expected labels of shape \[9, 7\], a class for each token; got \[9, 6\]\. .* shifted")
    refused((x, y[:, 0]), r"expected labels of shape \[9, 7\], a class for each token; got \[9\]\. .* pool the tokens")
    refused((x, y[:, 0].double()), r"expected labels of shape \[9, 7, 5\], a row of targets for each token; got \[9\]")
    wrong = y.clone()
    wrong[4, 3] = 5
    refused((x, wrong), r"sequence 4: expected labels in 0\.\.4 for 5 classes; got 5 at row 3")
    one = y.double()[..., None].repeat(1, 1, 5)
    one[3, 2, 1] = torch.nan
    refused((x, one.abs() / 100), r"sequence 3: expected soft targets that are finite and not negative; row 2 is not")
    refused((x[..., :-1], y), r"expected (train )?features of shape \[N, 12\] for .*; got \[9, 7, 11\]\. .* \[N, T, 12\]")


def test_tokens_on_one_side_only_are_refused():
    problem, samples = token_problem(), linear_problem()
    with pytest.raises(
        ipfast.InputError, match=r"expected val and train both of tokens or neither; val has features of samples"
    ):
        ipfast.score(problem.head, problem.train, samples.val)
    with pytest.raises(ipfast.InputError, match=r"expected val and train both .* val has features of tokens \[N, T, 12\]"):
        ipfast.score(problem.head, samples.train, problem.val)
    loader = DataLoader(torch.utils.data.TensorDataset(*problem.train))
    with pytest.raises(ipfast.InputError, match=r"expected train and val both of tokens or neither"):
        ipfast.score(problem.head, loader, samples.val)
    for val, train in ((samples.val, problem.train), (problem.val, samples.train)):
        query = ipfast.query(problem.head, val)
        with pytest.raises(ipfast.InputError, match=r"expected train and the query both of tokens or neither"):
            ipfast.score(problem.head, train, query)
        with pytest.raises(ipfast.InputError, match=r"expected batch and the query both of tokens or neither"):
            ipfast.Scorer(problem.head, query)(train)
    for tokens in ("sum", "each"):
        with pytest.raises(ipfast.InputError, match=rf"expected train features of shape \[N, T, 12\] with tokens='{tokens}'"):
            ipfast.score(samples.model, samples.train, samples.val, tokens=tokens)


def test_labels_of_tokens_for_a_network_of_samples_and_the_reverse_are_refused():
    problem = token_problem()
    x, y = problem.train

    class Pooled(Tagger):
        def forward(self, x):
            return self.fc(x.nan_to_num().mean(dim=1))

    with pytest.raises(
        ipfast.InputError, match=r"expected val labels of shape \[N\], since features \[11, 12\] reach the head"
    ):
        ipfast.score(Pooled(problem.head), (x, y), problem.val)
    with pytest.raises(ipfast.InputError, match=r"expected val labels of shape \[11, 7\] for the 7 tokens that reach the head"):
        ipfast.score(Tagger(problem.head), (x, problem.y[:, 0]), (problem.x_val, problem.y_val[:, 0]))
    with pytest.raises(ipfast.InputError, match=r"expected val labels of shape \[11, 7\] for the 7 tokens .* got \[11, 6\]"):
        ipfast.score(Tagger(problem.head), (x, y), (problem.x_val, problem.val[1][:, 1:]))


def test_validation_without_counted_tokens_is_refused():
    problem = token_problem()
    with pytest.raises(
        ipfast.InputError, match="expected a token that counts in val, for each query; all labels are the ignored"
    ):
        ipfast.score(problem.head, problem.train, (problem.x_val, torch.full_like(problem.y_val, -100)))


def test_training_data_without_counted_tokens_scores_zero():
    problem = token_problem()
    train = (problem.x, torch.full_like(problem.y, -100))
    for method in ("ip", "ip_ensemble", "self_tracin", "loss"):
        val = problem.val if method.startswith("ip") else None
        for tokens in ("mean", "each"):
            got = ipfast.score(problem.head, train, val, method=method, tokens=tokens)
            assert not got.values.any()
            assert got.stats["empty_sequences"] == len(problem.y)


def test_what_has_no_meaning_for_tokens_is_refused():
    problem = token_problem()
    x, y = problem.val
    several = [(x[::2], y[::2]), (x[1::2], y[1::2])]
    with pytest.raises(ipfast.InputError, match=r"expected a single query with tokens='each'.*tokens='mean'"):
        ipfast.score(problem.head, problem.train, several, tokens="each")
    with pytest.raises(ipfast.InputError, match=r"expected a single query with tokens='each'"):
        ipfast.query(problem.head, several, tokens="each")
    with pytest.raises(ipfast.InputError, match=r"expected aggregate=False with one row .* val_groups=range\(M\)"):
        ipfast.score(problem.head, problem.train, problem.val, aggregate=False)
    with pytest.raises(ipfast.InputError, match=r"Did you mean 'mean'"):
        ipfast.score(problem.head, problem.train, problem.val, tokens="means")
    with pytest.raises(ipfast.InputError, match=r"expected no tokens='each' with method 'random'"):
        ipfast.score(problem.head, problem.train, method="random", tokens="each")
    with pytest.raises(ipfast.UnavailableError, match=r"no kernel for the norm of a sequence's gradient; got 'cpp'"):
        ipfast.score(problem.head, problem.train, method="self_tracin", backend="cpp")
    assert len(ipfast.score(problem.head, problem.train, method="random")) == len(problem.y)


@pytest.mark.parametrize("tokens", ["mean", "sum", "each"])
@pytest.mark.parametrize("method", ["ip", "self_tracin", "loss"])
def test_a_token_that_is_not_finite_is_named(method, tokens):
    problem = token_problem()
    row = int(problem.counted.any(dim=1).nonzero()[-1])
    token = int(problem.counted[row].nonzero()[-1])
    x = problem.x.clone()
    x[row, token, 3] = torch.inf
    val = problem.val if method == "ip" else None
    with pytest.raises(ipfast.NonFiniteError, match=f"train features; got .* at row {row}, token {token}, column 3"):
        ipfast.score(problem.head, (x, problem.train[1]), val, method=method, tokens=tokens)
    row = int(problem.counted_val.any(dim=1).nonzero()[-1])
    token = int(problem.counted_val[row].nonzero()[0])
    x_val = problem.x_val.clone()
    x_val[row, token, 2] = torch.nan
    with pytest.raises(ipfast.NonFiniteError, match=f"val features; got nan at row {row}, token {token}, column 2"):
        ipfast.score(problem.head, problem.train, (x_val, problem.val[1]), tokens=tokens)


# Results


def test_scores_of_tokens_select_sequences_only_when_told_how(tmp_path):
    problem = token_problem()
    got = ipfast.score(problem.head, problem.train, problem.val, tokens="each", ids=[f"s{i}" for i in range(9)])
    assert "9 samples × 7 tokens" in repr(got)
    for select in (got.lowest, got.highest, got.topk, lambda k: ipfast.curate.trim(got, k)):
        with pytest.raises(ipfast.InputError, match=r"expected one score a sample; these are scores of tokens .* by_sequence"):
            select(2)
    worst = got.by_sequence("min")
    assert ipfast.curate.trim(worst, 2).shape == (7,)
    assert worst.ids.tolist() == got.ids.tolist()
    with pytest.raises(ipfast.InputError, match="expected scores of tokens"):
        worst.by_sequence()
    with pytest.raises(ipfast.InputError, match="expected counted to be bool"):
        ipfast.Scores(got.values, "ip", "head", "cpp", counted=got.counted[1:])
    got.save(tmp_path / "s.safetensors")
    again = ipfast.Scores.load(tmp_path / "s.safetensors")
    assert torch.equal(again.values, got.values)
    assert torch.equal(again.counted, got.counted)
    got.save(tmp_path / "s.npy")
    assert np.array_equal(np.load(tmp_path / "s.npy"), got.values.numpy())
    got.save(tmp_path / "s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "id,token,token score"
    rows, places = got.counted.nonzero(as_tuple=True)
    for line, row, token in zip(lines[1:], rows.tolist(), places.tolist(), strict=True):
        assert line == f"s{row},{token},{float(got.values[row, token])!r}"
    for name in ("s.csv", "s.npy"):  # a file of tokens must not pass for one of samples
        with pytest.raises(ipfast.InputError, match=r"Scores\.load: expected path to"):
            ipfast.Scores.load(tmp_path / name)


@pytest.mark.parametrize("combine", ["zscore", "rank"])
@pytest.mark.parametrize("params", ["last", "all"])
def test_sequences_without_tokens_are_not_among_those_that_are_ranked(combine, params):
    problem = token_problem()
    method = ipfast.Method(points=ipfast.Dropout(3, 0.3, combine=combine))
    full = problem.counted.any(dim=1)
    options = {"method": method, "params": params, "progress": False}
    (x, y), val = ((x.nan_to_num(), y) for x, y in (problem.train, problem.val))
    found = ipfast.score(problem.head, (x, y), val, **options)
    expected = ipfast.score(problem.head, (x[full], y[full]), val, **options)
    assert found.values[EMPTY] == 0
    assert found.stats["empty_sequences"] == 1
    assert_relative(found.values[full], expected.values, FLOAT64_RELATIVE)
