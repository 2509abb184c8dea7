"""Small networks with every kind of layer, and batches for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# transformers looks for a package of Hugging Face of this name, and would find the folder of the checkout.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


def unusual_statistics(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters far from zero and one, in eval mode, float64."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if hasattr(module, "normalized_shape") or isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model.double().eval()


class Images(nn.Module):
    """Strided, dilated and grouped convolutions, eval BatchNorm, in-place activations and residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.groups = nn.GroupNorm(2, 8)
        self.point = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = F.relu(self.groups(self.grouped(x)), inplace=True)
        y = self.point(y)
        y += x
        return self.fc(F.silu(y).mean((2, 3)))


class Texts(nn.Module):
    """Embedding with padding, LayerNorm, both kinds of attention, a layer called twice, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.layer = nn.LayerNorm(8)
        self.root = nn.RMSNorm(8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.qkv = nn.Linear(8, 24)
        self.twice = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = F.relu(self.norm(self.conv(x.transpose(1, 2))), inplace=True).transpose(1, 2)
        x = self.encoder(self.layer(x), src_key_padding_mask=(tokens == 0) & (tokens.cumsum(1) > 0))
        q, k, v = self.qkv(self.root(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        x = self.twice(torch.tanh(self.twice(x)))
        return F.linear(x.mean(1), self.embed.weight)


def images(samples: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """(model, inputs, labels)"""
    torch.manual_seed(seed)
    model = unusual_statistics(Images())
    return model, torch.randn(samples, 3, 9, 8, dtype=torch.float64), torch.randint(0, 5, (samples,))


def texts(samples: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """(model, inputs, labels); some tokens are padding."""
    torch.manual_seed(seed)
    model = unusual_statistics(Texts())
    tokens = torch.randint(1, 11, (samples, 7))
    tokens[::2, 5:] = 0
    return model, tokens, torch.randint(0, 11, (samples,))


PROBLEMS: dict[str, Callable[..., Any]] = {"images": images, "texts": texts}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All of a model that scoring may not change."""
    return {
        "values": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "identity": {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)},
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "fast_path": torch.backends.mha.get_fastpath_enabled(),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Assert that a model is bit for bit what it was."""
    after = snapshot(model)
    values, earlier = after.pop("values"), {**before}
    for name, value in earlier.pop("values").items():
        assert torch.equal(values[name], value), name
    assert after == earlier


def gradient_loop(model: nn.Module, inputs: Any, labels: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients [B, *shape] of the cross-entropy by autograd, one sample at a time."""
    named = dict(model.named_parameters())
    rows = []
    for row in range(len(labels)):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            # A network that changes the input of a layer in place has a gradient, though autograd alone refuses it.
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                loss = F.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1])
                found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        rows.append([g.to_dense() for g in found])
    return {name: torch.stack(column) for name, column in zip(named, zip(*rows, strict=True), strict=True)}


def products(gradients: dict[str, Tensor], queries: dict[str, Tensor]) -> Tensor:
    """⟨q, g_i⟩ [B, Q] over the parameters of the queries."""
    return torch.stack([torch.einsum("b...,q...->bq", gradients[name], query) for name, query in queries.items()]).sum(dim=0)


def queries_like(parameters: Mapping[str, Tensor], count: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Random queries [count, *shape], in the dtype of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in parameters.items()
    }


def squared_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """‖g_i‖² [B]"""
    return torch.stack([g.reshape(len(g), -1).square().sum(dim=1) for g in gradients.values()]).sum(dim=0)
