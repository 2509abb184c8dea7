"""What a loss must tell: its value, its residual, and which form of head_dot computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor


class Loss(ABC):
    """Loss of ONE sample as a function of its logits, without a batch reduction.

    A subclass names the form in which `ipfast.ops` computes it (`form`) and the factor between the two (`scale`).
    """

    form: ClassVar[str]

    def scale(self, outputs: int) -> float:
        """ℓ_i divided by the loss that ipfast.ops calls `form`."""
        return 1.0

    @abstractmethod
    def prepare(self, where: str, labels: Tensor, rows: int, outputs: int) -> Tensor:
        """Check labels of `rows` samples and bring them to the shape and dtype that value and residual use."""

    @abstractmethod
    def value(self, z: Tensor, labels: Tensor) -> Tensor:
        """ℓ_i of logits [B, C] and prepared labels: [B]."""

    @abstractmethod
    def residual(self, z: Tensor, labels: Tensor) -> Tensor:
        """∂ℓ_i/∂z_i of logits [B, C] and prepared labels: [B, C], without cancellation for confident samples."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(self.__dict__.items()))))

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, to write the loss to a file."""
        return dict(self.__dict__)
