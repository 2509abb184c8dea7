"""Forward-mode rules for the functions that networks spend their time in, one file a family."""

from . import activations, attention, convolution, embedding, linear, normalization, weight_norm
from .base import RULES, TangentRules, dual, parts

__all__ = [
    "RULES",
    "TangentRules",
    "activations",
    "attention",
    "convolution",
    "dual",
    "embedding",
    "linear",
    "normalization",
    "parts",
    "weight_norm",
]
