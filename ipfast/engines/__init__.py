"""How ⟨q, ∇ℓ_i⟩ is computed without forming ∇ℓ_i."""

from .ensemble import EnsembleChoice, Member, Stack, select_ensemble
from .head import HeadEngine
from .last_layer import LastLayer, find_last_layer
from .network import SampleLoss
from .selection import ENGINES, PARTS, EngineChoice, LayerShape, select_engine
from .tokens import TOKENS, Labels, TokenLabels

__all__ = [
    "ENGINES",
    "PARTS",
    "TOKENS",
    "EngineChoice",
    "EnsembleChoice",
    "HeadEngine",
    "Labels",
    "LastLayer",
    "LayerShape",
    "Member",
    "SampleLoss",
    "Stack",
    "TokenLabels",
    "find_last_layer",
    "select_engine",
    "select_ensemble",
]
