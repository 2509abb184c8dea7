"""The training loss as a function of the last layer, in factored form: no gradient is ever formed.

With r_i = ∂ℓ_i/∂z, ∂²ℓ_i/∂z² = diag(D_i) − v_i v_iᵀ and h̄ = [h, 1] where a bias is scored:

    ∇ℓ_i = r_i h̄_iᵀ                    ∇²L·V = (1/N) Σ_i (D_i∘a_i − v_i⟨v_i, a_i⟩) h̄_iᵀ,   a_i = V h̄_i
    A = (1/N) Σ h̄ h̄ᵀ,  S = (1/N) Σ (diag(D) − v vᵀ)
    Λ = (1/N) MᵀB  with  M = D(Q_S∘Q_S) − (v Q_S)²,  B = (h̄ Q_A)²       the diagonal of ∇²L in the basis Q_S ⊗ Q_A

For cross-entropy, binary cross-entropy and, up to a factor, the squared error, ∂²ℓ/∂z² is the Fisher matrix of the model's own
labels, so that no label need be sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Source
from ..engines import HeadEngine
from ..engines.head import Parameters
from ..errors import InputError
from .base import Basis, Gradients, Kronecker, Problem, parts_of
from .features import Rows

KEPT_BYTES = 256 * 2**20
"""Curvatures of the logits that are kept between the passes of a solver."""
DENSE_BYTES = 64 * 2**20
"""Gradients that are written out at once."""


class HeadProblem(Problem):
    """The training loss at a head.

    Args:
        engine: of the model at the point. source: the training data.
        at: W [C, d] and b [C].
    """

    def __init__(self, engine: HeadEngine, source: Source, at: Parameters) -> None:
        last = engine.last
        self.where, self.engine, self.loss = engine.where, engine, engine.loss
        self.rows = Rows(engine, source)
        self.weight, bias = at[0], at[1]
        self.bias = bias
        self.outputs, self.width = last.outputs, last.width
        names = last.parameters
        sizes = {names[0]: self.outputs * self.width}
        if engine.include_bias:
            sizes[names[1]] = self.outputs
        self.parts = parts_of(sizes)
        scored_bias = self.parts[1].place if engine.include_bias else None
        columns = self.width + engine.include_bias
        self.layers = (Kronecker(last.name or "head", self.outputs, columns, self.parts[0].place, scored_bias),)
        self.convex, self.l2 = True, last.l2
        self.device = self.weight.device if engine.device is None else engine.device
        self.dtype = torch.float64
        self.penalised = torch.ones(self.size, dtype=torch.float64, device=self.device)
        if scored_bias is not None:
            self.penalised[scored_bias] = 0  # as scikit-learn and most who fit a penalty by hand
        self._kept: list[tuple[Tensor, Tensor | None]] = []
        self._complete = False

    @property
    def samples(self) -> int:
        return self.rows.samples

    def hessian(self, v: Tensor, *, ggn: bool = False) -> Tensor:
        matrix = v[:, self.parts[0].place].reshape(len(v), self.outputs, self.width)
        shift = v[:, self.parts[1].place] if len(self.parts) > 1 else None
        out = torch.zeros(len(v) * self.outputs, self.width, dtype=torch.float64, device=self.device)
        out_bias = torch.zeros(len(v), self.outputs, dtype=torch.float64, device=self.device)
        stacked: Tensor | None = None
        for h, diagonal, rank in self._curvatures():
            if stacked is None or stacked.device != h.device:
                stacked = matrix.reshape(-1, self.width).to(h).T.contiguous()
                shifts = None if shift is None else shift.reshape(-1).to(h)
            a = (h @ stacked if shifts is None else torch.addmm(shifts, h, stacked)).view(len(h), len(v), self.outputs)
            t = diagonal[:, None] * a
            if rank is not None:
                t -= rank[:, None] * (rank[:, None] * a).sum(dim=2, keepdim=True)
            flat = t.view(len(h), -1)
            out += (flat.T @ h).to(out)
            if shift is not None:
                out_bias += flat.sum(dim=0).view(len(v), -1).to(out)
        whole = out.view(len(v), -1)
        return (whole if shift is None else torch.cat([whole, out_bias], dim=1)).div_(self.samples)

    def trace(self, *, ggn: bool = False) -> float:
        total = 0.0
        for h, diagonal, rank in self._curvatures():
            each = diagonal.sum(dim=1) - (0 if rank is None else rank.square().sum(dim=1))
            total += float((each * (h.square().sum(dim=1) + self._ones)).double().sum())
        return total / self.samples

    def gradients(self) -> Iterator[Gradients]:
        self._refuse_tokens()
        for h, y, _ in self._blocks():
            yield self.block(h, y)

    def block(self, inputs: Any, labels: Any) -> Gradients:
        h = inputs.to(torch.float64 if inputs.dtype == torch.float64 else torch.float32)
        return HeadGradients(self, h, self.loss.residual(self._logits(h), labels))

    def covariances(self, *, empirical: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
        self._refuse_tokens()
        inputs = torch.zeros(self.layers[0].columns, self.layers[0].columns, dtype=torch.float64, device=self.device)
        outputs = torch.zeros(self.outputs, self.outputs, dtype=torch.float64, device=self.device)
        d = self.width
        for h, y, diagonal, rank in self._with_labels():
            inputs[:d, :d] += (h.T @ h).to(inputs)
            if self._ones:
                sums = h.sum(dim=0).to(inputs)
                inputs[d, :d] += sums
                inputs[:d, d] += sums
                inputs[d, d] += len(h)
            if empirical:
                r = self.loss.residual(self._logits(h), y)
                outputs += (r.T @ r).to(outputs)
            else:
                outputs += diagonal.sum(dim=0).diag().to(outputs)
                if rank is not None:
                    outputs -= (rank.T @ rank).to(outputs)
        return [(outputs / self.samples, inputs / self.samples)]

    def second_moments(self, bases: Sequence[Basis], *, empirical: bool, seed: int) -> list[Tensor]:
        (basis,) = bases
        total = torch.zeros(self.outputs, self.layers[0].columns, dtype=torch.float64, device=self.device)
        squared = basis.output.square()
        for h, y, diagonal, rank in self._with_labels():
            if empirical:
                m = (self.loss.residual(self._logits(h), y) @ basis.output.to(h)).square()
            else:
                m = diagonal @ squared.to(h)
                if rank is not None:
                    m -= (rank @ basis.output.to(h)).square()
            total += (m.T @ self._rotated(h, basis.input)).to(total)
        return [total / self.samples]

    def rest_moments(self, *, empirical: bool, seed: int) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64, device=self.device)

    def dense(self, *, ggn: bool = False) -> Tensor:
        """C² blocks Hᵀ diag(∂²ℓ/∂z_c ∂z_c') H, of which the lower ones are mirrored."""
        columns, c = self.layers[0].columns, self.outputs
        total = torch.zeros(c, columns, c, columns, dtype=torch.float64, device=self.device)
        for h, diagonal, rank in self._curvatures():
            full = (torch.cat([h, h.new_ones(len(h), 1)], dim=1) if self._ones else h).double()
            for first in range(c):
                for second in range(first + 1):
                    each = torch.zeros(len(h), dtype=torch.float64, device=h.device)
                    if first == second:
                        each += diagonal[:, first]
                    if rank is not None:
                        each -= rank[:, first].double() * rank[:, second].double()
                    total[first, :, second] += (full.T @ (each[:, None] * full)).to(total)
        for first in range(c):
            for second in range(first):
                total[second, :, first] = total[first, :, second].T
        order = torch.arange(c * columns, device=self.device).view(c, columns)
        flat = [order[:, : self.width].reshape(-1)] + ([order[:, self.width]] if self._ones else [])
        place = torch.cat(flat)
        return total.view(c * columns, c * columns)[place][:, place] / self.samples

    @property
    def _ones(self) -> int:
        """1 where a bias is scored: the last entry of h̄."""
        return len(self.parts) - 1

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for h, y, shares in self.rows:
            dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
            yield h.to(dtype), y, shares

    def _logits(self, h: Tensor) -> Tensor:
        return self.engine.logits(h, at=(self.weight, self.bias))

    def _curvatures(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(h, D, v) of each block, D and v times the shares of tokens."""
        for h, _, diagonal, rank in self._with_labels():
            yield h, diagonal, rank

    def _with_labels(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """(h, labels, D, v) of each block; D and v are kept from the first pass on, where they fit."""
        kept, size = [], 0
        for index, (h, y, shares) in enumerate(self._blocks()):
            if self._complete:
                yield h, y, *self._kept[index]
                continue
            diagonal, rank = self.loss.hessian(self._logits(h), y)
            if shares is not None:
                diagonal = diagonal * shares[:, None].to(diagonal)
                rank = None if rank is None else rank * shares[:, None].sqrt().to(rank)
            size += diagonal.nbytes * (1 if rank is None else 2)
            if size <= KEPT_BYTES:
                kept.append((diagonal, rank))
            yield h, y, diagonal, rank
        if size <= KEPT_BYTES and not self._complete:
            self._kept, self._complete = kept, True

    def _rotated(self, h: Tensor, basis: Tensor) -> Tensor:
        """(h̄ Q_A)² of a block."""
        q = basis.to(h)
        out = torch.addmm(q[self.width], h, q[: self.width]) if self._ones else h @ q
        return out.square_()

    def _refuse_tokens(self) -> None:
        if self.rows.of_tokens:
            raise InputError(
                f"{self.where}: expected a row of features for each sample with this curvature at the last layer; got token "
                "data, whose gradients do not factor. Name the layer in params, as in params=['head'], or use LiSSA."
            )


class HeadGradients(Gradients):
    """g_i = r_i h̄_iᵀ of a block."""

    def __init__(self, problem: HeadProblem, h: Tensor, r: Tensor) -> None:
        self.problem, self.h, self.r, self.count = problem, h, r, len(h)

    def dots(self, v: Tensor) -> Tensor:
        p, h, r = self.problem, self.h, self.r
        matrix = v[:, p.parts[0].place].reshape(len(v) * p.outputs, p.width).to(h)
        u = (h @ matrix.T).view(self.count, len(v), p.outputs)
        parts = [(u * r[:, None]).sum(dim=2)]
        if len(p.parts) > 1:
            parts.append(r @ v[:, p.parts[1].place].to(r).T)
        return torch.stack(parts, dim=2)

    def squares(self) -> Tensor:
        each = self.r.square().sum(dim=1)
        parts = [each * self.h.square().sum(dim=1)] + ([each] if len(self.problem.parts) > 1 else [])
        return torch.stack(parts, dim=1)

    def weighted(self, c: Tensor) -> Tensor:
        p = self.problem
        out = torch.zeros(c.shape[1], p.size, dtype=torch.float64, device=p.device)
        scaled = (c[:, :, 0, None].to(self.r) * self.r[:, None]).view(self.count, -1)
        out[:, p.parts[0].place] = (scaled.T @ self.h).view(c.shape[1], -1).to(out)
        if len(p.parts) > 1:
            out[:, p.parts[1].place] = (c[:, :, 1].to(self.r).T @ self.r).to(out)
        return out

    def dense(self) -> Iterator[Tensor]:
        p = self.problem
        size = max(1, DENSE_BYTES // (8 * p.size))
        for first in range(0, self.count, size):
            r, h = self.r[first : first + size], self.h[first : first + size]
            outer = (r[:, :, None] * h[:, None, :]).flatten(1)
            yield (torch.cat([outer, r], dim=1) if len(p.parts) > 1 else outer).double()

    def rotated(self, layer: int, basis: Basis, scale: Tensor) -> Tensor:
        m = (self.r @ basis.output.to(self.r)).square()
        rotated = self.problem._rotated(self.h, basis.input)
        return ((m @ scale.to(m)) * rotated).sum(dim=1)

    def scaled_squares(self, scale: Tensor) -> Tensor:
        return self.r.new_zeros(self.count)  # the head is a layer
