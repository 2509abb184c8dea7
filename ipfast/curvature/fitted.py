"""Factors that are there already: kept in a file, and met by another query."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.archives import opened_archive
from ..data.writers import check_output, written_whole
from ..errors import InputError
from .arnoldi import Arnoldi, ArnoldiFactors
from .base import Curvature, StoredFactors
from .ekfac import EKFAC, EKFACFactors
from .exact import CholeskyFactors, EigenFactors, Exact
from .source import Source

FACTORS: dict[str, type[StoredFactors]] = {
    kind.kind: kind for kind in (CholeskyFactors, EigenFactors, ArnoldiFactors, EKFACFactors)
}
CURVATURES: dict[str, type[Curvature]] = {kind.__name__: kind for kind in (Exact, EKFAC, Arnoldi, Source)}


@dataclass(frozen=True)
class Kept:
    """Factors at a point, or of a segment of points, as tensors."""

    kind: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    stats: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Fitted(Curvature):
    """A curvature that has seen the training data, made by `ipfast.fit`. In place of a method it stands for
    `Method(curvature=fitted)`; with other points or target write that out. A query needs no train then, and a score reads the
    training data once, for the scores.

    Attributes:
        curvature: what was fitted.
        kept: the factors by the parameters that they were fitted at.
    """

    curvature: Curvature
    kept: Mapping[str, Kept]

    @property
    def original(self) -> Curvature:
        return self.curvature

    def at(self, where: str, key: str, device: torch.device) -> StoredFactors:
        """The factors at the parameters with this fingerprint."""
        kept = self.kept.get(key)
        if kept is None:
            raise InputError(
                f"{where}: expected the model, params, loss, tokens and points that the curvature was fitted for; its factors "
                "are of others. Fit it again with ipfast.fit."
            )
        tensors = {name: value.to(device) for name, value in kept.tensors.items()}
        return FACTORS[kept.kind].restored(where, tensors, kept.about, dict(kept.stats))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .safetensors file."""
        file = check_output("Fitted.save", "path", path, (".safetensors",))
        tensors = {f"{key}/{name}": value for key, kept in self.kept.items() for name, value in kept.tensors.items()}
        about = {
            "ipfast": "curvature 1",
            "curvature": type(self.curvature).__name__,
            "options": json.dumps(vars(self.curvature)),
            "kept": json.dumps(
                {key: [kept.kind, sorted(kept.tensors), dict(kept.about), dict(kept.stats)] for key, kept in self.kept.items()}
            ),
        }
        with written_whole(file) as beside:
            save_file(
                {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
                beside,
                about,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fitted:
        """Read what `save` wrote."""
        where = "Fitted.load"
        with opened_archive(where, path, "Fitted.save") as (about, archive):
            made = CURVATURES[about["curvature"]](**json.loads(about["options"]))
            kept = {
                key: Kept(kind, {name: archive.get_tensor(f"{key}/{name}") for name in names}, rest, stats)
                for key, (kind, names, rest, stats) in json.loads(about["kept"]).items()
            }
        return cls(made, kept)
