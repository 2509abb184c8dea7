"""What the samples' gradients of one parameter give without being written out, from the inputs and cotangents of its layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import ops
from ..engines.ghost import Captured
from ..layers import EmbeddingRule, MatrixRule, VectorRule, wide

FORMED_ELEMENTS = 2**21
"""Elements of the gradients of one layer that are formed at once: 8 MiB of float32, or those of one sample."""
JOINED_SAMPLES = 16
"""Samples of which the positions of several calls are put side by side at once."""


class ParameterGradients(ABC):
    """The gradients g_i of a parameter of P_l entries; B samples."""

    @abstractmethod
    def dots(self, v: Tensor) -> Tensor:
        """⟨v_q, g_i⟩ [B, Q] for v [Q, *shape]."""

    @abstractmethod
    def squares(self) -> Tensor:
        """‖g_i‖² [B]."""

    @abstractmethod
    def weighted(self, c: Tensor, out: Tensor) -> None:
        """Add Σ_i c_iq g_i to out [Q, P_l], for c [B, Q]."""

    @abstractmethod
    def moments(self, out: Tensor) -> None:
        """Add Σ_i g_i² to out [P_l]."""

    @abstractmethod
    def scaled_squares(self, scale: Tensor) -> Tensor:
        """Σ_k scale_k g_ik² [B] for scale [P_l]."""


def gradients_of_calls(calls: Sequence[tuple[Captured, str]]) -> ParameterGradients | None:
    """Of a parameter that is used in these calls, under its own name in each; None where no rule says how they add up."""
    first, short = calls[0]
    rule, module = first.use.rule, first.use.module
    if isinstance(rule, MatrixRule):
        alike = all(
            call.use.rule is rule and name == short and rule.groups(call.use.module) == rule.groups(module)
            for call, name in calls
        )
        return MatrixGradients([call for call, _ in calls], short) if alike else None
    if len(calls) > 1:
        return None
    if isinstance(rule, VectorRule):
        return VectorGradients(rule.gradients(module, first.kept, first.b, [short])[short])
    return EmbeddingGradients(rule, first) if isinstance(rule, EmbeddingRule) else None


class MatrixGradients(ParameterGradients):
    """Weight or bias of a layer that multiplies positions with a matrix: Σ_t b_t a_tᵀ or Σ_t b_t over those of all calls."""

    def __init__(self, calls: Sequence[Captured], short: str) -> None:
        self.calls, self.short = calls, short
        rule = calls[0].use.rule
        assert isinstance(rule, MatrixRule)
        self.rule, self.groups = rule, rule.groups(calls[0].use.module)

    def positions(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(samples, a [n, T, G·d_in], b [n, T, G·d_out]); the memory of one block may be that of the next."""
        if len(self.calls) == 1:
            yield from self._of_call(self.calls[0], slice(None))
            return
        for first in range(0, len(self.calls[0].b), JOINED_SAMPLES):
            some = slice(first, first + JOINED_SAMPLES)
            pieces = [[(a.clone(), b) for _, a, b in self._of_call(call, some)] for call in self.calls]
            a = torch.cat([torch.cat([a for a, _ in call]) for call in pieces], dim=1)
            b = torch.cat([torch.cat([b for _, b in call]) for call in pieces], dim=1)
            yield slice(first, first + len(a)), a, b

    def _of_call(self, call: Captured, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        kept = (call.kept[0][rows], *call.kept[1:])
        for some, a, b in self.rule.positions(call.use.module, kept, call.b[rows]):
            yield some, wide(a), wide(b)

    def of_groups(self, a: Tensor, b: Tensor, *, ones: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """(a [n, T, d_in], b [n, T, d_out]) of each group; with `ones` an input of one stands last, whose weight is a bias."""
        for x, y in zip(a.chunk(self.groups, dim=2), b.chunk(self.groups, dim=2), strict=True):
            yield (torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2) if ones else x), y

    def dots(self, v: Tensor) -> Tensor:
        parts = [self.rule.dot(call.use.module, call.kept, call.b, {self.short: v}) for call in self.calls]
        return torch.stack(parts).sum(dim=0)

    def squares(self) -> Tensor:
        b = self.calls[0].b
        out = torch.empty(len(b), dtype=wide(b).dtype, device=b.device)
        weight = self.short == "weight"
        for rows, x, y in self.positions():
            out[rows] = ops.layer_norm_sq(x, y, groups=self.groups, include_weight=weight, include_bias=not weight)
        return out

    def weighted(self, c: Tensor, out: Tensor) -> None:
        for rows, a, b in self.positions():
            for q, factors in enumerate(c[rows].T):
                scaled = b * factors[:, None, None].to(b)
                if self.short == "bias":
                    out[q] += scaled.sum(dim=(0, 1)).to(out)
                    continue
                found = [y.flatten(0, 1).T @ x.flatten(0, 1) for x, y in self.of_groups(a, scaled)]
                out[q] += self._as_stored(torch.stack(found)).to(out)

    def moments(self, out: Tensor) -> None:
        for _, g in self._formed():
            out += g.square_().sum(dim=0).to(out)

    def scaled_squares(self, scale: Tensor) -> Tensor:
        parts = [(g.square_() @ scale.to(g)) for _, g in self._formed()]
        return torch.cat(parts)

    def _formed(self) -> Iterator[tuple[slice, Tensor]]:
        """(samples, g [n, P_l]) of a few samples at once, in order."""
        for rows, a, b in self.positions():
            if self.short == "bias":
                yield rows, b.sum(dim=1)
                continue
            step = max(1, FORMED_ELEMENTS // (a.shape[2] * b.shape[2] // self.groups))
            for first in range(0, len(a), step):
                some = slice(first, first + step)
                found = [torch.bmm(y.mT, x) for x, y in self.of_groups(a[some], b[some])]
                yield some, self._as_stored(torch.stack(found, dim=1))

    def _as_stored(self, g: Tensor) -> Tensor:
        """[..., G, d_out, d_in] as entries of the weight [..., P_l]."""
        return (g.mT if self.rule.transposed else g).flatten(-3)


class VectorGradients(ParameterGradients):
    """A parameter so small that its gradients are formed."""

    def __init__(self, g: Tensor) -> None:
        self.g = g.flatten(1)

    def dots(self, v: Tensor) -> Tensor:
        return self.g @ v.to(self.g).flatten(1).T

    def squares(self) -> Tensor:
        return self.g.square().sum(dim=1)

    def weighted(self, c: Tensor, out: Tensor) -> None:
        out += (c.to(self.g).T @ self.g).to(out)

    def moments(self, out: Tensor) -> None:
        out += self.g.square().sum(dim=0).to(out)

    def scaled_squares(self, scale: Tensor) -> Tensor:
        return self.g.square() @ scale.to(self.g)


class EmbeddingGradients(ParameterGradients):
    """The rows of an embedding that a sample's tokens name."""

    def __init__(self, rule: EmbeddingRule, call: Captured) -> None:
        self.rule, self.call = rule, call
        self.owner, self.row, self.values = rule.rows(call.use.module, call.kept, call.b)

    def dots(self, v: Tensor) -> Tensor:
        return self.rule.dot(self.call.use.module, self.call.kept, self.call.b, {"weight": v})

    def squares(self) -> Tensor:
        return self._by_sample(self.values.square().sum(dim=1))

    def weighted(self, c: Tensor, out: Tensor) -> None:
        width = self.values.shape[1]
        for q, factors in enumerate(c.T):
            scaled = self.values * factors[self.owner, None].to(self.values)
            out[q].view(-1, width).index_add_(0, self.row, scaled.to(out))

    def moments(self, out: Tensor) -> None:
        out.view(-1, self.values.shape[1]).index_add_(0, self.row, self.values.square().to(out))

    def scaled_squares(self, scale: Tensor) -> Tensor:
        rows = scale.view(-1, self.values.shape[1])[self.row].to(self.values)
        return self._by_sample((self.values.square() * rows).sum(dim=1))

    def _by_sample(self, each: Tensor) -> Tensor:
        return each.new_zeros(len(self.call.b)).index_add_(0, self.owner, each)
