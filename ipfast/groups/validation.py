"""V: one query, or several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import Source, open_source
from ..errors import InputError


@dataclass(frozen=True)
class Validation:
    """V, cut into Q groups of which each makes a query of its own.

    Attributes:
        sources: one, or one for each query.
        names: of the queries; None: V is one query.
        groups: [M] number of the query that each sample of the only source belongs to; None: a source is a query.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...] | None = None
    groups: Tensor | None = None

    @property
    def queries(self) -> int:
        return 1 if self.names is None else len(self.names)

    def query_of(self, where: str, index: int, start: int, count: int) -> Tensor | int:
        """The query of each of `count` samples of source `index` from sample `start` on [count], or of all of them."""
        if self.groups is None:
            return index
        if start + count > len(self.groups):
            raise InputError(f"{where}: expected val_groups to hold one group for each sample of val; got {len(self.groups)}.")
        return self.groups[start : start + count]


def cut(query: Tensor | int) -> list[tuple[int, Any]]:
    """(query, its rows of a block) for each query of the block."""
    if isinstance(query, int):
        return [(query, slice(None))]
    return [(int(q), (query == q).nonzero().squeeze(1)) for q in torch.unique(query)]


def open_validation(where: str, val: Any, val_groups: Any, *, batch_size: int, labels_key: str = "labels") -> Validation | None:
    """V as one query, as a query for each of several sets, or as one for each group of its samples."""
    if val is None:
        if val_groups is not None:
            raise InputError(
                f"{where}: expected val beside val_groups, which tells the group of each of its samples; got None."
            )
        return None
    sets = _sets(val)
    if sets is None:
        source = open_source(where, "val", val, batch_size=batch_size, labels_key=labels_key)
        if val_groups is None:
            return Validation((source,))
        return _grouped(where, source, val_groups)
    if val_groups is not None:
        raise InputError(
            f"{where}: expected no val_groups beside several validation sets, each a query. Leave one of them out."
        )
    if not sets:
        raise InputError(f"{where}: expected at least one validation set in val; got none.")
    sources = tuple(open_source(where, "val", data, batch_size=batch_size, labels_key=labels_key) for data in sets.values())
    return Validation(sources, tuple(sets))


def validation_sets(val: Any) -> list[Any]:
    """The data sets in val, of which each must be trusted."""
    sets = _sets(val)
    return [val] if sets is None else list(sets.values())


def _sets(val: Any) -> dict[str, Any] | None:
    """Several validation sets by name; None where val is a single one."""
    if isinstance(val, Mapping):
        return {str(name): data for name, data in val.items()}
    if isinstance(val, list) and all(_is_set(data) for data in val):
        return {str(index): data for index, data in enumerate(val)}
    return None


def _is_set(data: Any) -> bool:
    """Whether an element of a list is a data set, and not the features or the labels of one."""
    if isinstance(data, tuple):
        return len(data) == 2 and all(hasattr(part, "__len__") or isinstance(part, os.PathLike) for part in data)
    return isinstance(data, Dataset | DataLoader)


def _grouped(where: str, source: Source, val_groups: Any) -> Validation:
    ids = val_groups.detach().cpu().numpy() if isinstance(val_groups, Tensor) else np.asarray(val_groups)
    if ids.dtype.kind == "O" and all(isinstance(name, str) for name in ids.flat):
        ids = ids.astype(str)
    if ids.ndim != 1 or ids.dtype.kind not in "biuU" or source.rows not in (None, len(ids)):
        expected = "M" if source.rows is None else source.rows
        raise InputError(
            f"{where}: expected val_groups to be {expected} integers or strings, one for each sample of val; got shape "
            f"{list(ids.shape)} and dtype {ids.dtype}."
        )
    names, numbers = np.unique(ids, return_inverse=True)
    return Validation((source,), tuple(str(name) for name in names), torch.from_numpy(numbers.astype(np.int64)))
