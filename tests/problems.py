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


@dataclass(frozen=True)
class TokenProblem:
    """A linear head and sequences of tokens, of which some do not count: of train sequence 2 and of val sequence 1 none does.

    Features of tokens that do not count are NaN. `marked` labels say which those are: by −100, or by NaN for targets.
    """

    head: nn.Linear
    x: Tensor
    y: Tensor
    counted: Tensor
    x_val: Tensor
    y_val: Tensor
    counted_val: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x, marked(self.y, self.counted)

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        return self.x_val, marked(self.y_val, self.counted_val)


def marked(y: Tensor, counted: Tensor) -> Tensor:
    gone = ~counted.reshape(*counted.shape, *[1] * (y.dim() - counted.dim()))
    return y.masked_fill(gone, torch.nan if y.dtype.is_floating_point else -100)


def token_problem(
    loss: str = "cross_entropy",
    dtype: torch.dtype = torch.float64,
    rows: int = 9,
    length: int = 7,
    width: int = 12,
    classes: int = 5,
) -> TokenProblem:
    """Random sequences with holes and padding."""
    count = rows + VALIDATION_ROWS
    data = head_data(HeadCase("tokens", count * length, width, classes), loss, dtype)
    generator = torch.Generator().manual_seed(4)
    counted = torch.rand(count, length, generator=generator) < 0.7
    counted &= torch.arange(length) < torch.randint(2, length + 1, (count, 1), generator=generator)
    counted[[2, rows + 1]] = False
    x, y = data.h.view(count, length, width), data.y.view(count, length, *data.y.shape[1:])
    x = x.masked_fill(~counted[..., None], torch.nan)
    head = nn.Linear(width, classes, dtype=data.w.dtype)
    with torch.no_grad():
        head.weight.copy_(data.w)
        head.bias.copy_(data.b)
    return TokenProblem(head, x[:rows], y[:rows], counted[:rows], x[rows:], y[rows:], counted[rows:])


class ScoringCollate:
    """Scores a batch in the worker that has loaded it. It is here because a spawned worker imports it by name."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __call__(self, samples: Any) -> Tensor:
        return self.scorer(torch.utils.data.default_collate(samples))
