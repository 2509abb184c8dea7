"""What the ghost engine knows of a type of layer: its part of a score, and of a gradient's norm. One file a type."""

from . import convolution, embedding, linear, normalization
from .base import RULES, Kept, LayerRule, MatrixRule, VectorRule, layer_rule, wide
from .embedding import EmbeddingRule

__all__ = [
    "RULES",
    "EmbeddingRule",
    "Kept",
    "LayerRule",
    "MatrixRule",
    "VectorRule",
    "convolution",
    "embedding",
    "layer_rule",
    "linear",
    "normalization",
    "wide",
]
