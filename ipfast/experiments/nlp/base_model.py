"""The classifier that is scored: fine-tuned once on all texts, of which features and last layers are kept, epoch by epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.writers import write_archive, written_whole
from ..checkpoints import BASE_SEED, checkpoint_epochs
from ..kept_files import kept, read_arrays
from .classifier import Classifier
from .fairness import evaluate
from .texts import Texts
from .training import Recipe, extract, fine_tune


@dataclass(frozen=True)
class Checkpoint:
    """The last layer after an epoch, and what goes into it: [N, d] of the training texts, [M, d] of V and of its rewrites."""

    head: nn.Linear
    features: np.ndarray
    val_features: np.ndarray
    rewritten_features: np.ndarray


@dataclass(frozen=True)
class BaseModel:
    """A fine-tuned classifier at its last layer.

    Attributes:
        folder: with epoch-E.npz and base.json.
        about: what it does on the test half.
    """

    folder: Path
    epochs: int
    about: dict[str, Any]

    def checkpoint(self, epoch: int) -> Checkpoint:
        with kept(self.folder):
            found = read_arrays(self.folder / f"epoch-{epoch}.npz")
            weight, bias = (torch.from_numpy(found[name]) for name in ("weight", "bias"))
            head = nn.Linear(weight.shape[1], weight.shape[0])
            head.load_state_dict({"weight": weight, "bias": bias})
            return Checkpoint(head.eval(), *(found[name] for name in ("train", "val", "rewritten")))

    def final(self) -> Checkpoint:
        return self.checkpoint(self.epochs)

    def checkpoints(self) -> list[Checkpoint]:
        return [self.checkpoint(epoch) for epoch in checkpoint_epochs(self.epochs)]


def base_model(folder: Path, texts: Texts, recipe: Recipe, device: torch.device, *, progress: bool = True) -> BaseModel:
    """The base model, read from its files or trained. A run that is killed in between trains it again."""
    finished = folder / "base.json"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _train(folder, texts, recipe, device, progress)
    with kept(folder):
        return BaseModel(folder, recipe.epochs, json.loads(finished.read_text(encoding="utf-8")))


def _train(folder: Path, texts: Texts, recipe: Recipe, device: torch.device, progress: bool) -> None:
    problem = texts.problem

    def after_epoch(epoch: int, classifier: Classifier) -> None:
        if epoch not in checkpoint_epochs(recipe.epochs):
            return
        val = extract(classifier, texts.val, progress=progress)
        rewritten = val.copy()  # a text without a counterpart is its own
        if len(problem.val.changed):
            rewritten[problem.val.changed] = extract(classifier, texts.val_rewritten)
        state = {name: value.detach().float().cpu().numpy() for name, value in classifier.head.state_dict().items()}
        train = extract(classifier, texts.train, progress=progress)
        write_archive(folder / f"epoch-{epoch}.npz", {"train": train, "val": val, "rewritten": rewritten, **state})

    options: dict[str, Any] = {"task": problem.task, "seed": BASE_SEED, "device": device, "progress": progress}
    classifier = fine_tune(texts.pretrained, texts.train, problem.labels, recipe, after_epoch=after_epoch, **options)
    about = evaluate(classifier, texts)
    with written_whole(folder / "base.json") as beside:
        beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
