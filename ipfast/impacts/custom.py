"""Any differentiable function of the validation logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import Loss
from .base import Impact, Samples


class Custom(Impact):
    """f(logits [M, C] in float64, labels [M]) -> scalar, differentiable in the logits, lower is better."""

    name = "custom"
    additive = False

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            logits = z.clone().requires_grad_()
            value = self._called(logits.clone(), labels.clone())  # which may be changed in place
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"query: expected impact to return one number, f(logits, labels) -> scalar; got {got}. "
                    "Take the mean over the validation samples."
                )
            if value.is_complex():
                raise InputError(
                    f"query: expected impact to return a real number, f(logits, labels) -> scalar; got {value.dtype}. Take its "
                    "real part or its absolute value."
                )
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.reshape(()), logits, allow_unused=True)
            if gradient is None:
                raise InputError(
                    "query: expected impact to be differentiable in the logits; its value does not depend on them through "
                    "torch operations. Avoid argmax, .item() and .detach()."
                )
        return gradient

    def _called(self, logits: Tensor, labels: Tensor) -> Tensor:
        try:
            return self.function(logits, labels)
        except RuntimeError as error:
            if "type" not in str(error):
                raise
            raise InputError(
                f"query: expected impact to take logits in float64; it raised: {str(error).splitlines()[0].rstrip('.')}. "
                "Convert its own tensors, such as weights of classes, with .to(logits)."
            ) from error
