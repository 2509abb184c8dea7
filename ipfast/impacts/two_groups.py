"""The sensitive group of every validation sample: one of two."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import one_each
from ..data.files import read_npy
from ..errors import InputError, InputTypeError
from .base import Samples


class TwoGroups:
    """Group 0 or 1 of each sample of V: of two values, numbers or strings, the one that sorts first is group 0.

    Args:
        where: the impact, for messages.
        groups: [M] as an array, a tensor, a Series or the path of an .npy file; of several validation sets a mapping from
            their names.

    Attributes:
        names: what the two groups are called.
    """

    def __init__(self, where: str, groups: Any) -> None:
        self.where = where
        sets = {str(name): part for name, part in groups.items()} if isinstance(groups, Mapping) else {None: groups}
        if not sets:
            raise InputError(f"{where}: expected groups of at least one validation set; got none.")
        found: dict[str | None, np.ndarray] = {name: _array(where, part) for name, part in sets.items()}
        values = np.unique(np.concatenate(list(found.values())))
        if len(values) != 2:
            some = ", ".join(map(str, values[:5].tolist()))
            raise InputError(
                f"{where}: expected groups to hold two values, one for each group; got {len(values)} ({some or 'none'}). "
                "Compare two groups at a time, as in groups == 'a'."
            )
        self.names = tuple(map(str, values.tolist()))
        self._members = {name: torch.from_numpy(part == values[1]) for name, part in found.items()}

    def check(self, where: str, names: Sequence[str] | None, counts: Sequence[int | None]) -> None:
        """Refuse groups of other validation sets than those of these names and lengths."""
        if set(self._members) != ({None} if names is None else set(names)):
            wanted = "an array [M], since val is one set" if names is None else f"a mapping from {', '.join(names)}"
            got = "an array" if None in self._members else f"a mapping from {', '.join(map(str, self._members))}"
            raise InputError(f"{where}: expected groups of {self.where} to be {wanted}; got {got}.")
        for name, count in zip([None] if names is None else names, counts, strict=True):
            part = self._members[name]
            if count is not None and count != len(part):
                of = "val" if name is None else f"val {name!r}"
                raise InputError(
                    f"{where}: expected groups of {self.where} to hold one group for each of the {count} samples of {of}; got "
                    f"{len(part)}."
                )

    def of(self, samples: Samples | None) -> Tensor:
        """Whether each of some samples is of group 1: [B] bool."""
        if samples is None:
            raise InputError(
                f"query: expected one row of logits for each sample of val, to know its group, for {self.where}; got those of "
                "tokens. Pool the tokens of a sequence first."
            )
        part = self._members[samples.of]
        rows = samples.rows.cpu()
        if len(rows) and int(rows.max()) >= len(part):
            raise InputError(
                f"query: expected groups of {self.where} to hold one group for each sample of val; got {len(part)}, and there "
                "are more samples."
            )
        return part[rows].to(samples.rows.device)

    def require_both(self, one: Tensor, among: str) -> tuple[int, int]:
        """(samples of group 0, of group 1), of which neither may be 0."""
        count, first = len(one), int(one.sum())
        for name, size in zip(self.names, (count - first, first), strict=True):
            if not size:
                raise InputError(
                    f"query: expected {among} of both groups for {self.where}, for each query; got none of group {name!r}. "
                    "Pass more validation samples."
                )
        return count - first, first


def _array(where: str, groups: Any) -> np.ndarray:
    if isinstance(groups, (str, os.PathLike)):
        groups = read_npy(where, "groups", groups)
    array = one_each(where, "groups", groups)
    if array.dtype.kind not in "biufU":
        raise InputTypeError(
            f"{where}: expected groups to be numbers or strings, one for each sample of val; got {array.dtype} "
            f"{list(array.shape)}."
        )
    if array.ndim != 1:
        raise InputError(f"{where}: expected groups of shape [M], one for each sample of val; got {list(array.shape)}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int((~np.isfinite(array)).nonzero()[0][0])
        raise InputError(f"{where}: expected finite groups; got {array[row]} at row {row}. Leave such samples out of val.")
    return array
