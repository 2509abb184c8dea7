"""The layers of a network that EKFAC knows: a matrix, or one for each group of channels, at every position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engines.layer_plan import Plan, Use
from ..layers import MatrixRule
from .base import Basis, Kronecker, Part

ROTATED_ELEMENTS = 2**21
"""Elements of rotated gradients that are held at once, or those of one sample."""


@dataclass(frozen=True)
class KroneckerLayer:
    """One group of a layer.

    Attributes:
        name: of the layer. weight, bias: names of its parameters; bias None: not scored, or shared otherwise than the weight.
        group: its number.
        block: where it lies.
    """

    name: str
    weight: str
    bias: str | None
    group: int
    block: Kronecker


def kronecker_layers(plan: Plan, parts: Sequence[Part]) -> list[KroneckerLayer]:
    """Linear layers and convolutions whose weight is scored; several that share one are one layer, called several times."""
    places = {part.name: part for part in parts}
    made: list[KroneckerLayer] = []
    for part in parts:
        uses = [use for use in plan.uses if part.name in use.names.values()]
        if part.name in plan.remainder or not uses or not all(_matrix_of(use, part.name) for use in uses):
            continue
        first, rule = uses[0], uses[0].rule
        assert isinstance(rule, MatrixRule)
        groups = rule.groups(first.module)
        if any(use.rule is not rule or rule.groups(use.module) != groups for use in uses):
            continue
        weight = first.module.weight
        assert isinstance(weight, Tensor)
        outputs = weight.shape[1] if rule.transposed else len(weight)
        bias = _bias_of(uses, plan)
        rows, width = outputs // groups, part.size // outputs
        name = first.name or type(first.module).__name__
        for group in range(groups):
            start, size = part.start + group * rows * width, rows * width
            shift = None
            if bias is not None:
                shift = slice(places[bias].start + group * rows, places[bias].start + (group + 1) * rows)
            block = Kronecker(
                f"{name}[{group}]" if groups > 1 else name,
                rows,
                width + (bias is not None),
                slice(start, start + size),
                shift,
                rule.transposed,
            )
            made.append(KroneckerLayer(name, part.name, bias, group, block))
    return made


def _matrix_of(use: Use, full: str) -> bool:
    return isinstance(use.rule, MatrixRule) and use.names.get("weight") == full


def _bias_of(uses: Sequence[Use], plan: Plan) -> str | None:
    """The bias that all uses of a weight share, and no other layer."""
    bias = uses[0].names.get("bias")
    if bias is None or bias in plan.remainder or any(use.names.get("bias") != bias for use in uses):
        return None
    others = [use for use in plan.uses if bias in use.names.values() and use not in uses]
    return None if others else bias


def _rotated(a: Tensor, b: Tensor, basis: Basis) -> Iterator[tuple[slice, Tensor]]:
    """(samples, (Q_Sᵀ G_i Q_A)² [n, d_out, d_in]) with G_i summed over the positions first."""
    outputs, inputs = basis.output.to(b), basis.input.to(a)
    step = max(1, ROTATED_ELEMENTS // (a.shape[2] * b.shape[2]))
    for first in range(0, len(a), step):
        rows = slice(first, first + step)
        yield rows, torch.bmm((b[rows] @ outputs).mT, a[rows] @ inputs).square_()


def second_moments(a: Tensor, b: Tensor, basis: Basis) -> Tensor:
    """Σ_i (Q_Sᵀ G_i Q_A)² [d_out, d_in] float64, of inputs a [n, T, d_in] and cotangents b [n, T, d_out]."""
    if a.shape[1] == 1:
        squares: Tensor = (b[:, 0] @ basis.output.to(b)).square().T @ (a[:, 0] @ basis.input.to(a)).square()
        return squares.double()
    total = torch.zeros(b.shape[2], a.shape[2], dtype=torch.float64, device=a.device)
    for _, found in _rotated(a, b, basis):
        total += found.sum(dim=0)
    return total


def rotated_sum(a: Tensor, b: Tensor, basis: Basis, scale: Tensor) -> Tensor:
    """Σ_jk scale_jk (Q_Sᵀ G_i Q_A)²_jk [n]."""
    if a.shape[1] == 1:
        rows = (b[:, 0] @ basis.output.to(b)).square() @ scale.to(b)
        return (rows * (a[:, 0] @ basis.input.to(a)).square()).sum(dim=1)
    return torch.cat([(squares * scale.to(squares)).sum(dim=(1, 2)) for _, squares in _rotated(a, b, basis)])
