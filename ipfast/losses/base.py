"""What a loss must tell: its value, its residual, its curvature, and which form of head_dot computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor
from ..errors import InputError, InputTypeError


class Loss(ABC):
    """Loss of ONE sample as a function of its logits, without a batch reduction.

    A subclass names the form in which `ipfast.ops` computes it (`form`), the arguments that the form takes (`form_options`) and
    the factor between the two (`scale`). Its attributes are the constructor's arguments, hashable and writable as JSON.
    """

    form: ClassVar[str]

    def scale(self, outputs: int) -> float:
        """ℓ_i divided by the loss that ipfast.ops calls `form`."""
        return 1.0

    def form_options(self) -> dict[str, Any]:
        """The keyword arguments beside `loss` with which ops.head_dot and ops.head_norm compute this loss."""
        return {}

    @abstractmethod
    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        """Check labels of `rows` samples and bring them to the shape and dtype that value and residual use."""

    @abstractmethod
    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        """ℓ_i of logits [B, C] and prepared labels: [B]."""

    @abstractmethod
    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        """∂ℓ_i/∂z_i of logits [B, C] and prepared labels: [B, C], without cancellation for confident samples."""

    @abstractmethod
    def hessian(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """∂²ℓ_i/∂z_i² = diag(D_i) − v_i v_iᵀ of logits [B, C] and prepared labels: (D [B, C], v [B, C], or None where it is
        diagonal)."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(self.__dict__.items()))))

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, to write the loss to a file."""
        return dict(self.__dict__)


def loss_name(loss: Any) -> str:
    """What tells a loss from others in a file: its class and arguments, or the name of a function of the user's own."""
    if isinstance(loss, Loss):
        return f"{type(loss).__name__}({', '.join(f'{name}={value!r}' for name, value in sorted(loss.options().items()))})"
    return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__qualname__)}"


def class_vector(where: str, argument: str, value: Any) -> tuple[float, ...] | None:
    """Factors [C], one a class, from a tensor, an array or a list, as a tuple of floats."""
    if value is None:
        return None
    try:
        value = as_tensor(value) if isinstance(value, np.ndarray) else value
        vector = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(
            f"{where}: expected {argument} to be numbers, one a class; got {type(value).__name__}. Pass a list or a tensor [C]."
        ) from error
    if vector.dim() != 1 or len(vector) == 0:
        raise InputError(f"{where}: expected {argument} of shape [C], one number a class; got {list(vector.shape)}.")
    bad = ~(torch.isfinite(vector) & (vector >= 0))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InputError(
            f"{where}: expected {argument} to be finite and not negative; got {float(vector[first]):g} for class {first}."
        )
    return tuple(vector.tolist())


def check_length(where: str, argument: str, vector: tuple[float, ...] | None, outputs: int) -> None:
    """Refuse factors for another number of classes than the head has outputs."""
    if vector is not None and len(vector) != outputs:
        raise InputError(
            f"{where}: expected {argument} of the loss to hold {outputs} numbers, one for each output of the head; got "
            f"{len(vector)}. Check that loss and model belong together."
        )


def like(vector: tuple[float, ...], z: Tensor) -> Tensor:
    """Factors as a tensor [C] on the device and in the dtype of z."""
    return torch.tensor(vector, dtype=z.dtype, device=z.device)


def as_argument(vector: tuple[float, ...] | None) -> Tensor | None:
    """Factors as ops take them; the operation rounds them to its own dtype."""
    return None if vector is None else torch.tensor(vector, dtype=torch.float64)
