"""The result of a scoring run."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from .checks import as_tensor, existing_file, positive_integer
from .data.files import read_column
from .data.writers import FORMATS, check_output, write_table, written_whole
from .errors import InputError, InputTypeError


@dataclass(frozen=True)
class Scores:
    """Scores of N training samples, in the order of the data. Positive = beneficial, negative = detrimental, in every method.

    Attributes:
        values: [N], float32 or float64, on the CPU.
        method, engine, backend: what computed them.
        stats: the query's norm, M, class counts, reasons for the choices, seconds a stage.
        ids: [N] names of the samples, if given.
    """

    values: Tensor
    method: str
    engine: str
    backend: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor) or self.values.dim() != 1 or not self.values.dtype.is_floating_point:
            shape = f"{self.values.dtype} {list(self.values.shape)}" if isinstance(self.values, Tensor) else type(self.values)
            raise InputError(f"Scores: expected values to be a floating-point tensor [N]; got {shape}.")
        if self.ids is not None and len(self.ids) != len(self.values):
            raise InputError(f"Scores: expected one of ids a value; got {len(self.ids)} for {len(self.values)} values.")

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        low, high = (float(bound) for bound in torch.aminmax(self.values)) if len(self) else (math.nan, math.nan)
        return (
            f"Scores({len(self)} samples, method={self.method!r}, engine={self.engine!r}, backend={self.backend!r}, "
            f"range {low:.4g}..{high:.4g}, {int((self.values < 0).sum())} negative)"
        )

    def count(self, amount: float) -> int:
        """How many samples `amount` means: a float in (0, 1) is a share (floor(share·N)), an int a count up to N."""
        if isinstance(amount, bool) or not isinstance(amount, (int, float, np.integer, np.floating)):
            raise InputTypeError(f"Scores: expected a share in (0, 1) or a count; got {type(amount).__name__}.")
        if isinstance(amount, (int, np.integer)):
            if not 0 <= amount <= len(self):
                raise InputError(f"Scores: expected a count between 0 and {len(self)}; got {amount}.")
            return int(amount)
        if not 0 < amount < 1:
            raise InputError(f"Scores: expected a share between 0 and 1; got {amount:g}. Pass an int for a count.")
        # 0.29·100 is 28.999999999999996: a product that is an integer up to rounding is meant to be that integer.
        return math.floor(float(amount) * len(self) * (1 + 4 * sys.float_info.epsilon))

    def lowest(self, amount: float) -> Tensor:
        """Indices of the most detrimental samples, worst first, ties by index. `amount`: see `count`. int64 [k]"""
        return torch.argsort(self.values, stable=True)[: self.count(amount)]

    def highest(self, amount: float) -> Tensor:
        """Indices of the most beneficial samples, best first, ties by index. `amount`: see `count`. int64 [k]"""
        return torch.argsort(self.values, descending=True, stable=True)[: self.count(amount)]

    def topk(self, k: int, *, largest: bool = True) -> tuple[Tensor, Tensor]:
        """(values, indices) of the k highest scores, or the lowest with largest=False."""
        k = positive_integer("Scores.topk", "k", k)
        indices = self.highest(k) if largest else self.lowest(k)
        return self.values[indices], indices

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to .safetensors (everything, for `load`), .parquet or .csv (id or index, score) or .npy (the scores alone)."""
        where = "Scores.save"
        file = check_output(where, "path", path, (".safetensors", *FORMATS))
        if file.suffix != ".safetensors":
            names = {"index": np.arange(len(self))} if self.ids is None else {"id": self.ids}
            return write_table(where, file, {**names, "score": self.values.numpy()})
        about = {
            "method": self.method,
            "engine": self.engine,
            "backend": self.backend,
            "stats": json.dumps(dict(self.stats)),
            "ids": json.dumps(None if self.ids is None else self.ids.tolist()),
        }
        with written_whole(file) as beside:
            save_file({"values": self.values.numpy()}, beside, metadata=about)
        return None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read what `save` wrote: everything from .safetensors, scores and ids from .csv and .parquet, scores from .npy."""
        where = "Scores.load"
        file = existing_file(where, "path", path)
        if file.suffix in FORMATS:
            column, names = read_column(where, "path", file, "score")
            return cls(as_tensor(column), "unknown", "unknown", "unknown", {}, names)
        try:
            with safe_open(str(file), framework="pt") as archive:
                about, values = archive.metadata() or {}, archive.get_tensor("values")
            ids = json.loads(about["ids"])
            return cls(
                values,
                about["method"],
                about["engine"],
                about["backend"],
                json.loads(about["stats"]),
                None if ids is None else np.asarray(ids),
            )
        except (SafetensorError, ValueError, KeyError, OSError, EOFError) as error:
            raise InputError(
                f"{where}: expected a .safetensors file written by Scores.save, or scores in .npy, .csv or .parquet; "
                f"{str(file)!r} cannot be read ({error})."
            ) from error
