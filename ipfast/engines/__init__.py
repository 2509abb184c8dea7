"""How ⟨q, ∇ℓ_i⟩ is computed without forming ∇ℓ_i."""

from .ensemble import EnsembleChoice, Member, Stack, select_ensemble
from .head import HeadEngine
from .last_layer import LastLayer, find_last_layer

__all__ = ["EnsembleChoice", "HeadEngine", "LastLayer", "Member", "Stack", "find_last_layer", "select_ensemble"]
