"""The head engine: scores of the last linear layer from one pass over its features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..checks import require_narrow
from ..data import ArraySource, Batch, Source
from ..errors import InputError, NonFiniteError
from ..losses import Loss
from .last_layer import LastLayer, logits_of
from .outputs import label_tensor
from .tokens import Labels, TokenLabels, counted_tokens, is_token_labels, packed, token_labels

BLOCK_BYTES = 16 * 2**20
"""Features that are held at once when they come from a file, a loader or a backbone."""
RESIDENT_WORK = 1 << 40
"""Products (N·d·C) of one call on an array in memory, which needs no copy: seconds between two steps of the progress bar."""

RESIDENT_TOKENS = 1 << 15
"""Tokens of one call on token data in memory, where none is left out. With more, torch would look at their labels in threads,
which go on spinning beside those of the kernel."""

Parameters = tuple[Tensor, Tensor | None]
"""(W, b) of a head: [C, d] and [C], or one for each query, [Q, C, d] and [Q, C]."""


def resident_rows(width: int, outputs: int) -> int:
    """Rows of one call on an array in memory, a multiple of block_rows: many, since every call starts threads anew."""
    unit = block_rows(width)
    return max(unit, RESIDENT_WORK // (max(width, 1) * (outputs + 16)) // unit * unit)


def block_rows(width: int) -> int:
    """Rows of a block: a function of the width alone and a multiple of the reference's own blocks, so that the same data meets
    the same arithmetic however it arrives."""
    unit = ops.BLOCK_ROWS
    return max(unit, BLOCK_BYTES // (4 * max(width, 1)) // unit * unit)


class HeadEngine:
    """Features and labels of a source in fixed blocks, and the scores of a block.

    Args:
        where: the calling function, for messages.
        last: the last layer and its backbone.
        loss: of one sample.
        backend: of the operations.
        include_bias: whether the bias is a scored parameter.
        batch_size: samples that go through the backbone at once.
        device: where scores are computed; None: where the model is, or where the features are.
        tokens: what a sample of token data is, one of TOKENS.
        precision: of the products of `dot` and `norm`, as in ops.head_dot; logits and losses are exact.
        check: hold the head's outputs to W h + b on the first batch that goes through a backbone.
    """

    name = "head"

    def __init__(
        self,
        where: str,
        last: LastLayer,
        loss: Loss,
        *,
        backend: str,
        include_bias: bool,
        batch_size: int,
        device: torch.device | None,
        tokens: str = "mean",
        precision: str | None = None,
        check: bool = True,
    ) -> None:
        self._unchecked = check
        self.where, self.last, self.loss = where, last, loss
        self.backend, self.include_bias = backend, include_bias and last.bias is not None
        self.batch_size, self.device, self.precision = batch_size, device, precision
        self._copy: nn.Module | None = None  # of the model, for states that are loaded
        self.tokens = tokens
        self.of_tokens: dict[str, bool] = {}
        """Whether train, and val, are token data, as far as is known; shared by the engines of all states."""

    def labels(self, argument: str, labels: Any, rows: int) -> Tensor:
        """Checked labels of `rows` samples, as the loss takes them."""
        where = f"{self.where}, {argument}"
        if self.last.encode is not None:
            labels = self.last.encode(where, labels)
        return self.loss.prepare(where, label_tensor(where, labels), rows, self.last.outputs)

    def check(self, argument: str, source: Source) -> None:
        """Look, before any work, at what can be seen of a source without running a model."""
        if not isinstance(source, ArraySource):
            return
        if self.last.backbone is None:
            shape = source.inputs.shape
            if len(shape) not in (2, 3) or shape[-1] != self.last.width:
                raise InputError(
                    f"{self.where}: expected {argument} features of shape [N, {self.last.width}] for a head of weight "
                    f"{list(self.last.weight.shape)}; got {list(shape)}. Were they made by the same model? Features of tokens "
                    f"have the shape [N, T, {self.last.width}]."
                )
            self._check_columns(argument, source.inputs.columns)
            self._note(argument, len(shape) == 3)
            length = shape[1]
            if argument == "train":
                require_narrow(self.where, self.precision, source.inputs.dtype)
        else:
            labels = source.labels
            if not isinstance(labels, Tensor) or not is_token_labels(self.loss, labels, self.last.outputs):
                source.labels = self.labels(argument, labels, source.inputs.shape[0])
                return
            self._note(argument, True)
            length = labels.shape[1]
        rows = source.inputs.shape[0]
        if self.of_tokens[argument]:
            source.labels = self.token_labels(argument, source.labels, (rows, length))
        else:
            source.labels = self.labels(argument, source.labels, rows)

    def _check_columns(self, argument: str, found: tuple[str, ...] | None) -> None:
        """Refuse a table with other columns than the estimator was fitted to, or in another order."""
        fitted = self.last.columns
        if found is None or fitted is None or found == fitted:
            return
        place = next(place for place, (one, other) in enumerate(zip(found, fitted, strict=True)) if one != other)
        raise InputError(
            f"{self.where}: expected {argument} features with the columns that the estimator was fitted to, in their order; "
            f"column {place} is {found[place]!r} where it was {fitted[place]!r}. Pass features[model.feature_names_in_]."
        )

    def token_labels(self, argument: str, labels: Any, shape: tuple[int, int]) -> Tensor:
        """Checked labels of sequences [N, T], as `engines.tokens.token_labels` has them."""
        return token_labels(
            f"{self.where}, {argument}",
            labels,
            shape,
            loss=self.loss,
            outputs=self.last.outputs,
            encode=self.last.encode,
        )

    def _note(self, argument: str, of_tokens: bool) -> None:
        """Remember whether an argument is token data, and refuse what does not go together."""
        if not of_tokens and self.tokens != "mean":
            raise InputError(
                f"{self.where}: expected {argument} features of shape [N, T, {self.last.width}] with tokens={self.tokens!r}; "
                "got one row of features a sample. Leave tokens out."
            )
        for other, found in self.of_tokens.items():
            if found != of_tokens:
                kinds = {True: f"tokens [N, T, {self.last.width}]", False: f"samples [N, {self.last.width}]"}
                raise InputError(
                    f"{self.where}: expected {argument} and {other} both of tokens or neither; {argument} has features of "
                    f"{kinds[of_tokens]} and {other} of {kinds[found]}. Pool the tokens, or keep them on both sides."
                )
        self.of_tokens[argument] = of_tokens

    def blocks(
        self, argument: str, source: Source, *, columns: int = 1, by_row: bool = False
    ) -> Iterator[tuple[int, Tensor, Labels]]:
        """(first row, features, labels) in blocks of block_rows(d) rows, or of a multiple where nothing is copied; `columns`
        is how many scores each row gets. Of token data (first sequence, features and labels of the counted tokens) in blocks of
        whole sequences with about as many tokens; in larger ones where nothing is copied and `by_row` tells that the arithmetic
        of a row does not depend on cuts."""
        size = block_rows(self.last.width)
        if isinstance(source, ArraySource) and self.last.backbone is None and not self.of_tokens.get(argument):
            # `check` has prepared the labels.
            start = 0
            resident = source.inputs.resident
            outputs = self.last.outputs * columns
            for batch in source.batches(resident_rows(self.last.width, outputs) if resident else size):
                h = self._place(self.last.features(self.where, batch.inputs))
                yield start, h, batch.labels.to(h.device)
                start += len(h)
            return
        by_row = by_row and isinstance(source, ArraySource) and source.inputs.resident and self.last.backbone is None
        batches = self._batches(argument, source, RESIDENT_TOKENS if by_row else size)
        first = next(batches, None)
        if first is None:
            return
        batches = chain([first], batches)
        if self.of_tokens[argument]:
            tokens = "mean" if self.tokens == "each" and argument == "val" else self.tokens
            yield from packed(batches, size, tokens, uncut=by_row)
        else:
            yield from _collect(batches, size)

    def _batches(self, argument: str, source: Source, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each batch that a loader or a backbone makes, or of about so many `tokens` of an array."""
        start, size = 0, self.batch_size
        if isinstance(source, ArraySource) and self.last.backbone is None:
            size = math.ceil(tokens / max(source.inputs.shape[1], 1))
        for batch in source.batches(size):
            h, labels = self._place(self._features(batch.inputs)), batch.labels
            if not isinstance(source, ArraySource):
                y = self.batch_labels(f"{argument} batch from row {start}", labels, h)
            elif h.dim() == 3 and labels.shape[:2] != h.shape[:2]:
                raise InputError(
                    f"{self.where}: expected {argument} labels of shape {list(h.shape[:2])} for the {h.shape[1]} tokens that "
                    f"reach the head; got {list(labels.shape)}. Are they of the same tokens?"
                )
            elif h.dim() == 2 and is_token_labels(self.loss, labels, self.last.outputs):
                raise InputError(
                    f"{self.where}: expected {argument} labels of shape [N], since features {list(h.shape)} reach the head; "
                    f"got {list(labels.shape)}, labels of tokens."
                )
            else:
                y = labels
            self._note(argument, h.dim() == 3)
            yield h, y.to(h.device)
            start += len(h)

    def alone(self, argument: str, batch: Batch) -> tuple[Tensor, Labels]:
        """Features and labels of one batch alone, where scores are computed."""
        h = self._place(self._features(batch.inputs))
        self._note(argument, h.dim() == 3)
        y = self.batch_labels(argument, batch.labels, h).to(h.device)
        return (h, y) if h.dim() == 2 else counted_tokens(h, y, self.tokens)

    def batch_labels(self, argument: str, labels: Any, h: Tensor) -> Tensor:
        """Checked labels of a batch of features [B, d], or of tokens [B, T, d]."""
        if h.dim() == 3:
            return self.token_labels(argument, labels, (h.shape[0], h.shape[1]))
        return self.labels(argument, labels, len(h))

    def _features(self, inputs: Any) -> Tensor:
        """Of a batch, of which the first shows whether the head is what it is taken for."""
        check, self._unchecked = self._unchecked, False
        return self.last.features(self.where, inputs, check=check)

    def _place(self, h: Tensor) -> Tensor:
        weight = self.last.weight.device
        return h.to(self.device or (weight if weight.type != "cpu" else h.device))

    def at(self, state: Mapping[str, Tensor]) -> HeadEngine:
        """The engine where the model has these parameters and buffers; the next call loads into the same copy."""
        last = self.last.at(self.where, state, into=self._copy)
        self._copy = last.backbone
        engine = copy.copy(self)
        engine.last = last
        return engine

    def sample_losses(self, module: nn.Module, batch: Batch, loss: Loss | None = None) -> Tensor:
        """ℓ_i [B] of a batch, differentiable in the parameters of `module`, which is the model or a copy of it."""
        engine = self if loss is None else copy.copy(self)
        engine.loss = loss or self.loss
        inputs, labels = batch.inputs, batch.labels
        if self.last.backbone is None:
            weight = next(module.parameters())
            inputs = self.last.features(self.where, inputs).to(weight)
            if inputs.dim() == 3:  # without the tokens that do not count, whose features may be anything
                counted, y = engine.counted("train of ExtraSGD", inputs, labels)
                return y.reduce(engine.loss.value(module(counted), y.labels))
        z = logits_of(self.where, module, inputs)
        if z is None:
            raise InputError(
                f"{self.where}: expected model to return logits, to train it on; got {type(module).__name__} with another "
                "output. Return the logits, or an object with .logits."
            )
        if z.dim() == 3:
            counted, y = engine.counted("train of ExtraSGD", z, labels)
            return y.reduce(engine.loss.value(counted, y.labels))
        return engine.loss.value(z, engine.labels("train of ExtraSGD", labels, len(z)).to(z.device))

    def counted(self, argument: str, h: Tensor, labels: Any) -> tuple[Tensor, TokenLabels]:
        """(rows [K, d] of the counted tokens of one batch [B, T, d], their labels), differentiable; "each" is as "mean"."""
        mode = "mean" if self.tokens == "each" else self.tokens
        return counted_tokens(h, self.token_labels(argument, labels, (h.shape[0], h.shape[1])).to(h.device), mode)

    def dot(
        self,
        h: Tensor,
        y: Labels,
        gradient: Tensor,
        bias_gradient: Tensor | None,
        *,
        at: Parameters | None = None,
        **options: Any,
    ) -> Tensor:
        """⟨query, ∇ℓ_i⟩ of a block: [B], or [B, Q] of several queries or heads; the arguments are those of ops.head_dot."""
        weight, bias = self._parameters(h, at)
        scores = ops.head_dot(
            h,
            y.labels if isinstance(y, TokenLabels) else y,
            weight,
            bias,
            gradient,
            bias_gradient if self.include_bias else None,
            loss=self.loss.form,
            scale=self.loss.scale(self.last.outputs),
            precision=self.precision,
            backend=self.backend,
            **self.loss.form_options(),
            **options,
        )
        return y.reduce(scores) if isinstance(y, TokenLabels) else scores

    def norm(self, h: Tensor, y: Labels, *, at: Parameters | None = None) -> Tensor:
        """‖∇ℓ_i‖² of a block: [B]; of a sequence that of the sum, or the mean, over its tokens"""
        weight, bias = self._parameters(h, at)
        options: dict[str, Any] = {
            "loss": self.loss.form,
            "include_bias": self.include_bias,
            "scale": self.loss.scale(self.last.outputs) ** 2,
            "backend": self.backend,
            **self.loss.form_options(),
        }
        if not isinstance(y, TokenLabels) or y.tokens == "each":
            y = y.labels if isinstance(y, TokenLabels) else y
            return ops.head_norm(h, y, weight, bias, precision=self.precision, **options)
        if self.precision is not None:
            raise InputError(
                f"{self.where}: expected no precision with the self-influence of sequences, whose products are exact; got "
                f"{self.precision!r}. Leave it out."
            )
        norms = ops.token_norm(h, y.labels, y.counts, weight, bias, **options)
        return norms if y.tokens == "sum" else norms / y.counts.clamp(min=1).to(norms).square()

    def logits(self, h: Tensor, *, at: Parameters | None = None) -> Tensor:
        """z = W h + b of a block: [B, C] in the dtype of the computation"""
        weight, bias = self._parameters(h, at)
        dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
        z = h.to(dtype) @ weight.to(dtype).T
        return z if bias is None else z + bias.to(dtype)

    def _parameters(self, h: Tensor, at: Parameters | None) -> Parameters:
        """(W, b) where the features are; those of the model unless others are given."""
        weight, bias = (self.last.weight, self.last.bias) if at is None else at
        return weight.to(h.device), None if bias is None else bias.to(h.device)

    def loss_values(self, h: Tensor, y: Labels, *, at: Parameters | None = None) -> Tensor:
        """ℓ_i of a block: [B]"""
        if isinstance(y, TokenLabels):
            return y.reduce(self.loss_values(h, y.labels, at=at))
        out = torch.empty(len(h), dtype=torch.float64 if h.dtype == torch.float64 else torch.float32, device=h.device)
        for start in range(0, len(h), ops.BLOCK_ROWS):
            rows = slice(start, start + ops.BLOCK_ROWS)
            out[rows] = self.loss.value(self.logits(h[rows], at=at), y[rows])
        return out

    def require_finite(self, argument: str, start: int, h: Tensor, values: Tensor, tokens: TokenLabels | None = None) -> None:
        """Raise on the first row whose result is not finite, and say whether its features are the reason. `start` is the number
        of the first row, of token data of the first sequence."""
        # One fast sum carries any NaN or infinity; only where it does (or overflows) are the rows looked at one by one.
        # On the CPU NumPy adds: torch's threads would go on spinning beside those of the next block's kernel.
        if math.isfinite(float(values.numpy().sum() if values.device.type == "cpu" else values.sum())):
            return
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        row = int((~finite).nonzero()[0, 0])
        rows = torch.tensor([row], device=h.device) if tokens is None else tokens.rows(row)
        bad = (~torch.isfinite(h[rows])).nonzero()
        place = f"row {start + row}"
        if tokens is not None:
            first = int(rows[int(bad[0, 0]) if len(bad) else 0])
            place = f"row {start + int(tokens.sequence[first])}, token {int(tokens.position[first])}"
        if len(bad):
            value, column = float(h[rows[bad[0, 0]], bad[0, 1]]), int(bad[0, 1])
            raise NonFiniteError(
                f"{self.where}: expected finite {argument} features; got {value} at {place}, "
                f"column {column}. Drop or repair such rows; nothing was written."
            )
        raise NonFiniteError(
            f"{self.where}: expected finite scores; {place} of {argument} gives {values[row].tolist()} although its "
            f"features are finite (largest {float(h[rows].abs().max()):.3g}): the products overflow. Scale the features or "
            "pass them as float64; nothing was written."
        )


def _collect(batches: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut a stream of batches at multiples of `size` rows, in one reused buffer."""
    start = filled = 0
    features: Tensor | None = None
    labels: Tensor | None = None
    for h, y in batches:
        if features is None or labels is None:
            features, labels = h.new_empty((size, *h.shape[1:])), y.new_empty((size, *y.shape[1:]))
        # Numbers that a batch has as integers, or as narrow floats, the next may have as wider ones.
        features, labels = (a.to(torch.promote_types(a.dtype, b.dtype)) for a, b in ((features, h), (labels, y)))
        taken = 0
        while taken < len(h):
            count = min(size - filled, len(h) - taken)
            features[filled : filled + count] = h[taken : taken + count]
            labels[filled : filled + count] = y[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == size:
                yield start, features, labels
                start, filled = start + size, 0
    if filled and features is not None and labels is not None:
        yield start, features[:filled], labels[:filled]
