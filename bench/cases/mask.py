"""A member's mask of a large parameter: 100 million weights, each dropped with probability 0.01."""

from __future__ import annotations

import torch
from torch import Tensor

import ipfast

from ..bounds import Bound
from ..contender import Contender
from ..gate import GateError
from ..memory import Call
from ..record import Row

NAME = "mask"
STANDARD_ELEMENTS, STANDARD_RATE = 100_000_000, 0.01
PARAMETER, SEED, MEMBER = "weight", 0, 0

MASK, REFERENCE = "dropout_mask", "dropout_mask, NumPy"
BERNOULLI, IN_PLACE = "torch.bernoulli", "bernoulli_"
MEANING = {
    MASK: "ipfast.dropout_mask",
    REFERENCE: "the same with backend='reference'",
    BERNOULLI: "torch.bernoulli of a float32 tensor of probabilities that is there, then nonzero",
    IN_PLACE: "bernoulli_(rate) into a buffer of booleans that is there, then nonzero",
}


def make_contenders(elements: int, rate: float) -> list[Contender]:
    """Everything that is timed; what torch may keep between calls is allocated here."""
    probabilities = torch.full((elements,), rate)
    dropped = torch.zeros(elements, dtype=torch.bool)
    return [
        Contender(MASK, lambda: mask(elements, rate), scores=True, memory=True),
        Contender(REFERENCE, lambda: mask(elements, rate, "reference"), scores=True),
        Contender(BERNOULLI, lambda: torch.bernoulli(probabilities).nonzero().squeeze(1), scores=True),
        Contender(IN_PLACE, lambda: dropped.bernoulli_(rate).nonzero().squeeze(1), scores=True),
    ]


def mask(elements: int, rate: float, backend: str = "auto") -> Tensor:
    return ipfast.dropout_mask(PARAMETER, (elements,), rate, SEED, MEMBER, backend=backend)


def check_mask(elements: int, rate: float, contender: Contender) -> None:
    """Raise GateError unless the indices ascend within the parameter and their number and mean are those of the rate."""
    got = contender.call()
    name = f"{NAME}, {elements:,} elements, {contender.name}"
    if got.dtype != torch.int64 or got.dim() != 1 or not bool((got.diff() > 0).all()):
        raise GateError(f"{name}: expected ascending int64 indices; got {got.dtype} {list(got.shape)}")
    if len(got) and not (int(got[0]) >= 0 and int(got[-1]) < elements):
        raise GateError(f"{name}: indices {int(got[0])}..{int(got[-1])} leave the parameter")
    mean = elements * rate
    if abs(len(got) - mean) > 6 * (mean * (1 - rate)) ** 0.5:
        raise GateError(f"{name}: {len(got):,} entries dropped, where {mean:,.0f} are expected")
    if len(got) and abs(float(got.double().mean()) / elements - 0.5) > 6 / (12 * len(got)) ** 0.5:
        raise GateError(f"{name}: the dropped entries are not spread evenly")


def prepare_memory(elements: int, rate: float, threads: int) -> tuple[Call, Call]:
    """For memory.extra_peak_bytes: (a call on few elements, the call)."""
    torch.set_num_threads(threads)
    return lambda: mask(elements // 100, rate), lambda: mask(elements, rate)


def fastest_torch(rows: dict[str, Row]) -> Row:
    """The faster of torch's two ways."""
    return min((rows[BERNOULLI], rows[IN_PLACE]), key=lambda row: row.seconds.p50)


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on a CPU at the standard size; elsewhere only the bound on memory."""
    row, sizes = rows[MASK], rows[MASK].sizes
    found = []
    if (sizes["elements"], sizes["rate"]) == (STANDARD_ELEMENTS, STANDARD_RATE):
        base = fastest_torch(rows)
        found.append(Bound(f"{base.contender} + nonzero / {MASK}", base.seconds.p50 / row.seconds.p50, 20, "at least"))
    if row.extra_bytes is not None:
        # 8 bytes an index, 2 bytes while they are collected, and 4 MiB for all else.
        limit = 10 * sizes["elements"] * sizes["rate"] / 2**20 + 4
        found.append(Bound(f"extra memory of {MASK}, MiB", row.extra_bytes / 2**20, round(limit, 1), "at most"))
    return found
