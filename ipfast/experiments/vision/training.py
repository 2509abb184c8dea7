"""How a network is trained on images, and what is computed with it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..arithmetic import fast
from .networks import NETWORKS

EXTRACTED = 1000  # images at once


@dataclass(frozen=True)
class Recipe:
    """All that a training run depends on, beside its data and its seed.

    Attributes:
        schedule: "one-cycle" up to `rate` and down to nothing; or "steps", `rate` and after 60 % of the epochs a tenth of it.
        shift: largest shift of a training image, in pixels; half of them are mirrored.
        optimizer: "sgd"; or "adamw", which has neither `nesterov` nor `momentum`.
    """

    network: str
    epochs: int
    batch_size: int
    rate: float
    schedule: str
    nesterov: bool
    shift: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"

    @property
    def numbers(self) -> dict[str, Any]:
        """What results depend on, as JSON; "sgd" goes without saying, as in results from when there was nothing else."""
        unused = ("optimizer",) if self.optimizer == "sgd" else ("nesterov", "momentum")
        return {name: value for name, value in asdict(self).items() if name not in unused}


SMALL = Recipe("convnet", epochs=10, batch_size=256, rate=0.25, schedule="one-cycle", nesterov=True, shift=2)
PAPER = Recipe("resnet34", epochs=100, batch_size=128, rate=0.1, schedule="steps", nesterov=False, shift=4)

AfterEpoch = Callable[[int, nn.Sequential], None]
"""(epochs done, the network in eval mode)"""


def train_network(
    images: np.ndarray,
    labels: np.ndarray,
    recipe: Recipe,
    *,
    classes: int,
    seed: int,
    device: torch.device,
    after_epoch: AfterEpoch | None = None,
    progress: bool = True,
) -> nn.Sequential:
    """A trained network in eval mode; first parameters, order, shifts and mirroring depend on `seed` alone.

    Args:
        images: [N, S, S, 3] uint8. labels: [N] int64.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[recipe.network](classes, images.shape[1]).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    random = torch.Generator().manual_seed(seed)
    edge = (recipe.shift, recipe.shift)
    padded = nn.functional.pad(torch.from_numpy(images), (0, 0, *edge, *edge)).to(device)
    y = torch.from_numpy(labels).to(device)
    optimizer = make_optimizer(network.parameters(), recipe, recipe.rate)
    steps = -(-len(y) // recipe.batch_size)
    schedule = _schedule(optimizer, recipe, steps)
    with tqdm(
        total=recipe.epochs * len(y), desc="training", unit=" images", unit_scale=True, leave=False, disable=not progress
    ) as bar:
        for epoch in range(1, recipe.epochs + 1):
            network.train()
            for rows in torch.split(torch.randperm(len(y), generator=random), recipe.batch_size):
                x = _augment(padded, rows, recipe.shift, random)
                with fast(device):
                    z = network(x)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(z.float(), y[rows.to(device)])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update(len(rows))
            network.eval()
            if after_epoch is not None:
                after_epoch(epoch, network)
    return network


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """The recipe's, at a rate of its own."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, rate, recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay)


def effective_rates(recipe: Recipe, steps: int) -> list[float]:
    """Mean over each epoch of so many steps of η/(1 − β), what momentum β makes of a learning rate η; of AdamW of η itself."""
    optimizer = make_optimizer([nn.Parameter(torch.zeros(()))], recipe, recipe.rate)
    schedule = _schedule(optimizer, recipe, steps)
    found = []
    for _ in range(recipe.epochs):
        total = 0.0
        for _ in range(steps):
            (group,) = optimizer.param_groups
            total += group["lr"] / (1 - group.get("momentum", 0.0))
            optimizer.step()
            schedule.step()
        found.append(total / steps)
    return found


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one-cycle":
        total = recipe.epochs * steps
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=recipe.rate, total_steps=total, cycle_momentum=recipe.optimizer == "sgd"
        )
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.6 * recipe.epochs) * steps])


def _augment(padded: Tensor, rows: Tensor, shift: int, random: torch.Generator) -> Tensor:
    """A window of some of the padded images, half of them mirrored: [B, S, S, 3]."""
    count, side = len(rows), padded.shape[1] - 2 * shift
    down, right = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=random)
    place = torch.arange(side)
    columns = torch.where(torch.rand(count, 1, generator=random) < 0.5, place.flip(0), place) + right
    indices = (rows[:, None, None], (place + down)[:, :, None], columns[:, None, :])
    return padded[tuple(index.to(padded.device) for index in indices)]


@torch.inference_mode()
def extract(network: nn.Sequential, images: np.ndarray, *, progress: bool = True) -> np.ndarray:
    """What goes into the network's last layer: [N, d], computed in float32."""
    device = next(network.parameters()).device
    bar = tqdm(total=len(images), desc="features", unit=" images", unit_scale=True, leave=False, disable=not progress)
    features = []
    with bar:
        for x in torch.split(torch.from_numpy(images), EXTRACTED):
            features.append(network[:-1](x.to(device)).cpu())
            bar.update(len(x))
    return torch.cat(features).numpy()


@torch.inference_mode()
def accuracy(network: nn.Sequential, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose largest logit is that of their label."""
    device = next(network.parameters()).device
    right = 0
    with fast(device):
        for x, y in zip(*(torch.split(torch.from_numpy(part), EXTRACTED) for part in (images, labels)), strict=True):
            right += int((network(x.to(device)).argmax(dim=1).cpu() == y).sum())
    return right / len(labels)
