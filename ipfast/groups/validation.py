"""V: one query, or several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import ArraySource, Source, open_source
from ..data.arrays import one_each
from ..data.files import read_npy
from ..errors import InputError
from ..impacts import Impact, Samples


@dataclass(frozen=True)
class Validation:
    """V, cut into Q groups of which each makes a query of its own.

    Attributes:
        sources: one, or one for each query.
        names: of the queries; None: V is one query.
        groups: [M] number of the query that each sample of the only source belongs to; None: a source is a query.
        pairs: the counterparts of the samples of each source, where the impact has them.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...] | None = None
    groups: Tensor | None = None
    pairs: tuple[Source, ...] = ()

    @property
    def sets(self) -> tuple[str, ...] | None:
        """Names of the validation sets; None where there is one, whether or not its samples are of several queries."""
        return self.names if self.groups is None else None

    def passes(self) -> Iterator[tuple[int, str, Source]]:
        """(number of the set, name of the argument, samples) of all that is read: each source, then its counterparts."""
        for index, source in enumerate(self.sources):
            yield index, "val", source
            if self.pairs:
                yield index, "pairs", self.pairs[index]

    def samples(self, query: int, rows: Tensor) -> Samples:
        """Samples of a query, as impacts know them."""
        return Samples(rows, None if self.sets is None else self.sets[query])

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
    sets = _sets(where, val)
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


def with_impact(
    where: str, validation: Validation | None, impact: Impact, *, batch_size: int, labels_key: str = "labels"
) -> Validation | None:
    """V with the counterparts that the impact brings; its data must belong to V."""
    if validation is None:
        return None
    impact.check_samples(where, validation.sets, [source.rows for source in validation.sources])
    if impact.pairs is None:
        return validation
    if validation.sets is None:
        given = [impact.pairs]
    else:
        mapping = {str(name): data for name, data in impact.pairs.items()} if isinstance(impact.pairs, Mapping) else {}
        if set(mapping) != set(validation.sets):
            got = f"a mapping from {', '.join(mapping)}" if mapping else type(impact.pairs).__name__
            raise InputError(
                f"{where}: expected pairs to be a mapping from {', '.join(validation.sets)}, the validation sets; got {got}."
            )
        given = [mapping[name] for name in validation.sets]
    pairs = tuple(
        _open_pairs(where, data, source, batch_size, labels_key) for data, source in zip(given, validation.sources, strict=True)
    )
    return replace(validation, pairs=pairs)


def _open_pairs(where: str, data: Any, source: Source, batch_size: int, labels_key: str) -> Source:
    """The counterparts of a source: data like it, or inputs alone, which then have its labels."""
    if isinstance(data, (str, os.PathLike)) and os.fspath(data).endswith(".npy"):
        data = read_npy(where, "pairs", data)
    alone = isinstance(data, (np.ndarray, Tensor)) or hasattr(data, "to_numpy") or hasattr(data, "toarray")
    if alone and not isinstance(source, ArraySource):
        raise InputError(
            f"{where}: expected pairs with labels, as a Dataset, a DataLoader or a pair (inputs, labels), where val is not "
            f"arrays; got inputs alone ({type(data).__name__})."
        )
    rows = data.shape[0] if alone and len(data.shape) else None
    if alone and rows != source.rows:
        raise InputError(f"{where}: expected pairs of the {source.rows} samples of val; got {rows}. Give each a counterpart.")
    if alone and isinstance(source, ArraySource):
        return ArraySource(where, "pairs", data, source.labels)
    opened = open_source(where, "pairs", data, batch_size=batch_size, labels_key=labels_key)
    if None not in (opened.rows, source.rows) and opened.rows != source.rows:
        raise InputError(
            f"{where}: expected pairs of the {source.rows} samples of val; got {opened.rows}. Give each a counterpart."
        )
    return opened


def validation_sets(val: Any) -> list[Any]:
    """The data sets in val, of which each must be trusted."""
    sets = _sets("score", val)
    return [val] if sets is None else list(sets.values())


def _sets(where: str, val: Any) -> dict[str, Any] | None:
    """Several validation sets by name; None where val is a single one."""
    if isinstance(val, Mapping):
        found = {str(name): data for name, data in val.items()}
        if len(found) < len(val):
            raise InputError(
                f"{where}: expected validation sets of different names; got {', '.join(map(repr, val))}. Rename one of them."
            )
        return found
    if isinstance(val, list) and all(_is_set(data) for data in val):
        return {str(index): data for index, data in enumerate(val)}
    return None


def _is_set(data: Any) -> bool:
    """Whether an element of a list is a data set, and not the features or the labels of one."""
    if isinstance(data, tuple):
        return len(data) == 2 and all(hasattr(part, "__len__") or isinstance(part, os.PathLike) for part in data)
    return isinstance(data, Dataset | DataLoader)


def _grouped(where: str, source: Source, val_groups: Any) -> Validation:
    ids = one_each(where, "val_groups", val_groups)
    if ids.ndim != 1 or ids.dtype.kind not in "biuU" or source.rows not in (None, len(ids)):
        expected = "M" if source.rows is None else source.rows
        raise InputError(
            f"{where}: expected val_groups to be {expected} integers or strings, one for each sample of val; got shape "
            f"{list(ids.shape)} and dtype {ids.dtype}."
        )
    names, numbers = np.unique(ids, return_inverse=True)
    return Validation((source,), tuple(str(name) for name in names), torch.from_numpy(numbers.astype(np.int64)))
