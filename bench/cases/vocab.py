"""Scores at the head of a language model: 50,257 classes of width 768, 4,096 tokens."""

from __future__ import annotations

import torch
from torch import Tensor

import ipfast

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..memory import Call
from ..record import Row

NAME = "vocab"
STANDARD_TOKENS, STANDARD_CLASSES, STANDARD_WIDTH = 4096, 50_257, 768
CLASS_TILE = 2048

HEAD_DOT, PRODUCTS = "ops.head_dot", "two products"
MEANING = {
    HEAD_DOT: "ipfast.ops.head_dot",
    PRODUCTS: "H Wᵀ and H Gᵀ alone, in tiles of 2,048 classes, into one preallocated buffer",
}


class Problem:
    """Hidden states, next tokens, an output embedding and a query; every second token is predicted with confidence."""

    def __init__(self, tokens: int, classes: int, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.empty(*shape).normal_(generator=generator)

        w = normal(classes, width) / width**0.5
        y = torch.randint(classes, (tokens,), generator=generator)
        h = normal(tokens, width)
        h[::2] += 30 * w[y[::2]]
        self.h, self.y, self.w = h.to(device), y.to(device), w.to(device)
        self.g = (normal(classes, width) / classes).to(device)

    def scores(self, tokens: int | None = None) -> Tensor:
        return ipfast.ops.head_dot(self.h[:tokens], self.y[:tokens], self.w, None, self.g, None)


def make_contenders(p: Problem) -> list[Contender]:
    """Everything that is timed."""
    buffer = p.h.new_zeros(len(p.h) * CLASS_TILE)

    def products() -> Tensor:
        for matrix in (p.w, p.g):
            for tile in matrix.split(CLASS_TILE):
                torch.mm(p.h, tile.T, out=buffer[: len(p.h) * len(tile)].view(len(p.h), len(tile)))
        return buffer

    return [Contender(HEAD_DOT, p.scores, scores=True, memory=True), Contender(PRODUCTS, products)]


def check_scores(p: Problem, contender: Contender) -> None:
    """Raise gate.GateError if the scores of some tokens are wrong."""
    got, rows = contender.call(), torch.arange(64)
    zero = p.w.new_zeros(len(p.w))
    truth, magnitude = gate.softmax_truth(p.h[:64], p.y[:64], p.w, zero, p.g, zero)
    gate.check(f"{NAME}, {contender.name}", got, rows, truth, magnitude)


def prepare_memory(tokens: int, classes: int, width: int, threads: int) -> tuple[Call, Call]:
    """For memory.extra_peak_bytes: (a call on few tokens, the call)."""
    torch.set_num_threads(threads)
    problem = Problem(tokens, classes, width, torch.device("cpu"))
    return lambda: problem.scores(64), problem.scores


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on a CPU at the standard size."""
    row, found = rows[HEAD_DOT], []
    sizes = (row.sizes["rows"], row.sizes["classes"], row.sizes["width"])
    if sizes == (STANDARD_TOKENS, STANDARD_CLASSES, STANDARD_WIDTH) and row.device == "cpu":
        found.append(Bound(f"{HEAD_DOT} / {PRODUCTS}", row.seconds.p50 / rows[PRODUCTS].seconds.p50, 1.3, "at most"))
    if row.extra_bytes is not None:
        found.append(Bound(f"extra memory of {HEAD_DOT}, MiB", row.extra_bytes / 2**20, 256, "at most"))
    return found
