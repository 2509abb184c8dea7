"""A parameter of several layers or calls: its gradient is the sum over its uses, whose norm needs the products between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .base import Kept, LayerRule, VectorRule, sum_of
from .embedding import EmbeddingRule
from .linear import LinearRule, tokens

GATHERED = 2**23
"""Elements of the cotangents of touched rows that are held at once: 32 MiB of float32."""


@dataclass(frozen=True)
class Shared:
    """One use of a parameter: by which layer, under which of its own names, with what was kept, and the output's cotangent."""

    rule: LayerRule
    module: Any
    name: str
    kept: Kept
    b: Tensor


def can_share(rules: Sequence[LayerRule]) -> bool:
    """Whether the norm of a parameter's gradient follows from its uses, by these rules."""
    kinds = {type(rule) for rule in rules}
    return kinds <= {LinearRule, EmbeddingRule} or (len(kinds) == 1 and isinstance(rules[0], (LinearRule, VectorRule)))


def shared_norm_sq(uses: Sequence[Shared]) -> Tensor:
    """‖Σ_uses g_i‖² [B] of one parameter, where `can_share` says so.

        linear, by T tokens, and linear      those of one layer with the tokens of both
        embedding and embedding              the same
        linear L and embedding E             ‖L‖² + ‖E‖² + 2⟨L, E⟩,   ⟨L, E⟩ = Σ_t,t' b_t[token_t'] (a_t·c_t')

    with the embedding's cotangents c. Only the rows of the touched tokens are looked at in ⟨L, E⟩.
    """
    first = uses[0]
    if isinstance(first.rule, VectorRule):
        parts = [use.rule.gradients(use.module, use.kept, use.b, [use.name])[use.name] for use in uses]  # type: ignore[attr-defined]
        return sum_of(parts).flatten(1).square().sum(dim=1)
    linear = [use for use in uses if isinstance(use.rule, LinearRule)]
    embedded = [use for use in uses if isinstance(use.rule, EmbeddingRule)]
    found: list[Tensor] = []
    for kind in (linear, embedded):
        if kind:
            one = kind[0]
            pairs = [(tokens(use.kept[0]), tokens(use.b)) for use in kind] if kind is linear else list(map(_counted, kind))
            # Nothing is copied of a single use: its cotangents may be those of a whole vocabulary.
            a, b = (torch.cat(both, dim=1) if len(both) > 1 else both[0] for both in zip(*pairs, strict=True))
            found.append(_norm_sq(one, a, b))
    found += [2 * _cross(use, *_counted(other)) for use, other in product(linear, embedded)]
    return sum_of(found).clamp(min=0)


def _norm_sq(use: Shared, a: Tensor, b: Tensor) -> Tensor:
    if isinstance(use.rule, EmbeddingRule):
        return use.rule.of_rows(a, b, use.module.num_embeddings)
    return use.rule.norm_sq(use.module, (a,), b, [use.name])


def _counted(use: Shared) -> tuple[Tensor, Tensor]:
    assert isinstance(use.rule, EmbeddingRule)
    return use.rule.counted(use.module, use.kept[0], use.b)


def _cross(use: Shared, touched: Tensor, cotangents: Tensor) -> Tensor:
    """Σ_t,t' b_t[touched_t'] (a_t·c_t') [B]"""
    a, b = tokens(use.kept[0]), tokens(use.b)
    step = max(1, GATHERED // max(1, 2 * a.shape[1] * touched.shape[1]))
    found = []
    for rows in (slice(first, first + step) for first in range(0, len(a), step)):
        places = touched[rows, None].expand(-1, a.shape[1], -1)
        products = torch.bmm(a[rows].to(cotangents.dtype), cotangents[rows].transpose(1, 2))
        found.append(products.mul_(b[rows].gather(2, places)).flatten(1).sum(dim=1))
    return torch.cat(found)
