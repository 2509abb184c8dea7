"""The network that is scored: trained once on all given labels, kept in files with its checkpoints and features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...data.writers import write_archive, written_whole
from ..checkpoints import BASE_SEED, checkpoint_epochs
from ..kept_files import kept, read_arrays
from .networks import NETWORKS
from .problem import Problem
from .training import Recipe, accuracy, extract, train_network

SEGMENTS = 3


def segment_epochs(epochs: int) -> list[tuple[int, int, int]]:
    """SOURCE's: (epochs before the segment, its middle, its last epoch), the checkpoints being the last two.

    >>> segment_epochs(10)
    [(0, 2, 3), (3, 5, 6), (6, 8, 10)]
    """
    bounds = [epochs * place // SEGMENTS for place in range(SEGMENTS + 1)]
    return [(start, (start + end + 1) // 2, end) for start, end in pairwise(bounds)]


@dataclass(frozen=True)
class BaseModel:
    """A trained network, and where its files lie.

    Attributes:
        folder: with epoch-E.safetensors, features.npz and base.json.
        recipe: by which it was trained.
        features, val_features: [N, d] and [M, d], float32.
        about: test accuracy of every epoch, and steps of one.
    """

    folder: Path
    recipe: Recipe
    network: nn.Sequential
    features: np.ndarray
    val_features: np.ndarray
    about: dict[str, Any]

    @property
    def head(self) -> nn.Linear:
        head = self.network[-1]
        assert isinstance(head, nn.Linear)
        return head

    def state(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.safetensors"

    def checkpoints(self) -> list[Path]:
        return [self.state(epoch) for epoch in checkpoint_epochs(len(self.about["test"]))]


def base_model(folder: Path, problem: Problem, recipe: Recipe, device: torch.device, *, progress: bool = True) -> BaseModel:
    """The base model, read from its files or trained. A run that is killed in between trains it again."""
    finished = folder / "base.json"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _train(folder, problem, recipe, device, progress)
    with kept(folder):
        about = json.loads(finished.read_text(encoding="utf-8"))
        network = NETWORKS[recipe.network](problem.classes, problem.images.shape[1])
        network.load_state_dict(load_file(folder / f"epoch-{recipe.epochs}.safetensors"))
        features = read_arrays(folder / "features.npz")
    network.to(device).eval().requires_grad_()
    return BaseModel(folder, recipe, network, features["train"], features["val"], about)


def _train(folder: Path, problem: Problem, recipe: Recipe, device: torch.device, progress: bool) -> None:
    wanted = {*checkpoint_epochs(recipe.epochs), *(epoch for _, *ends in segment_epochs(recipe.epochs) for epoch in ends)}
    test: list[float] = []

    def after_epoch(epoch: int, network: nn.Sequential) -> None:
        test.append(accuracy(network, *problem.test))
        if epoch in wanted:
            state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
            with written_whole(folder / f"epoch-{epoch}.safetensors") as beside:
                save_file(state, beside)

    options: dict[str, Any] = {"classes": problem.classes, "seed": BASE_SEED, "device": device, "progress": progress}
    network = train_network(problem.images, problem.given, recipe, after_epoch=after_epoch, **options)
    features = {
        "train": extract(network, problem.images, progress=progress),
        "val": extract(network, problem.val[0], progress=progress),
    }
    write_archive(folder / "features.npz", features)
    about = {"test": test, "steps": -(-len(problem.given) // recipe.batch_size)}
    with written_whole(folder / "base.json") as beside:
        beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
