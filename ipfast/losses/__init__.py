"""Per-sample losses of the last layer: one file a loss, found by name."""

from __future__ import annotations

from ..errors import InputTypeError
from .base import Loss, loss_name
from .bce_with_logits import BCEWithLogits
from .cross_entropy import CrossEntropy
from .mse import MSE
from .registry import LOSSES


def get_loss(where: str, loss: str | Loss) -> Loss:
    """The loss called `loss`, or the object itself."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise InputTypeError(
            f"{where}: expected loss to be a name ({', '.join(LOSSES)}) or an object of ipfast.losses; "
            f"got {type(loss).__name__}. A function (model, batch) -> [B] goes with params='all' or patterns of names."
        )
    return LOSSES.get(where, loss)()


__all__ = ["LOSSES", "MSE", "BCEWithLogits", "CrossEntropy", "Loss", "get_loss", "loss_name"]
