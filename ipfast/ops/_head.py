"""What head_dot and head_norm share: the arguments of a linear head z = W h + b, their checks, and the row cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor, check_precision, require_narrow
from ..errors import InputError, InputTypeError
from ..registry import check_choice
from ._residual import Residual, residual

LOSSES = ("cross_entropy", "bce_with_logits", "mse")
BLOCK_ROWS = 2048
"""Rows of one block of the reference. Work is cut at multiples of it, so the same rows always meet the same arithmetic."""
CLASS_TILE = 4096
"""Classes that the reference holds at once."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Head(NamedTuple):
    """Checked arguments, all on one device; weights in the dtype of the computation (float64 or float32)."""

    features: Tensor  # [N, d], float64, float32, float16 or bfloat16, unit stride in the last dimension
    weight: Tensor  # [L, C, d]
    bias: Tensor | None  # [L, C]
    residual: Residual
    precision: str | None = None  # "bf16": features are still to be rounded, weights are not

    @property
    def classes(self) -> int:
        return self.weight.shape[1]

    def block(self, rows: slice) -> Tensor:
        """Features [B, d] as the computation takes them."""
        h = self.features[rows]
        return (rounded(h) if self.precision == "bf16" else h).to(compute_dtype(h))


def compute_dtype(features: Tensor) -> torch.dtype:
    """float64 features are computed in float64, all others in float32."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def rounded(value: Tensor) -> Tensor:
    """The nearest numbers that bfloat16 holds, in float32."""
    return value.to(torch.bfloat16).to(torch.float32)


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


def factor(where: str, argument: str, value: Any) -> float:
    """`value` as a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputTypeError(f"{where}: expected {argument} to be a number; got {type(value).__name__}.")
    return float(value)


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


def head(
    where: str,
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    *,
    loss: str,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    precision: str | None = None,
) -> Head:
    """Check the arguments of a head and bring them to one device and dtype; [C, d] becomes [1, C, d]."""
    check_choice(where, "loss", loss, LOSSES)
    check_precision(where, precision)
    h = matrix(where, "features", features, (None, None))
    if h.dtype not in _FLOATS:
        raise InputTypeError(f"{where}: expected floating-point features; got {h.dtype}. Convert them with .float().")
    require_narrow(where, precision, h.dtype)
    if h.shape[1] and h.stride(1) != 1 and h.shape[1] != 1:
        h = h.contiguous()
    w = stacked(where, "weight", weight, None, h.shape[1], h)
    classes = w.shape[1]
    if classes < (2 if loss == "cross_entropy" else 1):
        raise InputError(
            f"{where}: expected a weight of at least two classes for cross_entropy; got {list(w.shape[1:])}. "
            "A single logit is scored with loss='bce_with_logits'."
        )
    b = stacked_vectors(where, "bias", bias, w)
    form = residual(
        where,
        tensor(where, "labels", labels),
        h.shape[0],
        classes,
        loss=loss,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        pos_weight=pos_weight,
        ignore_index=ignore_index,
        like=w,
    )
    return Head(h, w, b, form, precision)


def stacked(where: str, argument: str, value: Any, classes: int | None, width: int, h: Tensor) -> Tensor:
    """`value` [C, d] or [K, C, d] as a contiguous tensor [K, C, d] on the device and in the dtype of the computation."""
    result = tensor(where, argument, value)
    wanted = f"{'C' if classes is None else classes}, {width}"
    if result.dim() not in (2, 3) or result.shape[-1] != width or (classes is not None and result.shape[-2] != classes):
        raise InputError(
            f"{where}: expected {argument} of shape [{wanted}] or [K, {wanted}]; got {list(result.shape)}. "
            "Check that it belongs to the same head."
        )
    if not width:
        raise InputError(f"{where}: expected at least one feature a row; got d = 0. Check what was selected.")
    if result.dim() == 3 and result.shape[0] == 0:
        raise InputError(f"{where}: expected at least one matrix in {argument}; got {list(result.shape)}.")
    return result.to(h.device, compute_dtype(h)).reshape(-1, *result.shape[-2:]).contiguous()


def stacked_vectors(where: str, argument: str, value: Any, matrices: Tensor) -> Tensor | None:
    """`value` [C] or [K, C] as a contiguous tensor [K, C] beside `matrices` [K, C, d]."""
    if value is None:
        return None
    result = tensor(where, argument, value)
    count, classes = matrices.shape[:2]
    if count == 1 and result.dim() == 2 and argument == "bias":
        count = result.shape[0]  # one weight may have a bias for each query
    if result.dim() == 1 and result.shape[0] == classes:
        result = result.expand(count, classes)
    if tuple(result.shape) != (count, classes):
        raise InputError(
            f"{where}: expected {argument} of shape [{classes}]{f' or [{count}, {classes}]' if count > 1 else ''}; got "
            f"{list(result.shape)}."
        )
    return result.to(matrices).contiguous()


def output(where: str, h: Tensor, out: Tensor | None, *more: int) -> Tensor:
    """The array [N, *more] that receives the result."""
    dtype, shape = compute_dtype(h), (h.shape[0], *more)
    if out is None:
        return torch.empty(shape, dtype=dtype, device=h.device)
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != h.device or not out.is_contiguous():
        raise InputError(
            f"{where}: expected out to be a contiguous {dtype} tensor of shape {list(shape)} on {h.device}; got "
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
