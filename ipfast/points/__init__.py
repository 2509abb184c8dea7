"""At which parameters gradients are taken, and with which weights."""

from .base import Mask, Point, Points, State, Trainable
from .checkpoints import Checkpoints
from .dropout import Dropout
from .extra_sgd import ExtraSGD
from .final import Final
from .masking import Masked
from .segments import Segments

__all__ = ["Checkpoints", "Dropout", "ExtraSGD", "Final", "Mask", "Masked", "Point", "Points", "Segments", "State", "Trainable"]
