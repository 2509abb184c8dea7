"""Small models and data that the tests above the operations share; everything is random, seeded and in the dtype asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cases import HeadCase, head_data
from torch import Tensor, nn

TRAIN = HeadCase("train", 29, 12, 5)
ROWS, VALIDATION_ROWS = TRAIN.rows, 11
LONG = HeadCase("long", 6200, 12, 5)
"""More rows than several blocks of the reference, and not a multiple of one."""


@dataclass(frozen=True)
class Problem:
    """A model, its last layer, training and validation samples."""

    model: nn.Module
    head: nn.Linear
    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        return self.x_val, self.y_val


def linear_problem(loss: str = "cross_entropy", dtype: torch.dtype = torch.float64, case: HeadCase = TRAIN) -> Problem:
    """A bare nn.Linear on features; the first rows of the case are training data, as many as it says."""
    both = head_data(HeadCase(case.name, case.rows + VALIDATION_ROWS, case.width, case.classes), loss, dtype)
    head = nn.Linear(case.width, case.classes, dtype=both.w.dtype)
    with torch.no_grad():
        head.weight.copy_(both.w)
        head.bias.copy_(both.b)
    n = case.rows
    return Problem(head, head, both.h[:n].clone(), both.y[:n].clone(), both.h[n:].clone(), both.y[n:].clone())


class SmallNet(nn.Module):
    """Convolution, batch norm with statistics of its own, dropout, linear head `fc`."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


class Recorded(nn.Module):
    """Any model, and how often it was run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.calls.append(len(x))
        return self.inner(x)


def network_problem(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> Problem:
    """A convolutional network in eval mode, on random images."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SmallNet().to(dtype).eval()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        x, x_val = torch.randn(rows, 2, 4, 4, dtype=dtype), torch.randn(VALIDATION_ROWS, 2, 4, 4, dtype=dtype)
        y, y_val = torch.randint(4, (rows,)), torch.randint(4, (VALIDATION_ROWS,))
    return Problem(model, model.fc, x, y, x_val, y_val)


class ScoringCollate:
    """Scores a batch in the worker that has loaded it. It is here because a spawned worker imports it by name."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __call__(self, samples: Any) -> Tensor:
        return self.scorer(torch.utils.data.default_collate(samples))
