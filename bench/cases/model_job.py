"""The whole job of scoring by all parameters of a network, query included: ipfast.score and other libraries."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ipfast

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..networks import make_network, sample_losses
from ..peers import PEERS, Job, Peer
from ..record import Row
from .model import STANDARD_ROWS, Truth

NAME = "model"
STANDARD = {"resnet": (64, 128), "minilm": (16, 32)}
"""(validation samples, training samples). Not gpt2: kronfluence and captum know no layers of its kind."""
STANDARD_PEERS = ("kronfluence", "captum")
"""Those whose job takes seconds."""
ROUNDING = 64.0
"""Times the rounding that is allowed to ipfast, for peers: how exact they are is not ours to judge."""

INFERENCE, SCORE = "inference on both", "ipfast.score"
MEANING = {
    INFERENCE: "model(x) under inference_mode on the validation and the training data",
    SCORE: 'ipfast.score(model, train, val, params="all")',
    **{peer.name: peer.meaning for peer in PEERS},
}


class Problem:
    """A network, validation and training data.

    Args:
        name: of the network. val, train: numbers of samples. sizes: of the network, where they are not the standard ones.
    """

    def __init__(self, name: str, val: int, train: int, **sizes: object) -> None:
        self.name, self.batch = name, STANDARD_ROWS["cpu"][name]
        self.model, data = make_network(name, val + train, **sizes)
        self.val, self.train = data[:val], data[val:]

    def truth(self) -> Truth:
        """What the scores of some training samples must be."""
        exact = copy.deepcopy(self.model).double()
        named = dict(exact.named_parameters())
        mean = self.val.to(torch.float64).losses(exact).mean()
        query = dict(zip(named, torch.autograd.grad(mean, list(named.values())), strict=True))
        return Truth(self.model, self.train, {name: value[None] for name, value in query.items()})


def make_contenders(p: Problem, peers: Sequence[Peer] = PEERS) -> list[Contender]:
    """Everything that is timed, with these peers."""
    val, train = (TensorDataset(*part.inputs, part.labels) for part in (p.val, p.train))

    def inference() -> Tensor:
        with torch.inference_mode():
            return torch.cat([p.model(*batch[:-1]) for data in (val, train) for batch in DataLoader(data, p.batch)])

    def score() -> Tensor:
        return ipfast.score(p.model, train, val, params="all", batch_size=p.batch, progress=False).values

    job = Job(p.model, sample_losses, val, train, p.batch)
    return [
        Contender(INFERENCE, inference),
        Contender(SCORE, score, scores=True),
        *(Contender(peer.name, peer.prepare(job), scores=True) for peer in peers),
    ]


def check_scores(p: Problem, truth: Truth, contender: Contender) -> None:
    """Raise gate.GateError if the scores of some samples are wrong; a peer's, by the parameters that it takes into account."""
    peer = next((peer for peer in PEERS if peer.name == contender.name), None)
    scores, magnitudes = truth.of(None if peer is None else peer.scored(p.model))
    slack = 1.0 if peer is None else ROUNDING
    gate.check(f"{NAME}, {p.name}, {contender.name}", contender.call(), truth.rows, scores[:, 0], slack * magnitudes[:, 0])


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on two CPU threads at the standard sizes."""
    score, sizes = rows[SCORE], rows[SCORE].sizes
    if STANDARD.get(sizes["network"]) != (sizes["val"], sizes["train"]) or score.threads != 2:
        return []
    other = rows.get("kronfluence")
    if other is None:
        return []
    return [Bound(f"{other.contender} / {SCORE}", other.seconds.p50 / score.seconds.p50, 1.8, "at least")]
