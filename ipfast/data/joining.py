"""Arrays and ids of the parts of one data set, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


def joined(arrays: Sequence[Tensor | None]) -> Any:
    """Arrays one after another, those of shorter sequences filled up with zeros; None of none."""
    given = [array for array in arrays if array is not None]
    if not given or given[0].dim() == 1:
        return torch.cat(given) if given else None
    columns = max(array.shape[1] for array in given)
    missing = [array.new_zeros(len(array), columns - array.shape[1], *array.shape[2:]) for array in given]
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(given, missing, strict=True)])


def joined_ids(where: str, ids: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Ids of parts, by name, one after another, as text where some of them are; one in two parts is refused."""
    if not ids:
        return None
    text = any(part.dtype.kind not in "biuf" for part in ids.values())
    seen: dict[str, str] = {}
    for name, part in ids.items():
        fresh = dict.fromkeys(as_text(part), name)
        twice = next((each for each in fresh if each in seen), None)
        if twice is not None:
            raise InputError(
                f"{where}: expected each id in one part; {twice!r} is in {seen[twice]} and in {name}. Is a part there twice?"
            )
        seen |= fresh
    return np.concatenate([np.asarray(as_text(part)) if text else part for part in ids.values()])


def as_text(ids: np.ndarray) -> list[str]:
    """Ids as a table without types holds them."""
    return list(map(str, ids.tolist()))
