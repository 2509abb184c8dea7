"""Attention O = softmax(Q Kᵀ s + mask) V, whose fused forms have no forward derivative in torch.

Ȯ = Ṗ V + P V̇,   Ṗ = P ∘ (Ṡ − Σ_k P ∘ Ṡ),   Ṡ = (Q̇ Kᵀ + Q K̇ᵀ) s
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import dual, parts, rule


@rule(F.scaled_dot_product_attention)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    (mask, dmask), (q, dq), (k, dk), (v, dv) = parts(attn_mask), parts(query), parts(key), parts(value)
    if dropout_p or dmask is not None:
        return NotImplemented
    if dq is None and dk is None and dv is None:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        repeat = q.shape[-3] // k.shape[-3]
        k, v = (part.repeat_interleave(repeat, dim=-3) for part in (k, v))
        dk, dv = (None if part is None else part.repeat_interleave(repeat, dim=-3) for part in (dk, dv))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q = q * factor
    logits = q @ k.transpose(-1, -2)
    if is_causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits.masked_fill_(hidden, -torch.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
    p = torch.softmax(logits, dim=-1)
    if mask is not None:  # a row that sees nothing attends to nothing
        p = p.masked_fill_(torch.isneginf(logits.amax(dim=-1, keepdim=True)), 0)
    output = p @ v
    tangent = None if dv is None else p @ dv
    moved: Tensor | None = None
    if dq is not None:
        moved = (dq * factor) @ k.transpose(-1, -2)
    if dk is not None:
        part = q @ dk.transpose(-1, -2)
        moved = part if moved is None else moved.add_(part)
    if moved is not None:
        moved.mul_(p)
        moved.addcmul_(p, moved.sum(dim=-1, keepdim=True), value=-1)
        part = moved @ v
        tangent = part if tangent is None else tangent.add_(part)
    return dual(output, tangent)
