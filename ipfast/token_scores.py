"""Scores of tokens, laid out by sequence and position."""

from __future__ import annotations

import torch
from torch import Tensor

from .engines import TokenLabels


def spread(values: Tensor, sequence: Tensor, position: Tensor, rows: int, length: int) -> Tensor:
    """[N, T] of scores of tokens [K] (members [N, P, T] of [K, P]), 0 where a token does not count."""
    result = values.new_zeros(rows, length, *values.shape[1:])
    result[sequence, position] = values
    return result if values.dim() == 1 else result.transpose(1, 2).contiguous()


class TokenRecord:
    """Which tokens of a run had counted, in order.

    Attributes:
        each: whether the scores are of tokens.
        length: T, the longest that a sequence was with its padding.
    """

    def __init__(self, tokens: str) -> None:
        self.each, self.length = tokens == "each", 0
        self._counts: list[Tensor] = []
        self._position: list[Tensor] = []

    def add(self, block: TokenLabels) -> None:
        self.length = max(self.length, block.length)
        self._counts.append(block.counts)
        if self.each:
            self._position.append(block.position.cpu())

    @property
    def counts(self) -> Tensor:
        """T_i [N]"""
        return torch.cat(self._counts)

    def spread(self, values: Tensor) -> Tensor:
        """[N, T] of scores of tokens [K], or [N, P, T] of [K, P]."""
        counts = self.counts
        sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return spread(values, sequence, torch.cat(self._position), len(counts), self.length)

    def mask(self) -> Tensor:
        """Whether a token counted [N, T]."""
        return self.spread(torch.ones(int(self.counts.sum()), dtype=torch.bool))
