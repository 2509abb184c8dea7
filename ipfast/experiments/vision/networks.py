"""Networks for images of 32 × 32: bytes in, logits out; a linear layer comes last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """[B, 32, 32, 3] uint8 -> [B, 3, 32, 32] float32 around zero, channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 3, 1, 2).float() - 120) / 64


def convnet(classes: int) -> nn.Sequential:
    """1.1 million parameters: a 2×2 stem, three blocks of two 3×3 convolutions, the mean over places, and a linear head."""
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


def resnet34(classes: int) -> nn.Sequential:
    """ResNet-34 for 32 × 32: a 3×3 stem without pooling, 21 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(_Block(width, outputs, stride if block == 0 else 1))
            width = outputs
    return nn.Sequential(Pixels(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {"convnet": convnet, "resnet34": resnet34}
