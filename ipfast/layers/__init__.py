"""What the ghost engine knows of a type of layer: its part of a score, and of a gradient's norm. One file a type."""

from . import convolution, embedding, linear, normalization
from .base import RULES, Kept, LayerRule, layer_rule, wide
from .shared import Shared, can_share, shared_norm_sq

__all__ = [
    "RULES",
    "Kept",
    "LayerRule",
    "Shared",
    "can_share",
    "convolution",
    "embedding",
    "layer_rule",
    "linear",
    "normalization",
    "shared_norm_sq",
    "wide",
]
