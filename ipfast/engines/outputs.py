"""Batches on their way into a model, and the logits in what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import as_tensor, whole_as_int64
from ..errors import InputError, InputTypeError
from .trace import tensors_in


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, tuple or mapping of tensors on `device`; anything else as it is."""
    if isinstance(value, Tensor):
        # Tensors made in inference mode take no part in derivatives.
        return (value.clone() if value.is_inference() else value).to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(moved(item, device) for item in value)
    return value


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with which a model is called on a batch."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


@contextmanager
def dtypes_explained(where: str, model: nn.Module, inputs: Any) -> Iterator[None]:
    """What a model raises for numbers of another dtype than its own, such as float64 or uint8, with what to do about it."""
    try:
        yield
    except RuntimeError as error:
        own = {value.dtype for value in model.parameters() if value.dtype.is_floating_point}
        given = {value.dtype for value in tensors_in(inputs)}
        if "type" not in str(error) or len(own) != 1 or given <= own:
            raise
        expected, got = (", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in kinds)) for kinds in (own, given))
        raise InputTypeError(
            f"{where}: expected inputs for a model whose parameters are {expected}; for {got} it raised: "
            f"{str(error).splitlines()[0].rstrip('.')}. Convert the inputs to {expected}."
        ) from error


def logits_in(output: Any) -> Tensor | None:
    """The logits in what a model returns: a tensor, an object or mapping with `logits`, or a tuple that starts with them."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def logits_of_output(where: str, model: nn.Module, output: Any) -> Tensor:
    """The logits in what a model returns, or an error."""
    z = logits_in(output)
    if z is None:
        raise InputError(
            f"{where}: expected the model to return logits, an object with .logits, or a tuple that starts with them; "
            f"{type(model).__name__} returned a {type(output).__name__}. Pass a loss (model, batch) -> [B] instead."
        )
    return z[:, None] if z.dim() == 1 else z


def label_tensor(where: str, labels: Any) -> Tensor:
    """Labels as numbers, whole ones as int64, or an error."""
    try:
        labels = as_tensor(labels) if isinstance(labels, np.ndarray) else labels
        return whole_as_int64(labels if isinstance(labels, Tensor) else torch.as_tensor(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where}: expected labels as numbers; got {getattr(labels, 'dtype', type(labels).__name__)}. "
            "Encode class names as integers 0..C-1."
        ) from error


def samples(inputs: Any) -> int | None:
    """B of a batch; None where nothing in it has rows."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.dim() else None
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    return next((rows for rows in map(samples, parts) if rows is not None), None)


def rows_of(value: Any, rows: slice | Tensor, count: int) -> Any:
    """Some of the samples of a batch of `count`; what does not have `count` rows belongs to all of them."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: rows_of(item, rows, count) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(rows_of(item, rows, count) for item in value)
    return value
