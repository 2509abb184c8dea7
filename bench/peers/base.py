"""What a peer is given and what it returns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Job:
    """A network, and the data that its training samples are scored against and for.

    Args:
        model: in eval mode; a peer that changes models takes a copy.
        losses: (logits, labels) -> ℓ [B] of each sample.
        val, train: (inputs …, label) a sample.
        batch: samples that go through the network at once.
    """

    model: nn.Module
    losses: Callable[[Tensor, Tensor], Tensor]
    val: TensorDataset
    train: TensorDataset
    batch: int


@dataclass(frozen=True)
class Peer:
    """A library.

    Args:
        name: of its package.
        prepare: what its users do once, outside of the time that is measured; the call then returns, from validation and
            training data, ⟨(1/M) Σ_v ∇ℓ_v, ∇ℓ_i⟩ [N].
        scored: the names of the parameters that it takes into account.
        meaning: how it is called.
    """

    name: str
    prepare: Callable[[Job], Callable[[], Tensor]]
    scored: Callable[[nn.Module], list[str]]
    meaning: str


def missing(packages: Sequence[str]) -> list[str]:
    """Packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def products(model: nn.Module) -> list[str]:
    """Names of the linear and convolutional layers, which is what most libraries know."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def product_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of those layers."""
    layers = set(products(model))
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in layers]


def every_parameter(model: nn.Module) -> list[str]:
    """Names of all parameters."""
    return [name for name, _ in model.named_parameters()]
