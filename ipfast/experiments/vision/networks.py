"""Networks for square images, of 32 × 32 unless said: bytes in, logits out; a linear layer comes last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

SIDE = 32
PATCHES = 8
"""Along each side of an image, so that a patch is of 4 × 4 pixels where the image is of 32 × 32, and of 8 × 8 of 64 × 64."""


class Pixels(nn.Module):
    """[B, S, S, 3] uint8 -> [B, 3, S, S] float32 around zero, channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 3, 1, 2).float() - 120) / 64


def convnet(classes: int, side: int = SIDE) -> nn.Sequential:
    """1.1 million parameters: a 2×2 stem, three blocks of two 3×3 convolutions, the mean over places, and a linear head.

    Images of any side go through it.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.ReLU()]
    width = 24
    for wider in (32, 128, 256):
        layers += [nn.Conv2d(width, wider, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.Conv2d(wider, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    return nn.Sequential(Pixels(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class _Block(nn.Module):
    """Two 3×3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inside(x) + self.around(x))


def resnet34(classes: int, side: int = SIDE) -> nn.Sequential:
    """ResNet-34 for 32 × 32: a 3×3 stem without pooling, 21 million parameters. Images of any side go through it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(_Block(width, outputs, stride if block == 0 else 1))
            width = outputs
    return nn.Sequential(Pixels(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class _Tokens(nn.Module):
    """[B, 3, S, S] -> [B, P, width]: a linear map of each patch."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, side // PATCHES, side // PATCHES)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        return tokens


class _Positions(nn.Module):
    """What tells places apart, added to the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_place = nn.Parameter(0.02 * torch.randn(PATCHES**2, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.of_place


class _Attention(nn.Module):
    """Each token takes from all: several heads of softmax(q kᵀ/√d) v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Not torch's fused function: 64 tokens are few, and its backward pass makes a step on a CPU 1.7 times as long.
        weights = (q / q.shape[-1] ** 0.5 @ k.transpose(2, 3)).softmax(dim=-1)
        mixed: Tensor = self.outputs((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class _AcrossTokens(nn.Module):
    """Two linear layers over the places, the same ones for every channel."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inside = _two_layers(PATCHES**2, hidden)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inside(x.transpose(1, 2)).transpose(1, 2)
        return mixed


class _Around(nn.Module):
    """What is inside, of the normalised tokens, and the way around it."""

    def __init__(self, width: int, inside: nn.Module) -> None:
        super().__init__()
        self.norm, self.inside = nn.LayerNorm(width), inside

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.inside(self.norm(x))
        return x + added


class _MeanOfTokens(nn.Module):
    """[B, P, width] -> [B, width]"""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def _two_layers(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def vit(classes: int, side: int = SIDE, *, depth: int, width: int, heads: int) -> nn.Sequential:
    """Vision transformer (arXiv 2010.11929), hidden layers four times as wide, the mean over tokens."""
    layers: list[nn.Module] = [_Tokens(width, side), _Positions(width)]
    for _ in range(depth):
        layers += [_Around(width, _Attention(width, heads)), _Around(width, _two_layers(width, 4 * width))]
    return nn.Sequential(Pixels(), *layers, nn.LayerNorm(width), _MeanOfTokens(), nn.Linear(width, classes))


def mixer(classes: int, side: int = SIDE, *, depth: int, width: int) -> nn.Sequential:
    """MLP-Mixer (arXiv 2105.01601), hidden layers half as wide across tokens and four times across channels."""
    layers: list[nn.Module] = [_Tokens(width, side)]
    for _ in range(depth):
        layers += [_Around(width, _AcrossTokens(width // 2)), _Around(width, _two_layers(width, 4 * width))]
    return nn.Sequential(Pixels(), *layers, nn.LayerNorm(width), _MeanOfTokens(), nn.Linear(width, classes))


NETWORKS: dict[str, Callable[[int, int], nn.Sequential]] = {
    # (classes, side of the images) -> network; of those with patches the name says depth and width
    "convnet": convnet,
    "resnet34": resnet34,
    "vit-4x128": partial(vit, depth=4, width=128, heads=4),
    "mixer-4x128": partial(mixer, depth=4, width=128),
    "vit-6x512": partial(vit, depth=6, width=512, heads=8),
    "mixer-6x512": partial(mixer, depth=6, width=512),
}
