"""At which parameters gradients are taken, and with which weights."""

from .final import Final, Point

__all__ = ["Final", "Point"]
