"""Scores of resident features at a linear head, cross-entropy, float32: C = 2, 10, 100, 1000 classes of width 512."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ipfast
from ipfast.terms import Dot

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..memory import Call
from ..record import Row

NAME = "head"
WIDTH = 512
STANDARD_ROWS = {
    "cpu": {2: 400_000, 10: 400_000, 100: 400_000, 1000: 40_000},
    "cuda": {2: 4_000_000, 10: 4_000_000, 100: 2_000_000, 1000: 200_000},
}
"""Rows for each number of classes: enough that the features are far larger than any cache, and a GPU's launches are hidden."""
GRADIENT_BYTES = 512 * 2**20
"""Per-sample gradients that are held at once; the materialising contender works on as many rows as fit."""

TORCH_BLOCK, PRODUCT_BLOCK = {"cpu": 2048, "cuda": 65_536}, {"cpu": 1024, "cuda": 65_536}
"""Rows of a block of the torch contenders: on the CPU it stays in cache, on a GPU it hides the launches."""

SUM, HEAD_DOT, SCORE, BLOCKED = "H.sum()", "ops.head_dot", "score", "blocked torch"
PRODUCT, PRODUCT_BLOCKS, MATERIALISED = "product, whole", "product, blocks", "materialised"
MEANING = {
    SUM: "torch reads the features once",
    HEAD_DOT: "ipfast.ops.head_dot",
    SCORE: "ipfast.score(linear, (H, y), query) with a stored query",
    BLOCKED: "blocks of 2,048 rows (65,536 on a GPU): one product with the stacked [W; G], softmax, row-wise dot",
    PRODUCT: "H [W; G]ᵀ alone, into a preallocated buffer [N, 2C]",
    PRODUCT_BLOCKS: "the same in blocks of 1,024 rows (65,536 on a GPU), into one preallocated buffer [1024, 2C]",
    MATERIALISED: "per-sample gradients written out, then multiplied with the query",
}


@dataclass(frozen=True)
class Problem:
    """Features, labels, a head, and the query of 1,024 validation samples."""

    h: Tensor  # [N, d]
    y: Tensor  # [N]
    linear: nn.Linear
    query: ipfast.Query
    w: Tensor  # [C, d]
    b: Tensor  # [C]
    g: Tensor  # [C, d]
    gb: Tensor  # [C]

    @property
    def rows(self) -> int:
        return self.h.shape[0]

    @property
    def classes(self) -> int:
        return self.w.shape[0]

    def first(self, rows: int) -> Problem:
        """The same problem with the first rows only."""
        return Problem(self.h[:rows], self.y[:rows], self.linear, self.query, self.w, self.b, self.g, self.gb)


def make_problem(classes: int, rows: int, device: torch.device) -> Problem:
    """Normal features, random labels, logits of standard deviation 2."""
    generator, large = torch.Generator().manual_seed(classes), torch.Generator(device).manual_seed(classes)
    # Filled in place: a temporary would raise the peak that memory.py compares with.
    h = torch.empty(rows, WIDTH, device=device).normal_(generator=large)
    y = torch.randint(classes, (rows,), generator=large, device=device)
    linear = nn.Linear(WIDTH, classes)
    with torch.no_grad():
        linear.weight.normal_(std=2 / WIDTH**0.5, generator=generator)
        linear.bias.normal_(generator=generator)  # a bias of zero would hide a forgotten one
    linear = linear.to(device).eval()
    val = (
        torch.randn(1024, WIDTH, generator=generator).to(device),
        torch.randint(classes, (1024,), generator=generator).to(device),
    )
    query = ipfast.query(linear, val)
    (term,) = query.terms
    assert isinstance(term, Dot)
    assert term.bias_gradient is not None
    return Problem(h, y, linear, query, linear.weight.detach(), linear.bias.detach(), term.gradient, term.bias_gradient)


