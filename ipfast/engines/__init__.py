"""How ⟨q, ∇ℓ_i⟩ is computed without forming ∇ℓ_i."""

from .ensemble import EnsembleChoice, Member, Stack, select_ensemble
from .head import HeadEngine
from .last_layer import LastLayer, find_last_layer
from .tokens import TOKENS, Labels, TokenLabels

__all__ = [
    "TOKENS",
    "EnsembleChoice",
    "HeadEngine",
    "Labels",
    "LastLayer",
    "Member",
    "Stack",
    "TokenLabels",
    "find_last_layer",
    "select_ensemble",
]
