"""dattri: TracIn without its projection, per-sample gradients by vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .base import Job, Peer, every_parameter


def prepare(job: Job) -> Callable[[], Tensor]:
    """Slow, and large: it differentiates by one vector of all parameters, of which each parameter is a slice whose gradient is
    as long as the vector; and it takes the gradients of V anew for each batch of training data."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    model = copy.deepcopy(job.model)

    def loss(parameters: Any, data: tuple[Tensor, ...]) -> Tensor:
        *inputs, label = (value[None] for value in data)
        return job.losses(torch.func.functional_call(model, parameters, tuple(inputs)), label)[0]

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # else it projects, whatever it is given

    def call() -> Tensor:
        with redirect_stderr(StringIO()):  # its progress bars
            pairs: Tensor = attributor.attribute(DataLoader(job.train, job.batch), DataLoader(job.val, job.batch))
        return pairs.mean(dim=1)

    return call


PEER = Peer("dattri", prepare, every_parameter, "TracInAttributor without projection; the mean of its scores over V")
