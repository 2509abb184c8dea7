"""GEX: where some more training takes the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..checks import positive_integer
from ..data import ArraySource, Batch, open_source, split_batch
from ..errors import InputError, InputTypeError
from ..losses import Loss, get_loss
from ..originals import RefuseOriginals
from ..registry import check_choice
from .base import Point, Points, State, Trainable

FLOOR = 0.05
"""ε of the loss-deviation estimator: losses at the model count as no smaller."""
BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class ExtraSGD(Points):
    """States θ_1 … θ_T of a copy of the model that goes on training, each `epochs` after the one before.

    The copy trains as any model does: in train mode, with its parameters that require gradients; buffers such as BatchNorm
    statistics travel with each state. The model that was given, and torch's random numbers, stay as they are.

    Args:
        train: what to train on: a DataLoader, which may shuffle, or what `ipfast.score` takes as train, which is shuffled and
            cut into batches of 256.
        optimizer: makes the optimiser of the copy: parameters -> torch.optim.Optimizer. It lives for all members.
        members: T. epochs: between two members. seed: of order and dropout; the same seed gives the same members.
        loss: to train with; "auto": the one that is scored.
        estimator: "gradient", the mean of the members' inner products; or "loss_deviation", the estimator of GEX, which takes
            no gradients: (1/T) Σ_t (ℓ_i(θ_t) − max(ℓ_i(θ), ε)) (ℓ_V(θ_t) − max(ℓ_V(θ), ε)) with ε = 0.05, and with
            target="self" minus the mean square of a sample's own deviation.
        labels_key: where the batches of `train` are dictionaries.

    Source: GEX (Kim, Kim, Yang: "GEX: A flexible method for approximating influence via Geometric Ensemble", NeurIPS 2023);
    with gradients as in arXiv 2405.17490.
    """

    train: Any = None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    members: int = 5
    epochs: int = 1
    seed: int = 0
    loss: str | Loss = "auto"
    estimator: str = "gradient"
    labels_key: str = "labels"

    def __post_init__(self) -> None:
        where = "ExtraSGD"
        positive_integer(where, "members", self.members)
        positive_integer(where, "epochs", self.epochs)
        check_choice(where, "estimator", self.estimator, ("gradient", "loss_deviation"))
        if self.optimizer is not None and not callable(self.optimizer):
            raise InputTypeError(
                f"{where}: expected optimizer to be a function of the parameters; got {type(self.optimizer).__name__}. Pass "
                "lambda parameters: torch.optim.SGD(parameters, lr=0.01)."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"{where}: expected seed to be an integer of at least 0; got {self.seed!r}. Choose another one.")
        if not (isinstance(self.loss, str) and self.loss == "auto"):
            get_loss(where, self.loss)

    @property
    def deviation_floor(self) -> float | None:
        return FLOOR if self.estimator == "loss_deviation" else None

    def check(self, where: str) -> None:
        if self.train is None or self.optimizer is None:
            missing = "training data" if self.train is None else "optimiser"
            raise InputError(
                f"{where}: expected what to train on and an optimiser for method 'gex'; got no {missing}. Pass "
                "method=ipfast.Method(points=ipfast.ExtraSGD(train, optimizer=lambda p: torch.optim.SGD(p, lr=0.01)))."
            )
        if not isinstance(self.train, DataLoader):
            open_source("ExtraSGD", "train", self.train, batch_size=BATCH_SIZE, labels_key=self.labels_key)

    def points(self, trainable: Trainable | None = None) -> Iterator[Point]:
        assert trainable is not None
        assert self.optimizer is not None
        if self.deviation_floor is not None:
            yield Point(0.0)
        module = copy.deepcopy(trainable.module()).train()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError(
                "ExtraSGD: expected model to have parameters that require gradients; all are frozen. Call "
                "model.requires_grad_(True)."
            )
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
            raise InputTypeError(
                "ExtraSGD: expected optimizer to give a torch.optim.Optimizer that needs no closure; got "
                f"{type(optimizer).__name__}. Pass lambda parameters: torch.optim.SGD(parameters, lr=0.01)."
            )
        if {id(value) for group in optimizer.param_groups for value in group["params"]}.isdisjoint(map(id, parameters)):
            raise InputError(
                "ExtraSGD: expected optimizer to train the parameters that it is given, those of a copy of the model; it has "
                "other ones. Pass lambda parameters: torch.optim.SGD(parameters, lr=0.01)."
            )
        loss = None if isinstance(self.loss, str) and self.loss == "auto" else get_loss("ExtraSGD", self.loss)
        for member in range(self.members):
            with self._seeded(member, parameters):
                for batch in (batch for _ in range(self.epochs) for batch in self._batches()):
                    optimizer.zero_grad()
                    with RefuseOriginals("ExtraSGD", trainable.module()):
                        losses = trainable.losses(module, batch, loss)
                    losses.mean().backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            values = {name: value.detach().clone() for name, value in module.state_dict().items()}
            yield Point(1 / self.members, state=State(values))

    def _batches(self) -> Iterable[Batch]:
        """One epoch, in an order that torch's default generator decides."""
        source = None
        if not isinstance(self.train, DataLoader):
            source = open_source("ExtraSGD", "train", self.train, batch_size=BATCH_SIZE, labels_key=self.labels_key)
        if isinstance(source, ArraySource):
            order = torch.randperm(len(source.labels)).numpy()
            for start in range(0, len(order), BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                yield Batch(source.inputs.taken(rows), source.labels[rows])
            return
        loader = self.train
        if not isinstance(loader, DataLoader):
            loader = DataLoader(self.train, batch_size=BATCH_SIZE, shuffle=True)
        for batch in loader:
            yield split_batch("ExtraSGD", "train", batch, self.labels_key)

    @contextmanager
    def _seeded(self, member: int, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Random numbers of a member's own, the loader's too; all generators are put back afterwards."""
        seed = int(np.random.SeedSequence([self.seed, member]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
        loader = self.train if isinstance(self.train, DataLoader) else None
        owners = [] if loader is None else [loader, loader.sampler, loader.batch_sampler]
        found = [getattr(owner, "generator", None) for owner in owners]
        generators = [generator for generator in found if isinstance(generator, torch.Generator)]
        before = [generator.get_state() for generator in generators]
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            for generator in generators:
                generator.manual_seed(seed)
            try:
                yield
            finally:
                for generator, state in zip(generators, before, strict=True):
                    generator.set_state(state)
