"""Every method at a linear head on the same features: 50,000 × 512 with 10 or 100 classes, and the loops that others run.

A loop goes through the stored gradients of the samples one by one, as the public code of these methods does; it is timed on few
rows and scaled, and the gradients it needs are not in its time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import ipfast
from ipfast import Method

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..networks import make_network
from ..record import Row

NAME = "methods"
WIDTH, VALIDATION, IMAGES = 512, 5_000, 64
STANDARD_ROWS, STANDARD_CLASSES = 50_000, (10, 100)
LOOP_ROWS, CHECKED_ROWS = 2_000, 500
PASSES, FISHER_STEPS, DAMPING, SCALE = 20, 10, 0.01, 1.0
TOLERANCE = 1e-3
"""Of the largest score: float32 solves against float64 loops."""

IP, SELF, DATAINF, EKFAC, LISSA, FISHER = "ip", "self_tracin", "datainf", "ekfac", f"lissa, {PASSES} passes", "lissa, fisher"
ENSEMBLE, SELF_EKFAC, BARE, FEATURES = "ip_ensemble", "self_ekfac", "EKFAC's products", "features"
LOOPS = {name: f"{name}, loop" for name in (IP, DATAINF, FISHER, EKFAC)}
METHODS: dict[str, Any] = {
    IP: "ip",
    ENSEMBLE: "ip_ensemble",
    SELF: "self_tracin",
    DATAINF: "datainf",
    EKFAC: "ekfac",
    SELF_EKFAC: "self_ekfac",
    LISSA: Method(curvature=ipfast.LiSSA(damping=DAMPING, scale=SCALE, steps=PASSES, tol=0.0)),
    FISHER: Method(curvature=ipfast.LiSSA(operator="fisher", damping=DAMPING)),
}
CHECKED = {EKFAC: Method(curvature=ipfast.EKFAC(empirical=True))}
"""What is held to its loop where the loop is of stored gradients, at the labels of the data, and the method is not."""
COMPLEXITY = {
    IP: "4NCd",
    ENSEMBLE: "2(1+T)NCd",
    SELF: "2NCd",
    DATAINF: "12NCd",
    EKFAC: "4Nd² + 8NCd + d³ + C³",
    SELF_EKFAC: "6Nd² + 8NCd + d³ + C³",
    LISSA: "6NCd a pass",
    FISHER: "4NCd a pass",
}
MEANING = {
    IP: "ipfast.score of resident features, the validation gradient included",
    SELF: "‖∇ℓ_i‖²",
    BARE: "HᵀH, H Q and the two eigendecompositions alone",
    FEATURES: "one inference pass of a residual network of 2.8 M parameters over N images of 32×32",
    **dict.fromkeys(LOOPS.values(), "one sample after another over stored gradients"),
}


class Problem:
    """Features, labels, a head, validation features."""

    def __init__(self, rows: int, classes: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(classes)

        def normal(*shape: int) -> Tensor:
            return torch.empty(*shape).normal_(generator=generator).to(device)

        self.h, self.h_val = normal(rows, WIDTH), normal(VALIDATION, WIDTH)
        self.y, self.y_val = (torch.randint(classes, (len(x),), generator=generator).to(device) for x in (self.h, self.h_val))
        self.linear = nn.Linear(WIDTH, classes).to(device)
        with torch.no_grad():
            self.linear.weight.copy_(2 * normal(classes, WIDTH) / WIDTH**0.5)
            self.linear.bias.copy_(normal(classes))
        self.classes = classes

    def first(self, rows: int) -> Problem:
        """The same problem with the first rows only."""
        part = copy.copy(self)
        part.h, part.y = self.h[:rows], self.y[:rows]
        return part

    def scores(self, method: Any) -> ipfast.Scores:
        """Of a method."""
        needs_val = ipfast.methods.get_method("bench", method).needs_val
        val = (self.h_val, self.y_val) if needs_val else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # LiSSA is cut short on purpose
            return ipfast.score(self.linear, (self.h, self.y), val, method=method, progress=False)


class Stored:
    """The gradients of all samples of a small problem, as matrices [C, d] and vectors [C], and that of the validation loss."""

    def __init__(self, p: Problem, dtype: torch.dtype) -> None:
        weight, bias = p.linear.weight.detach().to(dtype), p.linear.bias.detach().to(dtype)

        def residuals(h: Tensor, y: Tensor) -> Tensor:
            r = (h @ weight.T + bias).softmax(dim=1)
            r[torch.arange(len(y)), y] -= 1
            return r

        self.h, h_val = p.h.to(dtype), p.h_val.to(dtype)
        self.p = (self.h @ weight.T + bias).softmax(dim=1)
        self.r, r_val = residuals(self.h, p.y), residuals(h_val, p.y_val)
        self.weights = list(self.r[:, :, None] * self.h[:, None, :])
        self.biases = list(self.r)
        self.v, self.v_bias = r_val.T @ h_val / len(h_val), r_val.mean(dim=0)


def loop_ip(s: Stored) -> Tensor:
    """⟨v, g_i⟩."""
    return _products(s, s.v, s.v_bias)


def _products(s: Stored, q: Tensor, q_bias: Tensor) -> Tensor:
    pairs = zip(s.weights, s.biases, strict=True)
    return torch.stack([(q * g).sum() + (q_bias * gb).sum() for g, gb in pairs])


def loop_datainf(s: Stored) -> Tensor:
    """Σ_l ⟨(1/(nλ)) Σ_i (v − ⟨v, g_i⟩/(λ + ‖g_i‖²) g_i), g_k⟩."""
    solved = []
    for gradients, v in ((s.weights, s.v), (s.biases, s.v_bias)):
        damping = sum((g * g).mean() for g in gradients) / len(gradients) / 10
        q = torch.zeros_like(v)
        for g in gradients:
            q += (v - (v * g).sum() / (damping + (g * g).sum()) * g) / (len(gradients) * damping)
        solved.append(q)
    return _products(s, *solved)


def loop_fisher(s: Stored) -> Tensor:
    """r ← v + r − (F r + λ r), ten times."""
    solved = []
    for gradients, v in ((s.weights, s.v), (s.biases, s.v_bias)):
        damping = DAMPING * sum((g * g).mean() for g in gradients) / len(gradients)
        r = v.clone()
        for _ in range(FISHER_STEPS):
            applied = torch.zeros_like(v)
            for g in gradients:
                applied += (r * g).sum() * g / len(gradients)
            r = v + r - applied - damping * r
        solved.append(r)
    return _products(s, *solved)


def loop_ekfac(s: Stored) -> Tensor:
    """Covariances and their eigenvectors, then Λ from one stored gradient after another, rotated: Σ_i (Q_Sᵀ G_i Q_A)²/N."""
    full = torch.cat([s.h, s.h.new_ones(len(s.h), 1)], dim=1)
    q_s = torch.linalg.eigh((s.r.T @ s.r).double()).eigenvectors.to(full)
    q_a = torch.linalg.eigh((full.T @ full).double()).eigenvectors.to(full)
    moments = torch.zeros(len(q_s), len(q_a), dtype=full.dtype)
    for g, gb in zip(s.weights, s.biases, strict=True):
        moments += (q_s.T @ torch.cat([g, gb[:, None]], dim=1) @ q_a).square()
    moments /= len(full)
    v = torch.cat([s.v, s.v_bias[:, None]], dim=1)
    q = q_s @ ((q_s.T @ v @ q_a) / (moments + 0.1 * moments.mean())) @ q_a.T
    return _products(s, q[:, :-1], q[:, -1])


LOOP_CALLS: dict[str, Callable[[Stored], Tensor]] = {
    IP: loop_ip,
    DATAINF: loop_datainf,
    FISHER: loop_fisher,
    EKFAC: loop_ekfac,
}


def make_contenders(p: Problem) -> list[Contender]:
    """Everything that is timed."""
    few = p.first(LOOP_ROWS)
    stored = Stored(few, torch.float32)
    network, images = make_network("resnet", IMAGES)

    def bare() -> Tensor:
        inputs = torch.linalg.eigh((p.h.T @ p.h).double()).eigenvectors.to(p.h)
        torch.linalg.eigh(torch.eye(p.classes, dtype=torch.float64))
        turned: Tensor = p.h @ inputs
        return turned

    def features() -> Tensor:
        with torch.inference_mode():
            z: Tensor = network(*images.inputs)
            return z

    def run(name: str) -> Tensor:
        found: Tensor = p.scores(METHODS[name]).values
        return found

    def loop(name: str) -> Tensor:
        return LOOP_CALLS[name](stored)

    share = len(few.h) / len(p.h)
    return [
        *(Contender(name, lambda name=name: run(name), memory=True) for name in METHODS),  # type: ignore[misc]
        Contender(BARE, bare),
        *(Contender(LOOPS[name], lambda name=name: loop(name), share=share) for name in LOOPS),  # type: ignore[misc]
        Contender(FEATURES, features, share=IMAGES / len(p.h)),
    ]


def check(p: Problem) -> None:
    """Raise gate.GateError where a method on few rows is not its loop in float64."""
    few = p.first(CHECKED_ROWS)
    truth = Stored(few, torch.float64)
    for name, call in LOOP_CALLS.items():
        got, expected = few.scores(CHECKED.get(name, METHODS[name])).values.double(), call(truth)
        error = float((got - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise gate.GateError(f"{NAME}, {name}: scores differ from the loop in float64 by {error:.3g} of the largest")


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on a CPU at the standard size."""
    sizes = rows[IP].sizes
    if sizes["rows"] != STANDARD_ROWS or sizes["classes"] != 10 or rows[IP].device != "cpu":
        return []

    def seconds(name: str) -> float:
        return rows[name].seconds.p50

    return [
        Bound(f"{DATAINF} / {IP}", seconds(DATAINF) / seconds(IP), 5, "at most"),
        Bound(f"{SELF} / {IP}", seconds(SELF) / seconds(IP), 1.5, "at most"),
        Bound(f"{EKFAC} / {BARE}", seconds(EKFAC) / seconds(BARE), 1.5, "at most"),
        Bound(f"a pass of {LISSA} / {IP}", seconds(LISSA) / PASSES / seconds(IP), 3.5, "at most"),
        *(Bound(f"{loop} / {name}", seconds(loop) / seconds(name), 20, "at least") for name, loop in LOOPS.items()),
    ]
