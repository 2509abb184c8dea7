"""Norms of parameters with several uses against autograd, one sample at a time; no gradient may be formed for them."""

import pytest
import torch
from networks import gradient_loop, squared_norms
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn

from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.layers import RULES, can_share, shared
from ipfast.losses import CrossEntropy

CLASSES = 7


class Language(nn.Module):
    """An embedding, with padding, whose weight is used by a second embedding and by output layers with biases of their own."""

    def __init__(self, padding, outputs=1, embeddings=1):
        super().__init__()
        self.embed, self.other = nn.Embedding(CLASSES, 4, padding_idx=padding), nn.Embedding(CLASSES, 4)
        self.mix = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, CLASSES) for _ in range(outputs))
        self.embeddings = embeddings
        for layer in (self.other, *self.heads):
            layer.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        if self.embeddings > 1:
            h = h * self.other(x.flip(1)[:, :3]).mean(1, keepdim=True)
        h = torch.tanh(self.mix(h))
        z = self.heads[0](h).cumsum(1).sin().mean(1)  # every position has a cotangent of its own
        for head in self.heads[1:]:
            z = z + head(h[:, 0])
        return z


class Again(nn.Module):
    """Linear layers and normalisations that are called twice, on different numbers of positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.layer, self.head = (
            nn.Embedding(CLASSES, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 4),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x):
        h = torch.tanh(self.layer(self.norm(self.embed(x))))
        return self.head(self.layer(self.norm(h[:, 1:] * 2).cumsum(1).sin()).mean(1))


def no_gradients(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a gradient was formed")

    monkeypatch.setattr("ipfast.engines.ghost.ExplicitEngine.norm_sq", refuse)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize(("outputs", "embeddings"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_tied_embeddings(monkeypatch, padding, outputs, embeddings):
    torch.manual_seed(0)
    model = Language(padding, outputs, embeddings).double().eval()
    x, y = torch.randint(0, CLASSES, (9, 5)), torch.arange(9) % CLASSES
    x[::2, 3:] = 0
    no_gradients(monkeypatch)
    for elements in (2**23, 60):  # all samples at once, and one at a time
        monkeypatch.setattr(shared, "GATHERED", elements)
        engine = GhostEngine(Network("test", model, CrossEntropy()))
        assert_relative(engine.norm_sq(x, y), squared_norms(gradient_loop(model, x, y)), FLOAT64_RELATIVE)
        assert engine.plan(x, y).repeated == {"embed.weight"}


def test_the_uses_are_not_orthogonal():
    """What is tested above would not be seen if the product between the uses were small."""
    torch.manual_seed(0)
    model = Language(None).double().eval()
    x, y = torch.randint(0, CLASSES, (9, 5)), torch.arange(9) % CLASSES
    tied = gradient_loop(model, x, y)["embed.weight"].flatten(1).square().sum(dim=1)
    model.heads[0].weight = nn.Parameter(model.embed.weight.detach().clone())
    apart = gradient_loop(model, x, y)
    sums = sum(apart[name].flatten(1).square().sum(dim=1) for name in ("embed.weight", "heads.0.weight"))
    assert bool(((tied - sums).abs() > 1e-3 * tied).all())


@pytest.mark.parametrize("params", ["all", ["weight$"], ["bias$"]])
def test_layers_that_are_called_again(monkeypatch, params):
    torch.manual_seed(0)
    model, x, y = Again().double().eval(), torch.randint(0, CLASSES, (9, 5)), torch.arange(9) % CLASSES
    engine = GhostEngine(Network("test", model, CrossEntropy(), params=params))
    gradients = {n: g for n, g in gradient_loop(model, x, y).items() if n in engine.network.parameters}
    no_gradients(monkeypatch)
    assert_relative(engine.norm_sq(x, y), squared_norms(gradients), FLOAT64_RELATIVE)


def test_which_rules_can_share():
    linear, embedding, norm, conv = (RULES[kind] for kind in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv1d))
    for together in ([linear], [linear, linear], [linear, embedding], [embedding, embedding], [norm, norm]):
        assert can_share(together)
    for together in ([conv, conv], [norm, linear], [norm, RULES[nn.RMSNorm]], [conv, linear]):
        assert not can_share(together)
