"""The head engine: scores of the last linear layer from one pass over its features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..data import ArraySource, Source
from ..errors import InputError, NonFiniteError
from ..losses import Loss
from .last_layer import LastLayer, logits_of

BLOCK_BYTES = 16 * 2**20
"""Features that are held at once when they come from a file, a loader or a backbone."""
RESIDENT_WORK = 1 << 40
"""Products (N·d·C) of one call on an array in memory, which needs no copy: seconds between two steps of the progress bar."""

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
    ) -> None:
        self.where, self.last, self.loss = where, last, loss
        self.backend, self.include_bias = backend, include_bias and last.bias is not None
        self.batch_size, self.device = batch_size, device
        self._copy: nn.Module | None = None  # of the model, for states that are loaded

    def labels(self, argument: str, labels: Any, rows: int) -> Tensor:
        """Checked labels of `rows` samples, as the loss takes them."""
        where = f"{self.where}, {argument}"
        if self.last.encode is not None:
            labels = self.last.encode(where, labels)
        if not isinstance(labels, Tensor):
            try:
                labels = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{where}: expected labels as numbers; got {getattr(labels, 'dtype', type(labels).__name__)}. "
                    "Encode class names as integers 0..C-1."
                ) from error
        return self.loss.prepare(where, labels, rows, self.last.outputs)

    def check(self, argument: str, source: Source) -> None:
        """Look, before any work, at what can be seen of a source without running a model."""
        if not isinstance(source, ArraySource):
            return
        if self.last.backbone is None:
            shape = source.inputs.shape
            if len(shape) != 2 or shape[1] != self.last.width:
                hint = " Token features must be pooled first." if len(shape) == 3 else ""
                raise InputError(
                    f"{self.where}: expected {argument} features of shape [N, {self.last.width}] for a head of weight "
                    f"{list(self.last.weight.shape)}; got {list(shape)}.{hint} Were they made by the same model?"
                )
        source.labels = self.labels(argument, source.labels, source.inputs.shape[0])

    def blocks(self, argument: str, source: Source, *, columns: int = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first row, features, labels) in blocks of block_rows(d) rows, or of a multiple where nothing is copied; `columns`
        is how many scores each row gets."""
        size = block_rows(self.last.width)
        if isinstance(source, ArraySource) and self.last.backbone is None:
            # `check` has prepared the labels.
            start = 0
            resident = source.inputs.resident
            outputs = self.last.outputs * columns
            for inputs, labels in source.batches(resident_rows(self.last.width, outputs) if resident else size):
                h = self._place(self.last.features(self.where, inputs))
                yield start, h, labels.to(h.device)
                start += len(h)
            return
        yield from _collect(self._batches(argument, source), size)

    def _batches(self, argument: str, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each batch that a loader or a backbone makes."""
        start = 0
        for inputs, labels in source.batches(self.batch_size):
            h = self._place(self.last.features(self.where, inputs))
            y = labels if isinstance(source, ArraySource) else self.labels(f"{argument} batch from row {start}", labels, len(h))
            yield h, y.to(h.device)
            start += len(h)

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

    def sample_losses(self, module: nn.Module, inputs: Any, labels: Any, loss: Loss | None = None) -> Tensor:
        """ℓ_i [B] of a batch, differentiable in the parameters of `module`, which is the model or a copy of it."""
        if self.last.backbone is None:
            weight = next(module.parameters())
            inputs = self.last.features(self.where, inputs).to(weight)
        z = logits_of(module, inputs)
        if z is None:
            raise InputError(
                f"{self.where}: expected model to return logits, to train it on; got {type(module).__name__} with another "
                "output. Return the logits, or an object with .logits."
            )
        engine = self if loss is None else copy.copy(self)
        engine.loss = loss or self.loss
        return engine.loss.value(z, engine.labels("train of ExtraSGD", labels, len(z)).to(z.device))

    def dot(
        self,
        h: Tensor,
        y: Tensor,
        gradient: Tensor,
        bias_gradient: Tensor | None,
        *,
        at: Parameters | None = None,
        **options: Any,
    ) -> Tensor:
        """⟨query, ∇ℓ_i⟩ of a block: [B], or [B, Q] of several queries or heads; the arguments are those of ops.head_dot."""
        weight, bias = self._parameters(h, at)
        return ops.head_dot(
            h,
            y,
            weight,
            bias,
            gradient,
            bias_gradient if self.include_bias else None,
            loss=self.loss.form,
            scale=self.loss.scale(self.last.outputs),
            backend=self.backend,
            **self.loss.form_options(),
            **options,
        )

    def norm(self, h: Tensor, y: Tensor, *, at: Parameters | None = None) -> Tensor:
        """‖∇ℓ_i‖² of a block: [B]"""
        weight, bias = self._parameters(h, at)
        return ops.head_norm(
            h,
            y,
            weight,
            bias,
            loss=self.loss.form,
            include_bias=self.include_bias,
            scale=self.loss.scale(self.last.outputs) ** 2,
            backend=self.backend,
            **self.loss.form_options(),
        )

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

    def loss_values(self, h: Tensor, y: Tensor, *, at: Parameters | None = None) -> Tensor:
        """ℓ_i of a block: [B]"""
        out = torch.empty(len(h), dtype=torch.float64 if h.dtype == torch.float64 else torch.float32, device=h.device)
        for start in range(0, len(h), ops.BLOCK_ROWS):
            rows = slice(start, start + ops.BLOCK_ROWS)
            out[rows] = self.loss.value(self.logits(h[rows], at=at), y[rows])
        return out

    def require_finite(self, argument: str, start: int, h: Tensor, values: Tensor) -> None:
        """Raise on the first row whose result is not finite, and say whether its features are the reason."""
        # One fast sum carries any NaN or infinity; only where it does (or overflows) are the rows looked at one by one.
        # On the CPU NumPy adds: torch's threads would go on spinning beside those of the next block's kernel.
        if math.isfinite(float(values.numpy().sum() if values.device.type == "cpu" else values.sum())):
            return
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        row = int((~finite).nonzero()[0, 0])
        bad = (~torch.isfinite(h[row])).nonzero()
        if len(bad):
            column = int(bad[0])
            raise NonFiniteError(
                f"{self.where}: expected finite {argument} features; got {float(h[row, column])} at row {start + row}, "
                f"column {column}. Drop or repair such rows; nothing was written."
            )
        raise NonFiniteError(
            f"{self.where}: expected finite scores; row {start + row} of {argument} gives {values[row].tolist()} although its "
            f"features are finite (largest {float(h[row].abs().max()):.3g}): the products overflow. Scale the features or pass "
            "them as float64; nothing was written."
        )


def _collect(batches: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut a stream of batches at multiples of `size` rows, in one reused buffer."""
    start = filled = 0
    features: Tensor | None = None
    labels: Tensor | None = None
    for h, y in batches:
        if features is None or labels is None:
            features, labels = h.new_empty((size, *h.shape[1:])), y.new_empty((size, *y.shape[1:]))
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