def make_contenders(problem: Problem) -> list[Contender]:
    """Everything that is timed; buffers that a contender may keep between calls are allocated here."""
    h, y, w, b, g, gb = problem.h, problem.y, problem.w, problem.b, problem.g, problem.gb
    rows, classes = problem.rows, problem.classes
    stacked, stacked_bias = torch.cat([w, g]).T, torch.cat([b, gb])
    whole = h.new_zeros(rows, 2 * classes)
    block = h.new_zeros(PRODUCT_BLOCK[h.device.type], 2 * classes)
    torch_block = TORCH_BLOCK[h.device.type]
    scores = h.new_zeros(rows)

    def blocked() -> Tensor:
        for start in range(0, rows, torch_block):
            cut = slice(start, start + torch_block)
            zu = torch.addmm(stacked_bias, h[cut], stacked)
            z, u = zu[:, :classes], zu[:, classes:]
            own = u.gather(1, y[cut, None]).squeeze(1)
            scores[cut] = torch.linalg.vecdot(z.softmax(dim=1), u) - own
        return scores

    def product_blocks() -> Tensor:
        for start in range(0, rows, len(block)):
            part = h[start : start + len(block)]
            torch.mm(part, stacked, out=block[: len(part)])
        return block

    return [
        Contender(SUM, h.sum),
        Contender(HEAD_DOT, lambda: ipfast.ops.head_dot(h, y, w, b, g, gb), scores=True, memory=True),
        Contender(SCORE, lambda: _score(problem), scores=True, memory=True),
        Contender(BLOCKED, blocked, scores=True),
        Contender(PRODUCT, lambda: torch.mm(h, stacked, out=whole)),
        Contender(PRODUCT_BLOCKS, product_blocks),
        _materialised(problem),
    ]


def _score(problem: Problem) -> Tensor:
    return ipfast.score(problem.linear, (problem.h, problem.y), problem.query, progress=False).values


def _materialised(problem: Problem) -> Contender:
    """As fast as it can be: residuals in closed form instead of a backward pass, gradients into a buffer that exists."""
    classes = problem.classes
    count = min(problem.rows, GRADIENT_BYTES // (4 * classes * WIDTH), 16_384)
    part, g = problem.first(count), problem.g.flatten()
    gradients = part.h.new_zeros(count, classes, WIDTH)

    def call() -> Tensor:
        residual = torch.addmm(part.b, part.h, part.w.T).softmax(dim=1)
        residual[torch.arange(count, device=part.h.device), part.y] -= 1
        torch.mul(residual[:, :, None], part.h[:, None, :], out=gradients)
        return gradients.flatten(1) @ g + residual @ part.gb

    return Contender(MATERIALISED, call, scores=True, share=count / problem.rows)


def check_scores(problem: Problem, contender: Contender) -> None:
    """Raise gate.GateError if the contender's scores are wrong."""
    got = contender.call()
    rows = gate.sample_rows(len(got))
    truth, magnitude = gate.softmax_truth(
        problem.h[rows.to(problem.h.device)], problem.y[rows.to(problem.y.device)], problem.w, problem.b, problem.g, problem.gb
    )
    gate.check(f"{NAME}, C={problem.classes}, {contender.name}", got, rows, truth, magnitude)


def prepare_memory(name: str, classes: int, rows: int, threads: int) -> tuple[Call, Call]:
    """For memory.extra_peak_bytes: (a call on few rows, the call) of a contender of ipfast."""
    torch.set_num_threads(threads)
    problem = make_problem(classes, rows, torch.device("cpu"))
    few = problem.first(4096)
    calls: dict[str, tuple[Call, Call]] = {
        HEAD_DOT: (lambda: _head_dot(few), lambda: _head_dot(problem)),
        SCORE: (lambda: _score(few), lambda: _score(problem)),
    }
    return calls[name]


def _head_dot(problem: Problem) -> Tensor:
    p = problem
    return ipfast.ops.head_dot(p.h, p.y, p.w, p.b, p.g, p.gb)


def base_product(rows: dict[str, Row]) -> Row:
    """The faster of the two ways to take the bare product."""
    return min((rows[PRODUCT], rows[PRODUCT_BLOCKS]), key=lambda row: row.seconds.p50)


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on two CPU threads at the standard sizes; elsewhere only the bound on memory."""
    score, sizes = rows[SCORE], rows[SCORE].sizes
    classes, time = sizes["classes"], score.seconds.p50
    found = []
    standard = STANDARD_ROWS["cpu"].get(classes) == sizes["rows"]
    if standard and score.device == "cpu" and score.threads == 2:
        if classes <= 10:
            found.append(Bound(f"score / {SUM}", time / rows[SUM].seconds.p50, 1.55 if classes == 2 else 1.9, "at most"))
            found.append(
                Bound(f"{BLOCKED} / score", rows[BLOCKED].seconds.p50 / time, 2.4 if classes == 2 else 2.6, "at least")
            )
        else:
            base = base_product(rows)
            found.append(Bound(f"score / {base.contender}", time / base.seconds.p50, 1.25, "at most"))
    for row in (rows[HEAD_DOT], score):
        if row.extra_bytes is not None:
            found.append(Bound(f"extra memory of {row.contender}, MiB", row.extra_bytes / 2**20, 64, "at most"))
    return found
