"""captum: TracInCP with one checkpoint, the query aggregated, per-sample gradients from one backward pass a batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .base import Job, Peer, product_parameters, products


def prepare(job: Job) -> Callable[[], Tensor]:
    """Its batched gradients know nn.Linear and nn.Conv2d only; its other way, a backward pass a sample, is slower."""
    from captum.influence import TracInCP

    class SumOfLosses(nn.Module):
        reduction = "sum"

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return job.losses(z, y).sum()

    tracin = TracInCP(
        copy.deepcopy(job.model),
        DataLoader(job.train, job.batch),
        checkpoints=["final"],
        checkpoints_load_func=lambda _model, _checkpoint: 1.0,  # the weights are there
        layers=products(job.model),
        loss_fn=SumOfLosses(),
        sample_wise_grads_per_batch=True,
    )

    def call() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that token ids take no gradients
            scores: Tensor = tracin.influence(DataLoader(job.val, job.batch), aggregate=True)
        return scores.detach().reshape(-1).to(torch.float32) / len(job.val)

    return call


PEER = Peer("captum", prepare, product_parameters, "TracInCP.influence(aggregate=True), batched; nn.Linear and nn.Conv2d only")
