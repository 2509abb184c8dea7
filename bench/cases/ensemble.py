"""A dropout ensemble at a linear head of 10 classes and width 512: all members in one pass over 400,000 resident rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ipfast

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..record import Row

NAME = "ensemble"
CLASSES, WIDTH, RATE = 10, 512, 0.01
STANDARD_ROWS, STANDARD_MEMBERS = {"cpu": 400_000, "cuda": 4_000_000}, (5, 20)
BLOCK = {"cpu": 1024, "cuda": 65_536}

SPARSE, DENSE, IP = "ensemble, sparse", "ensemble, dense", "ip"
BF16_SPARSE, BF16_DENSE, BF16_IP = f"{SPARSE}, bf16", f"{DENSE}, bf16", f"{IP}, bf16"
BF16 = (BF16_SPARSE, BF16_DENSE, BF16_IP)
PRODUCT, PRODUCT_BLOCKS = "product, whole", "product, blocks"
MEANING = {
    SPARSE: "ops.head_dot: one product with W, corrected by the dropped entries; a query for each member",
    DENSE: "ops.head_dot: a masked weight and a query for each member",
    IP: "ops.head_dot: one query",
    BF16_SPARSE: "sparse, of features stored as bfloat16, with precision='bf16'",
    BF16_DENSE: "dense, of the same",
    BF16_IP: "one query, of the same",
    PRODUCT: "H [W; G_1 … G_T]ᵀ alone, into a preallocated buffer",
    PRODUCT_BLOCKS: "the same in blocks of 1,024 rows (65,536 on a GPU), into one preallocated buffer",
}


class Problem:
    """Features, labels, a head, one query and one mask a member."""

    def __init__(self, rows: int, members: int, device: torch.device) -> None:
        generator, large = torch.Generator().manual_seed(members), torch.Generator(device).manual_seed(members)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.h = torch.empty(rows, WIDTH, device=device).normal_(generator=large)
        self.y = torch.randint(CLASSES, (rows,), generator=large, device=device)
        self.w, self.b = 2 * normal(CLASSES, WIDTH) / WIDTH**0.5, normal(CLASSES)
        self.g, self.gb = normal(members, CLASSES, WIDTH) / WIDTH**0.5, normal(members, CLASSES)
        self.dropped = [ipfast.dropout_mask("weight", (CLASSES, WIDTH), RATE, 0, member) for member in range(members)]
        # As the library scales: a quotient may round to another bfloat16 than the product.
        self.masked = (self.w * (1 / (1 - RATE))).repeat(members, 1, 1)
        for member, mask in enumerate(self.dropped):
            self.masked[member].view(-1)[mask.to(device)] = 0
        self.members = members
        self.narrow = self.h.bfloat16()

    def scores(self, weight: Tensor, *, bf16: bool = False, **options: object) -> Tensor:
        h, precision = (self.narrow, "bf16") if bf16 else (self.h, None)
        return ipfast.ops.head_dot(h, self.y, weight, self.b, self.g, self.gb, precision=precision, **options)  # type: ignore[arg-type]


def make_contenders(p: Problem) -> list[Contender]:
    """Everything that is timed; buffers that a contender may keep between calls are allocated here."""
    stacked = torch.cat([p.w, p.g.reshape(-1, WIDTH)]).T
    size = BLOCK[p.h.device.type]
    whole, block = p.h.new_zeros(len(p.h), stacked.shape[1]), p.h.new_zeros(size, stacked.shape[1])

    def product_blocks() -> Tensor:
        for start in range(0, len(p.h), size):
            part = p.h[start : start + size]
            torch.mm(part, stacked, out=block[: len(part)])
        return block

    sparse: dict[str, Any] = {"dropped": p.dropped, "rescale": 1 / (1 - RATE)}
    return [
        Contender(SPARSE, lambda: p.scores(p.w, **sparse), scores=True),
        Contender(DENSE, lambda: p.scores(p.masked), scores=True),
        Contender(IP, lambda: ipfast.ops.head_dot(p.h, p.y, p.w, p.b, p.g[0], p.gb[0])),
        Contender(BF16_SPARSE, lambda: p.scores(p.w, bf16=True, **sparse), scores=True),
        Contender(BF16_DENSE, lambda: p.scores(p.masked, bf16=True), scores=True),
        Contender(BF16_IP, lambda: ipfast.ops.head_dot(p.narrow, p.y, p.w, p.b, p.g[0], p.gb[0], precision="bf16")),
        Contender(PRODUCT, lambda: torch.mm(p.h, stacked, out=whole)),
        Contender(PRODUCT_BLOCKS, product_blocks),
    ]


def check_scores(p: Problem, contender: Contender) -> None:
    """Raise gate.GateError if a member's scores are wrong."""
    got = contender.call()
    rows = gate.sample_rows(len(got))
    at = rows.to(p.h.device)
    for member in range(p.members):
        operands = p.h[at], p.masked[member], p.g[member]
        h, w, g = (x.bfloat16() for x in operands) if contender.name in BF16 else operands
        truth, magnitude = gate.softmax_truth(h, p.y[at], w, p.b, g, p.gb[member])
        gate.check(f"{NAME}, member {member}, {contender.name}", got[:, member], rows, truth, magnitude)


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold at the standard size."""
    sizes, device = rows[SPARSE].sizes, rows[SPARSE].device
    members, time = sizes["members"], rows[SPARSE].seconds.p50
    if sizes["rows"] != STANDARD_ROWS[device] or members not in STANDARD_MEMBERS:
        return []
    if device == "cuda":
        if members != 5:
            return []
        narrow, ensemble = rows[BF16_IP], min((rows[BF16_SPARSE], rows[BF16_DENSE]), key=lambda row: row.seconds.p50)
        read = 2 * sizes["rows"] * WIDTH / narrow.seconds.p50
        return [
            Bound(f"{ensemble.contender} / {BF16_IP}", ensemble.seconds.p50 / narrow.seconds.p50, 1.3, "at most"),
            Bound(f"{BF16_IP}: share of the copy's bytes/s", read / narrow.roofline.copy_bytes_per_second, 0.8, "at least"),
        ]
    base = min((rows[PRODUCT], rows[PRODUCT_BLOCKS]), key=lambda row: row.seconds.p50)
    faster = Bound(
        f"{members} {IP} / {SPARSE}", members * rows[IP].seconds.p50 / time, 1.3 if members == 5 else 1.5, "at least"
    )
    if members != 5:
        return [faster]
    return [
        Bound(f"{SPARSE} / {base.contender}", time / base.seconds.p50, 1.35, "at most"),
        faster,
        Bound(f"{DENSE} / {SPARSE}", rows[DENSE].seconds.p50 / time, 1.15, "at least"),
        Bound(f"{BF16_SPARSE} / {BF16_IP}", rows[BF16_SPARSE].seconds.p50 / rows[BF16_IP].seconds.p50, 3.0, "at most"),
        Bound(f"{BF16_IP} / {IP}", rows[BF16_IP].seconds.p50 / rows[IP].seconds.p50, 0.9, "at most"),
    ]
