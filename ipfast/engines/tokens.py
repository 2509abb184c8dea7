"""Token data: sequences [N, T, d] with labels [N, T], brought to the rows of the tokens that count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..losses import Loss
from .estimators import EstimatorLabels
from .outputs import label_tensor

TOKENS = ("mean", "sum", "each")
"""What a sample is: a sequence whose loss is the mean or the sum over its tokens, or each token alone."""
IGNORED = -100
"""Label of the tokens that do not count where the loss names none, as in torch and Hugging Face."""


@dataclass(frozen=True)
class TokenLabels:
    """The counted tokens of B sequences, one after another, beside their features [K, d].

    Attributes:
        labels: [K] or [K, C], as the loss takes them.
        counts: T_i [B], on the CPU; 0 for a sequence of which no token counts.
        position: [K] of each token in its sequence, as padded.
        length: T, the longest that a sequence is with its padding.
        tokens: one of TOKENS.
    """

    labels: Tensor
    counts: Tensor
    position: Tensor
    length: int
    tokens: str
    part: slice | None = None  # of the K tokens that `counts` is of; None: all

    def __len__(self) -> int:
        """Scores that the block gives: one a sequence, or one a token."""
        return len(self.labels) if self.tokens == "each" else len(self.counts)

    @property
    def sequence(self) -> Tensor:
        """Number of each token's sequence among the B [K]."""
        every = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        return (every if self.part is None else every[self.part]).to(self.labels.device)

    def reduce(self, values: Tensor) -> Tensor:
        """Of values of the tokens [K, ...] those of the samples: Σ_t v_t or (1/T_i) Σ_t v_t [B, ...], or [K, ...] as they are.

        A sum in float64 over the tokens of one sequence after another, without atomics: its bits do not depend on the block.
        """
        if self.tokens == "each":
            return values
        counts = self.counts.to(values.device)
        total = torch.segment_reduce(values.double(), "sum", lengths=counts, axis=0, initial=0)
        if self.tokens == "mean":
            total = total / counts.clamp(min=1).view(-1, *[1] * (values.dim() - 1))
        return total.to(values.dtype)

    def shares(self) -> Tensor:
        """Weight [K] of each token in the loss of its sequence, which for "each" is that of "mean": 1/T_i, or 1."""
        if self.tokens == "sum":
            return torch.ones(len(self.labels), dtype=torch.float64, device=self.labels.device)
        return (1 / self.counts.double()).to(self.labels.device)[self.sequence]

    def rows(self, row: int) -> Tensor:
        """Which of the K features the score number `row` comes from."""
        if self.tokens == "each":
            return torch.tensor([row], device=self.labels.device)
        return (self.sequence == row).nonzero().squeeze(1)

    def cut(self, rows: slice) -> TokenLabels:
        """Some of the tokens, each as a row of its own; sequences keep their numbers."""
        return replace(self, labels=self.labels[rows], position=self.position[rows], tokens="each", part=rows)


Labels = Tensor | TokenLabels


def is_token_labels(loss: Loss, labels: Tensor, outputs: int) -> bool:
    """Whether labels are those of tokens, as far as their shape tells: [N, T] of classes, or [N, T, C]."""
    if labels.dim() != 2 or labels.shape[1] == 1:  # a column is more likely labels of samples with an axis too many
        return labels.dim() == 3
    return not labels.dtype.is_floating_point if loss.form == "cross_entropy" else outputs == 1


def token_labels(
    where: str, labels: Any, shape: tuple[int, int], *, loss: Loss, outputs: int, encode: EstimatorLabels | None
) -> Tensor:
    """Checked labels of N sequences of T tokens: classes [N, T] with IGNORED, or targets [N, T, C] with NaN, for tokens that do
    not count. Those have the label `ignore_index` of the loss, or IGNORED; or NaN in place of all their targets."""
    if encode is not None:
        counted, found = _encoded(where, labels, shape, encode)
    else:
        found = label_tensor(where, labels)
        _check_shape(where, found, shape, loss, outputs)
        if loss.form == "cross_entropy" and not found.dtype.is_floating_point:
            named = getattr(loss, "ignore_index", None)
            counted = found != (IGNORED if named is None else named)
        elif found.dtype.is_floating_point:
            counted = ~torch.isnan(found.reshape(*shape, -1)).all(dim=2)
        else:
            counted = torch.ones(shape, dtype=torch.bool, device=found.device)
    rest = found.shape[2:]
    ignored = None if bool(counted.all()) else ~counted.view(*shape, *[1] * len(rest))
    filled = found if ignored is None else found.masked_fill(ignored, 0)
    try:
        ready = loss.prepare(where, filled.reshape(-1, *rest), shape[0] * shape[1], outputs)
    except InputError:
        for number, part in enumerate(filled):  # finds the sequence, which the message should name
            loss.prepare(f"{where}, sequence {number}", part, shape[1], outputs)
        raise
    ready = ready.reshape(*shape, *ready.shape[1:])
    if ignored is None:
        return ready
    gone = ~counted.view(*shape, *[1] * (ready.dim() - 2))
    return ready.masked_fill(gone, torch.nan if ready.dtype.is_floating_point else IGNORED)


def _check_shape(where: str, labels: Tensor, shape: tuple[int, int], loss: Loss, outputs: int) -> None:
    classes = loss.form == "cross_entropy" and not labels.dtype.is_floating_point
    one_output = loss.form != "cross_entropy" and outputs == 1 and labels.dim() == 2
    wanted = list(shape) if classes else [*shape, outputs]
    if list(labels.shape) == wanted or (one_output and list(labels.shape) == list(shape)):
        return
    hint = "Are they of the same tokens, shifted or padded alike?"
    if labels.dim() == 1:
        hint = "Labels of whole sequences need features [N, d]: pool the tokens first."
    kind = "class" if classes else "row of targets"
    raise InputError(f"{where}: expected labels of shape {wanted}, a {kind} for each token; got {list(labels.shape)}. {hint}")


