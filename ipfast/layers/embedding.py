"""Embedding: the gradient of row c is the sum of the cotangents at the tokens equal to c; the padding row has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import RULES, Kept, LayerRule, wide


class EmbeddingRule(LayerRule):
    def takes(self, module: Any) -> bool:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse

    def by_position(self, module: nn.Module) -> bool:
        return True

    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        tokens, cotangents = self.counted(module, kept[0], b)
        columns = [(query[tokens].to(cotangents) * cotangents).flatten(1).sum(dim=1) for query in queries["weight"]]
        return torch.stack(columns, dim=1)

    def norm_sq(self, module: Any, kept: Kept, b: Tensor, names: Sequence[str]) -> Tensor:
        return self.of_rows(*self.counted(module, kept[0], b), module.num_embeddings)

    @staticmethod
    def of_rows(tokens: Tensor, cotangents: Tensor, rows_of_weight: int) -> Tensor:
        """‖g_i‖² [B] of tokens [B, T] and their cotangents [B, T, d]."""
        sample = torch.arange(len(tokens), device=tokens.device)[:, None]
        # Equal tokens of a sample share a row of the gradient.
        rows, place = torch.unique(sample * rows_of_weight + tokens, return_inverse=True)
        sums = cotangents.new_zeros(len(rows), cotangents.shape[2])
        sums.index_add_(0, place.flatten(), cotangents.flatten(0, 1))
        owner = rows // rows_of_weight
        return sums.new_zeros(len(tokens)).index_add_(0, owner, sums.square().sum(dim=1))

    @staticmethod
    def counted(module: Any, tokens: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and cotangents [B, T, d], zero at padding; T = 1 where a sample is one token."""
        cotangents = wide(b)
        if module.padding_idx is not None:
            cotangents = cotangents.masked_fill((tokens == module.padding_idx)[..., None], 0)
        tokens = tokens.reshape(len(tokens), -1)
        return tokens, cotangents.reshape(*tokens.shape, cotangents.shape[-1])


RULES[nn.Embedding] = EmbeddingRule()
