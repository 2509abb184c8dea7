"""What labels an operation accepts, and the errors that say what is wrong with others."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError


def class_labels(where: str, value: Tensor, rows: int, classes: int) -> Tensor:
    """Hard labels [N] as int64, each in 0..C-1."""
    if value.dim() != 1 or value.shape[0] != rows:
        raise InputError(f"{where}: expected labels of shape [{rows}], one class a row of features; got {list(value.shape)}.")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise InputTypeError(
            f"{where}: expected integer labels for cross_entropy; got {value.dtype}. Convert them with .long() if they "
            "are class numbers; soft targets have shape [N, C]."
        )
    value = value.long()
    if rows:
        low, high = _bounds(value)
        if low < 0 or high >= classes:
            bad = low if low < 0 else high
            row = int((value == bad).nonzero()[0])
            hint = " Are the labels one-based?" if low == 1 and high == classes else ""
            raise InputError(
                f"{where}: expected labels in 0..{classes - 1} for {classes} classes; got {bad} at row {row}.{hint} "
                "Correct or drop such rows."
            )
    return value


def soft_targets(where: str, value: Tensor, rows: int, classes: int) -> Tensor:
    """Soft targets [N, C] of cross_entropy: finite and not negative; they need not sum to one."""
    if tuple(value.shape) != (rows, classes):
        raise InputTypeError(
            f"{where}: expected integer labels [{rows}] or soft targets [{rows}, {classes}] for cross_entropy; got "
            f"{value.dtype} {list(value.shape)}. Convert class numbers with .long()."
        )
    good = (torch.isfinite(value) & (value >= 0)).all(dim=1)
    if not bool(good.all()):
        raise InputError(
            f"{where}: expected soft targets that are finite and not negative; row {int((~good).nonzero()[0])} is not. "
            "Correct or drop it."
        )
    return value


def _bounds(value: Tensor) -> tuple[int, int]:
    """(smallest, largest) of integers. On the CPU NumPy looks: torch's threads would go on spinning beside the kernel's."""
    if value.device.type == "cpu":
        array = value.numpy()
        return int(array.min()), int(array.max())
    low, high = torch.aminmax(value)
    return int(low), int(high)


def targets(where: str, value: Tensor, rows: int, outputs: int, loss: str) -> Tensor:
    """Targets [N, C] of an elementwise loss; [N] is taken for C = 1."""
    if value.dim() == 1 and outputs == 1:
        value = value[:, None]
    if value.dim() != 2 or tuple(value.shape) != (rows, outputs):
        raise InputError(
            f"{where}: expected labels of shape [{rows}, {outputs}], the targets of {loss}; got {list(value.shape)}."
        )
    if loss == "bce_with_logits" and rows:
        low, high = (float(bound) for bound in torch.aminmax(value.to(torch.float64)))
        if not (low >= 0 and high <= 1):
            bad = ~((value >= 0) & (value <= 1)).all(dim=1)
            raise InputError(
                f"{where}: expected labels between 0 and 1 for bce_with_logits; got {low:g}..{high:g}, first at row "
                f"{int(bad.nonzero()[0])}. Map them to 0 and 1."
            )
    if loss == "mse" and rows and value.dtype.is_floating_point:
        finite = torch.isfinite(value).all(dim=1)
        if not bool(finite.all()):
            raise InputError(
                f"{where}: expected finite labels for mse; got NaN or infinity at row {int((~finite).nonzero()[0])}."
            )
    return value