def _encoded(where: str, labels: Any, shape: tuple[int, int], encode: EstimatorLabels) -> tuple[Tensor, Tensor]:
    """(which tokens count [N, T], labels [N, T] or [N, T, C]) for the classes of a scikit-learn classifier."""
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != shape:
        raise InputError(f"{where}: expected labels of shape {list(shape)}, a class for each token; got {list(array.shape)}.")
    numbers = array.dtype.kind in "iuf"
    counted = torch.from_numpy(array != IGNORED) if numbers else torch.ones(shape, dtype=torch.bool)
    found = encode(where, array[counted.numpy()])
    result = found.new_zeros(*shape, *found.shape[1:])
    result[counted] = found
    return counted, result


def is_counted(labels: Tensor) -> Tensor:
    """Which tokens count [B, T], of labels as `token_labels` gives them."""
    if labels.dtype.is_floating_point:
        return ~torch.isnan(labels).all(dim=2)
    return labels != IGNORED


def counted_tokens(h: Tensor, labels: Tensor, tokens: str) -> tuple[Tensor, TokenLabels]:
    """(rows [K, d] of the counted tokens of a batch [B, T, d], their labels); differentiable in h."""
    piece, flat = _piece(h, labels), h.reshape(-1, h.shape[-1])
    about = TokenLabels(piece.labels, piece.counts, piece.position, h.shape[1], tokens)
    return flat if piece.index is None else flat[piece.index], about


@dataclass
class _Piece:
    """Tokens of a batch: where they are among its rows, which are all of them where `index` is None."""

    index: Tensor | None  # [k] on the device of the features
    labels: Tensor
    position: Tensor
    counts: Tensor  # [B]


def _piece(h: Tensor, labels: Tensor) -> _Piece:
    batch, length = h.shape[:2]
    counted = is_counted(labels)
    flat = labels.reshape(batch * length, *labels.shape[2:])
    if bool(counted.all()):
        position = torch.arange(length, device=labels.device).repeat(batch)
        return _Piece(None, flat.clone(), position, torch.full((batch,), length))  # a batch's memory may be used again
    rows = counted.flatten().nonzero().squeeze(1)
    return _Piece(rows.to(h.device), flat[rows], rows % length, counted.sum(dim=1).cpu())


def packed(
    batches: Iterator[tuple[Tensor, Tensor]], size: int, tokens: str, *, uncut: bool = False
) -> Iterator[tuple[int, Tensor, TokenLabels]]:
    """(first sequence, features [K, d], labels) of the counted tokens, in blocks of whole sequences.

    A block ends with the sequence that brings it to `size` tokens. So cuts depend on which tokens count and on nothing else,
    and the same data meets the same arithmetic however it arrives and however far it is padded. A batch without padding that
    makes a block is handed on without a copy, with `uncut` of any size; otherwise tokens are gathered in one reused buffer.
    """
    start = length = filled = 0
    buffer: Tensor | None = None
    parts: list[_Piece] = []

    def block(features: Tensor) -> tuple[int, Tensor, TokenLabels]:
        counts = torch.cat([part.counts for part in parts])
        where = features.device
        labels, position = (torch.cat(found).to(where) for found in zip(*[(p.labels, p.position) for p in parts], strict=True))
        return start, features, TokenLabels(labels, counts, position, length, tokens)

    for h, y in batches:
        piece, flat = _piece(h, y), h.reshape(-1, h.shape[-1])
        length = max(length, h.shape[1])
        ends = piece.counts.cumsum(0)
        first = before = 0  # sequences and tokens of the batch that are in blocks
        while first < len(ends):
            as_is = uncut and not filled and piece.index is None
            closing = len(ends) - 1 if as_is else int(torch.searchsorted(ends, before + size - filled))
            closes = closing < len(ends)
            last = closing + 1 if closes else len(ends)
            stop = int(ends[last - 1])
            took = slice(before, stop)
            parts.append(_Piece(None, piece.labels[took], piece.position[took], piece.counts[first:last]))
            made: tuple[int, Tensor, TokenLabels] | None
            if closes and not filled and piece.index is None:
                made = block(flat[took])
            else:
                buffer = _with_room(buffer, flat, filled, stop - before, size + h.shape[1])
                into = buffer[filled : filled + stop - before]
                if piece.index is None:
                    into.copy_(flat[took])
                elif flat.dtype == into.dtype:
                    torch.index_select(flat, 0, piece.index[took], out=into)
                else:
                    into.copy_(flat[piece.index[took]])
                filled += stop - before
                made = block(buffer[:filled]) if closes else None
            if made is not None:
                yield made
                start, filled, parts = start + len(made[2].counts), 0, []
            first, before = last, stop
    if parts and buffer is not None:
        yield block(buffer[:filled])


def _with_room(buffer: Tensor | None, like: Tensor, filled: int, more: int, usual: int) -> Tensor:
    """A buffer with room for `more` rows after those that are filled."""
    kind = like.dtype if buffer is None else torch.promote_types(buffer.dtype, like.dtype)
    if buffer is not None and len(buffer) >= filled + more:
        return buffer.to(kind)
    larger = like.new_empty(max(usual, filled + more), like.shape[1], dtype=kind)
    if buffer is not None:
        larger[:filled] = buffer[:filled]
    return larger
