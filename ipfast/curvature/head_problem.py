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
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..engines import HeadEngine
from ..engines.head import Parameters
from ..errors import InputError
from .base import Basis, Gradients, Kronecker, Problem, parts_of
from .features import TrainRows

KEPT_BYTES = 256 * 2**20
"""Curvatures of the logits that are kept between the passes of a solver."""
DENSE_BYTES = 64 * 2**20
"""Gradients that are written out at once."""


class HeadProblem(Problem):
    """The training loss at a head.

    Args:
        engine: of the model at the point.
        rows: features and labels of the training data there, which other points may share.
        at: W [C, d] and b [C].
    """

    def __init__(self, engine: HeadEngine, rows: TrainRows, at: Parameters) -> None:
        last = engine.last
        self.where, self.engine, self.loss = engine.where, engine, engine.loss
        self.rows = rows
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
        self._residuals: list[Tensor] = []

    @property
    def samples(self) -> int:
        return self.rows.samples

    def hessian(self, v: Tensor, *, ggn: bool = False) -> Tensor:
        shift = v[:, self.parts[1].place].reshape(-1, 1) if self._ones else None
        stacked = v[:, self.parts[0].place].reshape(-1, self.width)
        out = torch.zeros_like(stacked, dtype=torch.float64)
        out_bias = torch.zeros(len(stacked), dtype=torch.float64, device=self.device)
        for h, _, diagonal, rank in self._curvatures():
            a = stacked.to(h) @ h.T
            if shift is not None:
                a += shift.to(a)
            a = a.view(len(v), self.outputs, -1)
            t = diagonal * a
            if rank is not None:
                t -= rank * (rank * a).sum(dim=1, keepdim=True)
            flat = t.view(len(stacked), -1)
            out += (flat @ h).to(out)
            if shift is not None:
                out_bias += flat.sum(dim=1).to(out_bias)
        whole = out.view(len(v), -1)
        return (torch.cat([whole, out_bias.view(len(v), -1)], dim=1) if self._ones else whole).div_(self.samples)

    def trace(self, *, ggn: bool = False) -> float:
        total = 0.0
        for h, _, diagonal, rank in self._curvatures():
            each = diagonal.sum(dim=0) - (0 if rank is None else rank.square().sum(dim=0))
            total += float((each * (_squares(h) + self._ones)).double().sum())
        return total / self.samples

    def gradients(self) -> Iterator[Gradients]:
        if self.rows.of_tokens:
            refuse_tokens(self.where)
        kept, size = [], 0
        for index, (h, y, _) in enumerate(self._blocks()):
            block = HeadGradients(self, h, y, self._residuals[index] if self._residuals else None)
            yield block
            size += block.r.nbytes
            if size <= KEPT_BYTES:
                kept.append(block.r)
        if size <= KEPT_BYTES:
            self._residuals = kept

    def block(self, inputs: Any, labels: Any) -> Gradients:
        h = inputs.to(torch.float64 if inputs.dtype == torch.float64 else torch.float32)
        return HeadGradients(self, h, labels)

    def covariances(self, *, empirical: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
        if self.rows.of_tokens:
            refuse_tokens(self.where)
        inputs = torch.zeros(self.layers[0].columns, self.layers[0].columns, dtype=torch.float64, device=self.device)
        outputs = torch.zeros(self.outputs, self.outputs, dtype=torch.float64, device=self.device)
        d = self.width
        for h, y, diagonal, rank in self.passes.over("covariances", (outputs, inputs), self._curvatures(), _rows):
            inputs[:d, :d] += (h.T @ h).to(inputs)
            if self._ones:
                sums = h.sum(dim=0).to(inputs)
                inputs[d, :d] += sums
                inputs[:d, d] += sums
                inputs[d, d] += len(h)
            if empirical:
                r = self._residual(h, y)
                outputs += (r @ r.T).to(outputs)
            else:
                outputs += diagonal.sum(dim=1).diag().to(outputs)
                if rank is not None:
                    outputs -= (rank @ rank.T).to(outputs)
        return [(outputs / self.samples, inputs / self.samples)]

    def second_moments(self, bases: Sequence[Basis], *, empirical: bool, seed: int) -> list[Tensor]:
        (basis,) = bases
        total = torch.zeros(self.outputs, self.layers[0].columns, dtype=torch.float64, device=self.device)
        turned = basis.output.T
        for h, y, diagonal, rank in self.passes.over("second moments", (total,), self._curvatures(), _rows):
            if empirical:
                m = (turned.to(h) @ self._residual(h, y)).square()
            else:
                m = turned.square().to(h) @ diagonal
                if rank is not None:
                    m -= (turned.to(h) @ rank).square()
            total += (m @ self._rotated(h, basis.input)).to(total)
        return [total / self.samples]

    def rest_moments(self, *, empirical: bool, seed: int) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64, device=self.device)

    def dense(self, *, ggn: bool = False) -> Tensor:
        """C² blocks Hᵀ diag(∂²ℓ/∂z_c ∂z_c') H, of which the lower ones are mirrored."""
        columns, c = self.layers[0].columns, self.outputs
        total = torch.zeros(c, columns, c, columns, dtype=torch.float64, device=self.device)
        for h, _, diagonal, rank in self.passes.over("Hessian", (total,), self._curvatures(), _rows):
            full = (torch.cat([h, h.new_ones(len(h), 1)], dim=1) if self._ones else h).double()
            for first in range(c):
                for second in range(first + 1):
                    each = torch.zeros(len(h), dtype=torch.float64, device=h.device)
                    if first == second:
                        each += diagonal[first]
                    if rank is not None:
                        each -= rank[first].double() * rank[second].double()
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

    def _residual(self, h: Tensor, y: Tensor) -> Tensor:
        """r [C, B] of a block."""
        return self.loss.residual(self._logits(h), y).T.contiguous()

    def _curvatures(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """(h, labels, D [C, B], v [C, B]) of each block, D and v times the shares of tokens; they are kept from the first pass
        on, where they fit."""
        kept, size = [], 0
        for index, (h, y, shares) in enumerate(self._blocks()):
            if self._complete:
                yield h, y, *self._kept[index]
                continue
            diagonal, rank = self.loss.hessian(self._logits(h), y)
            diagonal, rank = diagonal.T.contiguous(), None if rank is None else rank.T.contiguous()
            if shares is not None:
                diagonal *= shares.to(diagonal)
                rank = None if rank is None else rank * shares.sqrt().to(rank)
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


def refuse_tokens(where: str) -> NoReturn:
    """For what takes gradients as products of a residual and features."""
    raise InputError(
        f"{where}: expected a row of features for each sample with this curvature at the last layer; got token data, whose "
        "gradients do not factor. Name the layer in params, as in params=['head'], or use LiSSA with target='val'."
    )


class HeadGradients(Gradients):
    """g_i = r_i h̄_iᵀ of a block.

    Args:
        r: residuals [C, B], where they are known.
    """

    def __init__(self, problem: HeadProblem, h: Tensor, y: Tensor, r: Tensor | None = None) -> None:
        self.problem, self.h, self.y, self.count = problem, h, y, len(h)
        self._r = r

    @property
    def r(self) -> Tensor:
        if self._r is None:
            self._r = self.problem._residual(self.h, self.y)
        return self._r

    def dots(self, v: Tensor) -> Tensor:
        p, h = self.problem, self.h
        matrix = v[:, p.parts[0].place].reshape(-1, p.width).to(h)
        if self._r is None:
            # One product with both: the features are read once.
            zu = torch.cat([p.weight.to(h), matrix]) @ h.T
            z = zu[: p.outputs] if p.bias is None else zu[: p.outputs].add_(p.bias.to(h)[:, None])
            self._r, u = p.loss.residual(z.T, self.y).T.contiguous(), zu[p.outputs :]
        else:
            u = matrix @ h.T
        parts = [torch.linalg.vecdot(u.view(len(v), p.outputs, -1), self.r, dim=1).T]
        if p._ones:
            parts.append((v[:, p.parts[1].place].to(h) @ self.r).T)
        return torch.stack(parts, dim=2)

    def squares(self) -> Tensor:
        each = self.r.square().sum(dim=0)
        return torch.stack([each * _squares(self.h)] + ([each] if self.problem._ones else []), dim=1)

    def weighted(self, c: Tensor) -> Tensor:
        p, r = self.problem, self.r
        scaled = (c[:, :, 0].T.to(r)[:, None] * r).reshape(-1, self.count)
        out = (scaled @ self.h).double().view(c.shape[1], -1)
        return torch.cat([out, (c[:, :, 1].T.to(r) @ r.T).double()], dim=1) if p._ones else out

    def dense(self) -> Iterator[Tensor]:
        p = self.problem
        size = max(1, DENSE_BYTES // (8 * p.size))
        for first in range(0, self.count, size):
            r, h = self.r[:, first : first + size].T, self.h[first : first + size]
            outer = (r[:, :, None] * h[:, None, :]).flatten(1)
            yield (torch.cat([outer, r], dim=1) if p._ones else outer).double()

    def rotated(self, layer: int, basis: Basis, scale: Tensor) -> Tensor:
        m = (basis.output.T.to(self.r) @ self.r).square()
        rotated = self.problem._rotated(self.h, basis.input)
        found: Tensor = torch.linalg.vecdot(m.T @ scale.to(m), rotated)
        return found

    def scaled_squares(self, scale: Tensor) -> Tensor:
        return self.h.new_zeros(self.count)  # the head is a layer


def _rows(block: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> int:
    return len(block[0])


def _squares(h: Tensor) -> Tensor:
    """‖h‖² [B], without a copy of h."""
    norms: Tensor = torch.linalg.vector_norm(h, dim=1)
    return norms.square()
