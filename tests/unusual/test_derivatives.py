"""Networks that take derivatives, map or compile in their forward pass, and functions that have no forward derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from definition import X_VAL, Y_VAL, C, D, M, N, X, Y, by_definition, gradients, labels, numbers, seeded
from tolerances import AUTOCAST_RELATIVE, FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative_to_largest
from torch import nn
from torch.utils.checkpoint import checkpoint

import ipfast
from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network


class Energy(nn.Module):
    """The gradient of a learned energy, as of forces, taken in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.norm, self.energy, self.head, self.how = (
            nn.Linear(D, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 1),
            nn.Linear(D, C),
            how,
        )

    def total(self, x):
        return self.energy(self.norm(self.inner(x)).tanh()).sum()

    def forward(self, x):
        if self.how == "autograd":
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                (force,) = torch.autograd.grad(self.total(at), at, create_graph=True)
        elif self.how == "functional":
            force = torch.autograd.functional.jacobian(self.total, x, create_graph=True)
        elif self.how == "func.grad":
            force = torch.func.grad(self.total)(x)
        else:
            force = torch.func.vmap(torch.func.grad(lambda row: self.energy(self.inner(row).tanh()).sum()))(x)
        return self.head(force)


class Members(nn.Module):
    """An ensemble of heads by torch.vmap."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(5, C, 4)), nn.Parameter(torch.randn(5, C))

    def forward(self, x):
        h = self.inner(x).relu()
        return torch.vmap(lambda weight, bias: F.linear(h, weight, bias))(self.weight, self.bias).mean(0)


NETWORKS = {how: lambda how=how: Energy(how) for how in ("autograd", "functional", "func.grad", "vmap")} | {"members": Members}
ENGINES = ["auto", "forward", "ghost", "explicit"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_differentiate_or_map(name, engine):
    model = seeded(NETWORKS[name])
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", engine=engine, progress=False)
    assert_relative_to_largest(found.values, by_definition(model, X, Y, X_VAL, Y_VAL), FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", NETWORKS)
def test_self_influence_of_networks_that_differentiate_or_map(name):
    model = seeded(NETWORKS[name])
    found = ipfast.score(model, (X, Y), params="all", method="self_tracin", progress=False)
    assert_relative_to_largest(found.values, -gradients(model, X, Y).square().sum(dim=1), FLOAT64_RELATIVE)


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(D, 4), nn.Linear(4, C)

    def forward(self, x):
        return self.head(squashed(self.inner(x)))


@torch.compile
def squashed(h):
    return h.tanh() * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_functions_that_are_compiled_on_their_own(engine):
    model = seeded(Compiled)
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", engine=engine, progress=False)
    with torch.compiler.set_stance("force_eager"):
        expected = by_definition(model, X, Y, X_VAL, Y_VAL)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.recurrent, self.head = nn.Linear(D, 4), kind(4, 4, batch_first=True), nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.recurrent(self.inner(x))[0][:, -1])


class Turned(nn.Module):
    """Products that autocast takes in the narrow dtype, after one that it took so."""

    def __init__(self):
        super().__init__()
        self.inner, self.wide, self.mix = nn.Linear(D, 4), nn.ConvTranspose1d(4, 3, 2), nn.Parameter(torch.randn(3, C))

    def forward(self, x):
        h = self.wide(self.inner(x).transpose(1, 2)).tanh()
        return torch.einsum("bct,cz->btz", h, self.mix).mean(1)


LAYERS = {kind.__name__: lambda kind=kind: Recurrent(kind) for kind in (nn.LSTM, nn.GRU, nn.RNN)} | {"turned": Turned}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_layers_of_libraries_in_float32(name, engine, precision):
    recurrent = name in ("LSTM", "GRU", "RNN")
    model, x, x_val = seeded(LAYERS[name]), numbers(N, 6, D), numbers(M, 6, D, seed=1)
    expected = by_definition(model, x, Y, x_val, Y_VAL)
    options = {"params": "all", "engine": engine, "precision": precision, "progress": False}
    if recurrent and precision is not None and engine != "explicit":
        with pytest.raises(ipfast.UnavailableError, match=r"products in bfloat16 beside|neither\. Leave them out"):
            ipfast.score(model.float(), (x.float(), Y), (x_val.float(), Y_VAL), **options)
        return
    found = ipfast.score(model.float(), (x.float(), Y), (x_val.float(), Y_VAL), **options)
    tolerance = FLOAT32_RELATIVE if precision is None else AUTOCAST_RELATIVE
    assert_relative_to_largest(found.values.double(), expected, tolerance)


class Jacobian(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x):
        return self.head(torch.func.jvp(lambda z: self.inner(z).tanh(), (x,), (torch.ones_like(x),))[1])


@pytest.mark.parametrize("engine", ["forward", "ghost"])
def test_forward_mode_within_forward_mode_has_a_message(engine):
    with pytest.raises(ipfast.UnavailableError, match=r"with a forward derivative; .*Use engine=|engine='explicit'"):
        ipfast.score(seeded(Jacobian), (X, Y), (X_VAL, Y_VAL), params="all", engine=engine, progress=False)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.head, self.reentrant = nn.Linear(D, 4), nn.Linear(4, C), reentrant

    def forward(self, x):
        return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant).tanh())


@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_activation_checkpoints_are_named(method):
    val = (X_VAL, Y_VAL) if method == "ip" else None
    for inner in (nn.Identity(), nn.Linear(D, D).double()):  # with an input that needs no gradient, and with one that does
        model = nn.Sequential(inner, seeded(lambda: Checkpointed(True)))
        with pytest.raises(ipfast.InputError, match="Pass use_reentrant=False, which gives the same"):
            ipfast.score(model, (X, Y), val, params="all", method=method, progress=False)
    model = seeded(lambda: Checkpointed(False))
    found = ipfast.score(model, (X, Y), val, params="all", method=method, progress=False)
    each = gradients(model, X, Y)
    expected = each @ gradients(model, X_VAL, Y_VAL).mean(dim=0) if val else -each.square().sum(dim=1)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Sorted(nn.Module):
    """Brings its samples into the order of their lengths, which shows only where these differ."""

    def __init__(self, how):
        super().__init__()
        self.embed, self.inner, self.head, self.how = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 4), nn.Linear(4, C), how

    def forward(self, ids):
        order = (ids != 0).sum(1).argsort(descending=True, stable=True)
        if self.how == "weights elsewhere":
            h, short = self.inner(self.embed(ids)).tanh(), (ids == 0).any(1)
            if bool(short.any()):
                h = torch.where(short[:, None, None], F.linear(h, self.inner.weight.t()).tanh(), h)
            return self.head(h.mean(1))
        x = ids[order] if self.how == "index" else ids.index_select(0, order)
        z = self.head((self.inner(self.embed(x)).tanh() * (x != 0)[..., None]).mean(1))
        if self.how == "index":
            return z[order.argsort()]
        return torch.zeros_like(z).index_copy(0, order, z)


@pytest.mark.parametrize("how", ["index", "select and copy", "weights elsewhere"])
@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_what_a_network_does_with_later_samples_alone(how, method):
    model = seeded(lambda: Sorted(how))
    ids = torch.randint(1, 9, (24, 7), generator=torch.Generator().manual_seed(0))
    for row in range(10, 24):  # the first ones, by which a plan is made, are all as long
        ids[row, 1 + row % 6 :] = 0
    y = labels(24)
    val = (ids[:8].flip(1), y[:8])
    given = val if method == "ip" else None
    found = ipfast.score(model, (ids, y), given, params="all", method=method, engine="ghost", progress=False)
    each = gradients(model, ids, y)
    expected = each @ gradients(model, *val).mean(dim=0) if method == "ip" else -each.square().sum(dim=1)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Shared(nn.Module):
    """A table beside the samples, the same for all."""

    def __init__(self):
        super().__init__()
        self.inner, self.table, self.head = nn.Linear(D, 4), nn.Linear(2, 4), nn.Linear(4, C)

    def forward(self, x, table):
        return self.head((self.inner(x) + self.table(table).mean(0)).tanh())


@pytest.mark.parametrize("options", [{"engine": name} for name in ENGINES] + [{"method": "self_tracin"}], ids=str)
def test_an_argument_that_all_samples_share(options):
    model, table = seeded(Shared), numbers(7, 2, seed=3)

    def loader(x, y):
        return torch.utils.data.DataLoader([*zip(x, y, strict=True)], 5, collate_fn=batch)

    def batch(samples):
        x, y = map(torch.stack, zip(*samples, strict=True))
        return x, table, y

    given = None if "method" in options else loader(X_VAL, Y_VAL)
    found = ipfast.score(model, loader(X, Y), given, params="all", progress=False, **options)
    each, val = (gradients(lambda x: model(x, table), x, y, owner=model) for x, y in ((X, Y), (X_VAL, Y_VAL)))
    expected = -each.square().sum(dim=1) if "method" in options else each @ val.mean(dim=0)
    assert_relative_to_largest(found.values, expected, FLOAT64_RELATIVE)


class Looking(nn.Module):
    """A table of as many rows as a batch has samples, in which they look up two of the rows."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(D, 4), nn.Linear(4, C)
        self.register_buffer("table", torch.randn(3, 4))

    def forward(self, x):
        return self.head((self.inner(x) + self.table[(x[:, 0] > 0).long()]).tanh())


def test_what_looks_up_a_table_keeps_its_rules():
    model, weight = seeded(Looking), torch.arange(1.0, 1 + C, dtype=torch.float64)
    network = Network("test", model, ipfast.losses.CrossEntropy(weight=weight))
    engine = GhostEngine(network)
    y = torch.tensor([1, 2, 0])  # a permutation, by which the loss looks up its weights
    engine.norm_sq(X[:3], network.prepare("test", X[:3], y, 3))
    assert not engine.plan(X[:3], y).remainder
    found = ipfast.score(model, (X, Y), (X_VAL, Y_VAL), params="all", engine="ghost", batch_size=3, progress=False)
    assert_relative_to_largest(found.values, by_definition(model, X, Y, X_VAL, Y_VAL), FLOAT64_RELATIVE)
