"""kronfluence: pairwise scores with strategy="identity", gradients of the query aggregated."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .base import Job, Peer, product_parameters

FACTORS = SCORES = "identity"


def prepare(job: Job) -> Callable[[], Tensor]:
    """Wraps a copy of the model, and names the strategy, for which nothing is fitted."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Losses(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            *inputs, labels = batch
            return job.losses(model(*inputs), labels).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task = Losses()
    folder = tempfile.TemporaryDirectory()  # removed with the last reference to it, which `call` holds
    analyzer = Analyzer(
        "bench",
        prepare_model(copy.deepcopy(job.model), task),
        task,
        cpu=True,
        disable_tqdm=True,
        log_level=logging.ERROR,
        output_dir=folder.name,
    )
    analyzer.fit_all_factors(FACTORS, job.train, factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True)
    arguments = ScoreArguments(aggregate_query_gradients=True)

    def call() -> Tensor:
        assert folder.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about its use of torch
            analyzer.compute_pairwise_scores(
                SCORES,
                FACTORS,
                job.val,
                job.train,
                per_device_query_batch_size=job.batch,
                per_device_train_batch_size=job.batch,
                score_args=arguments,
                overwrite_output_dir=True,
            )
        scores: Tensor = analyzer.load_pairwise_scores(SCORES)["all_modules"]
        return scores[0] / len(job.val)

    return call


PEER = Peer(
    "kronfluence",
    prepare,
    product_parameters,
    'compute_pairwise_scores, strategy="identity", aggregate_query_gradients; nn.Linear and nn.Conv2d only',
)
