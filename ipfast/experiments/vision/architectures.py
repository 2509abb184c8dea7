"""ViT and MLP-Mixer: what is trained on which images, and how (Table 6)."""

from __future__ import annotations

from typing import Any

from .problem import ANIMAL
from .training import Recipe

ARCHITECTURE_LEVELS = ("aggregate", "cifar100", ANIMAL)


def _adamw(network: str, rate: float, *, epochs: int, batch_size: int, shift: int) -> Recipe:
    unused: dict[str, Any] = {"nesterov": False, "momentum": 0.0}
    fixed: dict[str, Any] = {"schedule": "one-cycle", "weight_decay": 0.05, "optimizer": "adamw", **unused}
    return Recipe(network, epochs=epochs, batch_size=batch_size, rate=rate, shift=shift, **fixed)


ARCHITECTURES: dict[str, dict[str, Recipe]] = {
    "small": {
        f"{name} {level}": _adamw(f"{name}-4x128", 1e-3, epochs=10, batch_size=256, shift=2)
        for name in ("vit", "mixer")
        for level in ARCHITECTURE_LEVELS
    },
    "paper": {
        f"{name} {level}": _adamw(f"{name}-6x512", rate, epochs=400 if level == ANIMAL else 100, batch_size=512, shift=4)
        for name, rate in (("vit", 1e-4), ("mixer", 1e-3))
        for level in ARCHITECTURE_LEVELS
    },
}
"""Scale -> setting -> recipe. The paper says batch size and epochs; the sizes, rates, schedule and weight decay are ours."""
