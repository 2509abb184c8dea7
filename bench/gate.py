"""Correctness before speed: scores of some rows against a float64 computation that shares no code with ipfast."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256
"""Rows at the start, at the end, and at random places in between, of each."""
SLACK = 8.0
"""Loose enough for a plain sum of C·d terms; a defect is far larger, and how exact ipfast is, is what tests/ measures."""


class GateError(Exception):
    """A contender's scores are wrong; its speed means nothing."""


def sample_rows(count: int) -> Tensor:
    """Row numbers to check, in order."""
    if count <= 3 * ROWS:
        return torch.arange(count)
    middle = torch.randint(ROWS, count - ROWS, (ROWS,), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.arange(ROWS), middle.sort().values, torch.arange(count - ROWS, count)])


def softmax_truth(h: Tensor, y: Tensor, w: Tensor, b: Tensor, g: Tensor, gb: Tensor) -> tuple[Tensor, Tensor]:
    """(s, m) [N] in float64: s_i = Σ_c r_ic u_ic with r = softmax(W h + b) − e_y and u = G h + G_b, and the sum m_i of the
    absolute values behind it, of which a float32 computation may lose eps."""
    h, y, w, b, g, gb = h.cpu().double(), y.cpu(), w.cpu().double(), b.cpu().double(), g.cpu().double(), gb.cpu().double()
    z, u = h @ w.T + b, h @ g.T + gb
    p = z.softmax(dim=1)
    own = torch.nn.functional.one_hot(y, w.shape[0])
    z_sizes, u_sizes = h.abs() @ w.abs().T + b.abs(), h.abs() @ g.abs().T + gb.abs()
    centred = (u - (own * u).sum(dim=1, keepdim=True)).abs()
    rounding_of_p = centred * 2 * z_sizes.amax(dim=1, keepdim=True)
    return ((p - own) * u).sum(dim=1), ((p + own) * u_sizes + p * rounding_of_p).sum(dim=1)


def check(name: str, got: Tensor, rows: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """Raise GateError unless |got − truth| ≤ SLACK·eps·magnitude in every checked row."""
    error = (got.cpu()[rows].double() - truth).abs()
    allowed = SLACK * torch.finfo(got.dtype).eps * magnitude
    excess = torch.where(torch.isfinite(error), error - allowed, torch.full_like(error, torch.inf))
    worst = int(excess.argmax())
    if excess[worst] > 0:
        row = int(rows[worst])
        raise GateError(
            f"{name}: score {float(got[row]):.9g} of row {row} is not {float(truth[worst]):.9g} "
            f"(error {float(error[worst]):.3g}, allowed {float(allowed[worst]):.3g})"
        )
