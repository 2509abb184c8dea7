"""One toy with one seed: the trained model, what leaving each sample out does, and the scores of every method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ipfast

from ...data.writers import write_archive
from ...methods import get_method
from ..chosen import seeded
from ..kept_files import kept, read_arrays
from .models import copies, load, logits, make_model, train
from .objectives import OBJECTIVES, Objective, make_objective
from .oracle import Solved, query, solve
from .toys import make_toy

LEAVE_SEED = 1
"""Beside a toy's own: the stream from which its flips are drawn must not choose the samples too."""
TOGETHER = 64
"""Copies of the moons' network that are trained at once: their activations stay in the processor's cache."""


def drawn_rows(count: int, leave: int | None, seed: int) -> np.ndarray:
    """Which of `count` samples are left out: `leave` of them by chance, in order; None: all."""
    if leave is None:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, LEAVE_SEED)).choice(count, min(count, leave), replace=False))


@contextmanager
def _one_thread() -> Iterator[None]:
    """On matrices this small a second thread gives little, and waits for the first one wherever the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class ToyRun:
    """A trained toy. What took time lies in `file`, and is read again by later cells.

    Attributes:
        leave: how many samples of the moons, drawn at random, are left out; None: all. Of blobs all are.
        left_out: by objective [N], f without sample i minus f with all; NaN where it was not left out.
        again: the same of the moons from another training, which differs by rounding alone: full-batch training of the network
            amplifies it, so that no score can agree with left_out better than this does.
        progress: whether bars are shown.
    """

    file: Path  # .npz
    name: str
    seed: int
    leave: int | None
    progress: bool = True

    def __post_init__(self) -> None:
        self.toy = make_toy(self.name, self.seed)
        self.model = make_model(self.name, self.seed)
        self.first = copies(self.model, 1)
        if self.file.exists():
            with kept(self.file):
                found = read_arrays(self.file)
                self.trained = [torch.from_numpy(found[f"parameter {place}"]) for place in range(len(self.first))]
                self.left_out: dict[str, np.ndarray] = {name: found[name] for name in OBJECTIVES}
                self.again: dict[str, np.ndarray] = {name: found[f"{name} again"] for name in OBJECTIVES}
            load(self.model, self.trained, 0)
            return
        count = len(self.toy.y)
        everyone = torch.ones(1, count, dtype=torch.float64)
        with _one_thread():
            self.trained = train(self.name, self.first, self.toy.x, self.toy.y, everyone, progress=self.progress)
            load(self.model, self.trained, 0)
            self.left_out = self._leave_out()
            self.again = self._leave_out(backwards=True)
        parameters = {f"parameter {place}": values.numpy() for place, values in enumerate(self.trained)}
        self.file.parent.mkdir(exist_ok=True)
        again = {f"{name} again": values for name, values in self.again.items()}
        write_archive(self.file, {**parameters, **self.left_out, **again})

    def _leave_out(self, *, backwards: bool = False) -> dict[str, np.ndarray]:
        """Each trained alike, from the first parameters; `backwards` sums over the samples from the last to the first."""
        toy, count = self.toy, len(self.toy.y)
        rows = np.arange(count) if toy.linear else drawn_rows(count, self.leave, self.seed)
        weights = torch.cat([torch.ones(1, count), 1 - torch.eye(count)[rows]])  # the first copy keeps all
        # float32 of many copies is as fast again; float64 amplifies its rounding as well.
        dtype = torch.float64 if toy.linear else torch.float32
        found = []
        x, y = toy.x.to(dtype), toy.y.to(dtype)
        if backwards:
            x, y, weights = x.flip(0), y.flip(0), weights.flip(1)
        for some in torch.split(weights.to(dtype), TOGETHER):
            many = [values.to(dtype).expand(len(some), *values.shape[1:]).clone() for values in self.first]
            found.append(train(self.name, many, x, y, some, progress=self.progress))
        parameters = [torch.cat(parts).double() for parts in zip(*found, strict=True)]
        result = {}
        for name in OBJECTIVES:
            objective = self.objective(name)
            f = objective.value(logits(parameters, objective.x))
            result[name] = np.full(count, np.nan)
            result[name][rows] = (f[1:] - f[0]).numpy()
        return result

    def objective(self, name: str) -> Objective:
        return make_objective(name, self.toy, self.model)

    @cached_property
    def solved(self) -> Solved:
        return solve(self.toy, self.model)

    def directions(self, objective: str) -> tuple[Tensor, Tensor]:
        """(v_I, v_H) = (∇f, H⁻¹ ∇f): [P] each."""
        v = query(self.model, self.objective(objective))
        return v, self.solved.solve(v)

    def influence(self, objective: str) -> np.ndarray:
        """Eq. (1) of each sample: [N]."""
        return (self.solved.gradients @ self.directions(objective)[1]).numpy()

    def scores(self, method: str, objective: str, seed: int) -> np.ndarray:
        """Scores [N] of a method: all parameters of the network, low = detrimental for the objective."""
        if method == "oracle":
            return self.influence(objective)
        if method == "leave_one_out":
            return self.left_out[objective]
        chosen = seeded(method, seed)
        needs_val = get_method("experiment", chosen).needs_val
        asked = self.objective(objective)
        val = (asked.x, asked.y[:, None]) if needs_val else None
        options: dict[str, Any] = {"loss": "bce_with_logits", "params": "all", "progress": False}
        if needs_val and asked.groups is not None:
            options["impact"] = lambda z, _: asked.value(z[:, 0])
        if method == "random":
            options.pop("params")
        found = ipfast.score(self.model.eval(), (self.toy.x, self.toy.y[:, None]), val, method=chosen, **options)
        return np.asarray(found.values.double())
