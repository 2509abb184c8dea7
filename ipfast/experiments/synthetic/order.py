"""Table 3: in which regions of the plane the inner product orders two gradients as influence does.

Unit gradients at angle τ have inner product cos τ with v_I and influence cos(τ − φ), where v_H = H⁻¹ v_I lies at angle φ.

    III (0, φ)         both positive, order reversed         I  (π, π + φ)    both negative, order reversed
    II  (φ, π)         same order                            IV (π + φ, 2π)   same order

Without the regions: a pair is discordant when d = g_i − g_j lies in the double wedge (d·v_I)(d·v_H) < 0, so that isotropic
differences of any dimension are with probability φ/π.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np

REGIONS = ("I", "II", "III", "IV")
PAPER = {
    ("I", "I"): "not hold",
    ("I", "II"): "partially",
    ("I", "III"): "hold",
    ("I", "IV"): "partially",
    ("II", "II"): "hold",
    ("II", "III"): "partially",
    ("II", "IV"): "partially",
    ("III", "III"): "not hold",
    ("III", "IV"): "partially",
    ("IV", "IV"): "hold",
}
ANGLES = (20, 40, 60)
DIMENSIONS = (2, 50)
DRAWS = 200_000


def region(angle: np.ndarray, phi: float) -> np.ndarray:
    """Which of REGIONS each angle lies in, by number."""
    edges = np.array([phi, np.pi, np.pi + phi])
    return np.asarray(np.array([2, 1, 0, 3])[np.digitize(np.mod(angle, 2 * np.pi), edges)])


def simulate(degrees: float, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """Shares by pair of regions that keep their order, and of discordant pairs of isotropic gradients by dimension."""
    phi = np.deg2rad(degrees)
    random = np.random.default_rng(seed)
    starts, ends = np.array([np.pi, phi, 0, np.pi + phi]), np.array([np.pi + phi, np.pi, phi, 2 * np.pi])
    found: dict[str, Any] = {"expected": degrees / 180}
    for one, other in combinations_with_replacement(range(4), 2):
        angles = [random.uniform(starts[place], ends[place], draws) for place in (one, other)]
        product, influence = ([np.cos(angle - turn) for angle in angles] for turn in (0.0, phi))
        same = (product[0] - product[1]) * (influence[0] - influence[1]) > 0
        recognised = np.ones(draws, dtype=bool)  # of both samples, both scores say alike that they help or hurt
        for p, i in zip(product, influence, strict=True):
            recognised &= p * i > 0
        name = f"{REGIONS[one]}, {REGIONS[other]}"
        found[name] = float(same.mean())
        found[f"{name} missed"] = float((~same & ~recognised).mean())
    for dimension in DIMENSIONS:
        g = random.standard_normal((2, draws, dimension))
        direction = np.zeros(dimension)
        direction[:2] = np.cos(phi), np.sin(phi)
        along_v, along_h = g[:, :, 0], g @ direction
        found[f"discordant in {dimension}"] = float(((along_v[0] - along_v[1]) * (along_h[0] - along_h[1]) < 0).mean())
        found[f"signs differ in {dimension}"] = float((along_v[0] * along_h[0] < 0).mean())
    return found
