"""The options of the losses, brought to the form in which every backend takes them.

cross_entropy with targets t (one-hot, smoothed, weighted or soft) has the residual r = a p − t with a = Σ_c t_c. With y the
label, or the largest target, s = a Σ_c p_c (u_c − u_y) − Σ_c t_c (u_c − u_y): both sums are over c ≠ y, so nothing cancels for
a confident sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor, whole_as_int64
from ..errors import InputError, InputTypeError
from . import labels as label_checks


@dataclass(frozen=True)
class Residual:
    """What the residual of each row needs, on the device and in the dtype of the computation.

    Attributes:
        loss: "cross_entropy", "bce_with_logits" or "mse".
        labels: cross_entropy: y [N] int64, the class in whose products the others are centred; otherwise targets [N, C].
        row_factor: a [N]; None: one.
        class_target: t [C], the same for every row, of the classes c ≠ y; None: zero.
        targets: t [N, C], soft targets; None: none. Never together with class_target.
        pos_weight: π [C] of bce_with_logits; None: one.
        output_weight: [C] factors of the residual of an elementwise loss; None: one.
        ignored: [N] bool, rows whose loss is zero by definition; None: no row.
    """

    loss: str
    labels: Tensor
    row_factor: Tensor | None = None
    class_target: Tensor | None = None
    targets: Tensor | None = None
    pos_weight: Tensor | None = None
    output_weight: Tensor | None = None
    ignored: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> Residual:
        """The same for some of the rows."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return Residual(
            self.loss,
            self.labels[rows],
            cut(self.row_factor),
            self.class_target,
            cut(self.targets),
            self.pos_weight,
            self.output_weight,
            cut(self.ignored),
        )


def residual(
    where: str,
    labels: Tensor,
    rows: int,
    classes: int,
    *,
    loss: str,
    class_weight: Any,
    label_smoothing: float,
    pos_weight: Any,
    ignore_index: int | None,
    like: Tensor,
) -> Residual:
    """Check labels and the options of a loss; `like` has the device and the dtype of the computation."""

    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise InputTypeError(f"{where}: expected label_smoothing to be a number; got {type(label_smoothing).__name__}.")
    if ignore_index is not None and not hasattr(ignore_index, "__index__"):
        raise InputTypeError(f"{where}: expected ignore_index to be a whole number; got {type(ignore_index).__name__}.")

    def vector(argument: str, value: Any) -> Tensor | None:
        return None if value is None else _class_vector(where, argument, value, classes).to(like).contiguous()

    weight, positive = vector("class_weight", class_weight), vector("pos_weight", pos_weight)
    if loss != "cross_entropy":
        if label_smoothing or ignore_index is not None:
            raise InputError(
                f"{where}: expected label_smoothing and ignore_index with loss='cross_entropy' only; got them with {loss!r}. "
                "Leave them out."
            )
        if positive is not None and loss != "bce_with_logits":
            raise InputError(
                f"{where}: expected pos_weight with loss='bce_with_logits' only; got it with {loss!r}. Leave it out."
            )
        y = label_checks.targets(where, labels, rows, classes, loss).to(like).contiguous()
        return Residual(loss, y, pos_weight=positive, output_weight=weight)
    if positive is not None:
        raise InputError(
            f"{where}: expected pos_weight with loss='bce_with_logits' only; got it with cross_entropy. Leave it out."
        )
    if not 0 <= label_smoothing <= 1:
        raise InputError(
            f"{where}: expected label_smoothing between 0 and 1, as a share of the target; got {label_smoothing:g}."
        )
    if labels.dtype.is_floating_point:
        if ignore_index is not None:
            raise InputError(f"{where}: expected integer labels with ignore_index; got soft targets. Leave ignore_index out.")
        t = label_checks.soft_targets(where, labels, rows, classes).to(like)
        if label_smoothing:
            t = (1 - label_smoothing) * t + label_smoothing / classes
        if weight is not None:
            t = t * weight
        return Residual(loss, t.argmax(dim=1).contiguous(), row_factor=t.sum(dim=1), targets=t.contiguous())
    ignored = None
    if ignore_index is not None:
        labels = whole_as_int64(labels)
        ignored = labels == ignore_index
        labels = labels.masked_fill(ignored, 0)
        ignored = ignored.to(like.device)
    y = label_checks.class_labels(where, labels, rows, classes).to(like.device).contiguous()
    if weight is None and not label_smoothing:
        return Residual(loss, y, ignored=ignored)
    every = torch.ones(classes, dtype=like.dtype, device=like.device) if weight is None else weight
    shared = label_smoothing / classes * every if label_smoothing else None
    factor = (1 - label_smoothing) * every + (0 if shared is None else shared.sum())
    return Residual(loss, y, row_factor=factor[y].contiguous(), class_target=shared, ignored=ignored)


def _class_vector(where: str, argument: str, value: Any, classes: int) -> Tensor:
    try:
        result = (as_tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{where}: expected {argument} to be numbers, one a class; got {type(value).__name__}.") from error
    if result.dtype.is_complex:
        raise InputTypeError(f"{where}: expected {argument} to be real numbers, one a class; got {result.dtype}.")
    if tuple(result.shape) != (classes,):
        raise InputError(f"{where}: expected {argument} of shape [{classes}], one a class; got {list(result.shape)}.")
    if not bool((torch.isfinite(result) & (result >= 0)).all()):
        raise InputError(f"{where}: expected {argument} to be finite and not negative; got {result.tolist()[:10]}.")
    return result
