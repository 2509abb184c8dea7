"""Which engine computes the scores of a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..registry import check_choice

ENGINES = ("auto", "head", "forward", "ghost", "explicit")
PARTS = ("layer", "token")
"""What a score can be the sum of."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason for it."""

    name: str
    reason: str


@dataclass(frozen=True)
class LayerShape:
    """A layer as a product: T positions a sample, from `inputs` numbers to `outputs` numbers each."""

    positions: int
    inputs: int
    outputs: int


def select_engine(
    engine: str = "auto",
    *,
    params: str | Sequence[str] = "all",
    queries: int = 1,
    target: str = "val",
    layers: Sequence[LayerShape] = (),
    forward_derivative: bool = True,
    by: str | None = None,
) -> EngineChoice:
    """Choose how gradient inner products are computed, and say why.

    In products of a layer's size, of which inference takes one, Q queries cost

        forward    1 + 2Q                            no backward, nothing stored
        ghost      2 + min(Q, 1 + Q/T) a layer       one forward, one backward to the layers' outputs

    Args:
        engine: "auto", or the name of an engine, which is then used or refused but never replaced.
        params: what is scored; "last" is the head engine's.
        queries: Q. target: "val", or "self" for ‖∇ℓ_i‖², which has no directional derivative.
        layers: shapes of the scored layers, where they are known; otherwise T is taken as large.
        forward_derivative: whether every function of the network has one.
        by: "layer" or "token" asks for the parts of a score beside it, which only ghost gives; None: the scores alone.

    Returns:
        The chosen name ("head", "forward", "ghost" or "explicit") and the reason.

    >>> select_engine(queries=1).name, select_engine(queries=8).name, select_engine(target="self").name
    ('forward', 'ghost', 'ghost')
    """
    check_choice("select_engine", "engine", engine, ENGINES)
    check_choice("select_engine", "target", target, ("val", "self"))
    if by is not None:
        check_choice("select_engine", "by", by, PARTS)
        if engine not in ("auto", "ghost") or params == "last":
            given = "params='last'" if params == "last" else f"engine={engine!r}"
            raise InputError(
                f"select_engine: expected engine='ghost' over a network with by={by!r}, which no other gives; got {given}. "
                "Leave by out."
            )
    if engine != "auto":
        return EngineChoice(engine, "asked for by name")
    if params == "last":
        return EngineChoice("head", "params='last': the head engine is exact and reads the features once")
    if by is not None:
        return EngineChoice("ghost", f"by={by!r}: it takes a score {by} by {by}")
    if target == "self":
        return EngineChoice("ghost", "self-influence needs each sample's own gradient")
    if not forward_derivative:
        return EngineChoice("ghost", "a function of the network has no forward derivative")
    total = sum(layer.positions * layer.inputs * layer.outputs for layer in layers)
    direct = sum(
        layer.positions * layer.inputs * layer.outputs * min(queries, 1 + queries / layer.positions) for layer in layers
    )
    forward, ghost = 1 + 2 * queries, 2 + (direct / total if total else min(queries, 2))
    about = f"{forward} products a layer against {ghost:.3g}, at {queries} {'query' if queries == 1 else 'queries'}"
    # At equal cost the forward engine, which stores no activations.
    return EngineChoice("ghost" if ghost < forward else "forward", about)
