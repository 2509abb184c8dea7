"""What the engines know of a type of layer: how derivatives pass through it, and its part of a score."""

from .tangents import TangentRules

__all__ = ["TangentRules"]
