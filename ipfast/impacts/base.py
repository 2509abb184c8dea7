"""What an impact must tell: its gradient with respect to the validation logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..losses import Loss


@dataclass(frozen=True)
class Samples:
    """Which samples of V some rows of logits are.

    Attributes:
        rows: [B] their numbers; with pairs those of the samples, and then those of their counterparts.
        of: the name of their validation set, where there are several.
    """

    rows: Tensor
    of: str | None = None


class Impact(ABC):
    """f(θ; V), a function that one wants to be low.

    At the last layer its gradient is G = Z̄ᵀH_v, G_b = Z̄ᵀ1 with the cotangent Z̄ = ∂f/∂z [M, C].
    """

    name: ClassVar[str]
    additive: ClassVar[bool]
    """Whether f is a mean over V of terms that each depend on one sample: then V is streamed once."""
    by_sample: ClassVar[bool] = False
    """Whether f knows which samples of V its logits are of, so that those of tokens mean nothing to it."""
    attacks: ClassVar[bool] = False
    """Whether f is taken at features that `attacked` moves."""
    pairs: Any = None
    """The counterpart of each sample of V, whose logits then follow those of V; None: there are none."""

    @abstractmethod
    def cotangent(self, z: Tensor, labels: Tensor, loss: Loss, samples: Samples | None = None) -> Tensor:
        """Z̄ [B, C] in float64: of each sample's own term if additive (the mean is taken outside), else of f over V.

        Args:
            z, labels: [B, C] in float64, and the labels as the loss takes them.
            samples: which of V they are; None: not known, or tokens.
        """

    def attacked(self, h: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """Features [B, d] that f is taken at in place of h, whose logits are z [B, C] = h Wᵀ + b: by default h."""
        return h

    def check_samples(self, where: str, names: Sequence[str] | None, counts: Sequence[int | None]) -> None:  # noqa: B027
        """Refuse data of the impact that does not belong to validation sets of these lengths; None: not known yet."""

    def check_outputs(self, where: str, outputs: int, loss: Loss) -> None:  # noqa: B027 (utility is of any)
        """Refuse a loss, or a number of outputs, that f is not defined for."""

    def options(self) -> dict[str, Any]:
        """What the impact was made with, beside its data, for `stats`."""
        return {}
