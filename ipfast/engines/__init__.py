"""How ⟨q, ∇ℓ_i⟩ is computed without forming ∇ℓ_i."""

from .head import HeadEngine
from .last_layer import LastLayer, find_last_layer

__all__ = ["HeadEngine", "LastLayer", "find_last_layer"]
