"""No curvature: the Hessian-free influence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """H⁻¹ = I: the query is the gradient of the impact itself, and the self-influence is ‖g_i‖²."""
