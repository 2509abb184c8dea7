"""What head_dot and head_norm share: the arguments of a linear head z = W h + b, their checks, and the row cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor
from ..errors import InputError, InputTypeError
from ..registry import check_choice
from . import labels as label_checks

LOSSES = ("cross_entropy", "bce_with_logits", "mse")
BLOCK_ROWS = 2048
"""Rows of one block of the reference. Work is cut at multiples of it, so the same rows always meet the same arithmetic."""
CLASS_TILE = 4096
"""Classes that the reference holds at once."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Head(NamedTuple):
    """Checked arguments, all on one device; weights in the dtype of the computation (float64 or float32)."""

    features: Tensor  # [N, d], float64, float32, float16 or bfloat16, unit stride in the last dimension
    labels: Tensor  # cross_entropy: [N] int64; otherwise targets [N, C]
    weight: Tensor  # [C, d]
    bias: Tensor | None  # [C]


def compute_dtype(features: Tensor) -> torch.dtype:
    """float64 features are computed in float64, all others in float32."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def tensor(where: str, argument: str, value: Any) -> Tensor:
    """`value` as a tensor, without a copy where it is one or a NumPy array."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return as_tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(
            f"{where}: expected {argument} to be an array of numbers; got {type(value).__name__} ({error})."
        ) from error


def matrix(where: str, argument: str, value: Any, shape: tuple[int | None, int | None]) -> Tensor:
    """`value` as a two-dimensional tensor of the given shape (None: any size)."""
    result = tensor(where, argument, value)
    wanted = [("any" if size is None else str(size)) for size in shape]
    if result.dim() != 2 or any(size not in (None, got) for size, got in zip(shape, result.shape, strict=True)):
        raise InputError(
            f"{where}: expected {argument} of shape [{', '.join(wanted)}]; got {list(result.shape)}. "
            "Check that it belongs to the same head."
        )
    return result


def vector(where: str, argument: str, value: Any, size: int) -> Tensor:
    """`value` as a one-dimensional tensor of `size` elements."""
    result = tensor(where, argument, value)
    if result.dim() != 1 or result.shape[0] != size:
        raise InputError(f"{where}: expected {argument} of shape [{size}]; got {list(result.shape)}.")
    return result


def head(where: str, features: Any, labels: Any, weight: Any, bias: Any, loss: str) -> Head:
    """Check the arguments of a head and bring them to one device and dtype."""
    check_choice(where, "loss", loss, LOSSES)
    h = matrix(where, "features", features, (None, None))
    if h.dtype not in _FLOATS:
        raise InputTypeError(f"{where}: expected floating-point features; got {h.dtype}. Convert them with .float().")
    if h.shape[1] and h.stride(1) != 1 and h.shape[1] != 1:
        h = h.contiguous()
    dtype, device = compute_dtype(h), h.device
    w = matrix(where, "weight", weight, (None, h.shape[1]))
    classes = w.shape[0]
    if classes < (2 if loss == "cross_entropy" else 1):
        raise InputError(
            f"{where}: expected a weight of at least two classes for cross_entropy; got {list(w.shape)}. "
            "A single logit is scored with loss='bce_with_logits'."
        )
    b = None if bias is None else vector(where, "bias", bias, classes).to(device, dtype).contiguous()
    y = tensor(where, "labels", labels)
    if loss == "cross_entropy":
        y = label_checks.class_labels(where, y, h.shape[0], classes).to(device).contiguous()
    else:
        y = label_checks.targets(where, y, h.shape[0], classes, loss).to(device, dtype).contiguous()
    return Head(h, y, w.to(device, dtype).contiguous(), b)


def output(where: str, h: Tensor, out: Tensor | None) -> Tensor:
    """The vector [N] that receives the result."""
    dtype = compute_dtype(h)
    if out is None:
        return torch.empty(h.shape[0], dtype=dtype, device=h.device)
    if tuple(out.shape) != (h.shape[0],) or out.dtype != dtype or out.device != h.device or not out.is_contiguous():
        raise InputError(
            f"{where}: expected out to be a contiguous {dtype} tensor of shape [{h.shape[0]}] on {h.device}; got "
            f"{out.dtype} {list(out.shape)} on {out.device}."
        )
    return out


def row_blocks(rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Cut `rows` at multiples of `size`."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """h weightᵀ + bias."""
    z = h @ weight.T
    return z if bias is None else z + bias
