"""dropout_mask: which entries of a parameter a member of a dropout ensemble drops."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError, InputTypeError
from ..registry import check_choice
from ._philox import fnv1a32, numpy_words, torch_words

BLOCK = 4096
"""Elements of the flattened parameter that share a counter word; masks are drawn block by block, each alone."""
BACKENDS = ("auto", "reference", "cpp")
_DRAWS_AT_ONCE = 2**18


def dropout_mask(name: str, shape: Iterable[int], rate: float, seed: int, member: int, *, backend: str = "auto") -> Tensor:
    """Flat indices of the dropped entries, each entry dropped with probability `rate` independently of all others.

    The flattened parameter is cut into blocks of 4,096 elements, and a block is crossed by geometric skips:

        gap = max{k ≤ K : U < T_k},   T_k = ⌊(1−rate)^k·2³²⌋,   K the last k with T_k ≥ 1,   U uniform in 0..2³²−1

    entries are kept, the next one is dropped; gap = K keeps K and draws again. Draw j of a block is word j mod 4 of
    Philox4x32-10 with key `seed` and counter (⌊j/4⌋, block, member, FNV-1a-32 of the name). (1−rate)^k is a repeated float64
    product; above rate 1/2 the skips run from kept entry to kept entry at rate 1−rate. So the result depends on these five
    arguments alone, not on backend, threads, platform or the order of parameters. P(gap ≥ k) is rounded down to a
    multiple of 2⁻³².
    Cost: about rate·numel draws; memory for the dropped entries only.

    Args:
        name: the parameter's name in its model ("fc.weight"; a bare nn.Linear's are "weight" and "bias"); the first one of
            tied parameters.
        shape: the parameter's shape, at most 2⁴⁴ elements.
        rate: 0 ≤ rate < 1.
        seed: of the ensemble, 0 .. 2⁶⁴−1.
        member: of the ensemble, 0 .. 2³²−1.
        backend: "auto", "reference" or "cpp".

    Returns:
        Indices [dropped], int64, ascending, into parameter.flatten(), on the CPU.

    Raises:
        InputError, InputTypeError: an argument is out of its range or of another type. UnavailableError: no C++ extension.

    Source: the parameter dropout of IP Ensemble; Philox4x32-10 is of Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011.

    >>> dropout_mask("weight", (10, 512), 0.01, seed=0, member=0)[:5].tolist()
    [37, 179, 195, 204, 535]
    """
    where = "dropout_mask"
    check_choice(where, "backend", backend, BACKENDS)
    mask = Mask(
        _name(where, name),
        _elements(where, shape),
        _rate(where, rate),
        _unsigned(where, "seed", seed, 64),
        _unsigned(where, "member", member, 32),
    )
    if dispatch.select_backend(backend).name == "cpp":
        return torch.from_numpy(
            dispatch.extension().dropout_mask(
                mask.name,
                mask.elements,
                rate=mask.rate,
                seed=mask.seed,
                member=mask.member,
                threads=torch.get_num_threads(),
            )
        )
    return torch.from_numpy(numpy_reference(mask))  # not torch's: its threads would go on spinning beside the next kernel's


class Mask(NamedTuple):
    """Checked arguments."""

    name: bytes  # UTF-8
    elements: int
    rate: float
    seed: int
    member: int

    @property
    def draws_kept(self) -> bool:
        """Whether kept entries are drawn, the rarer ones."""
        return self.rate > 0.5

    @property
    def drawn_rate(self) -> float:
        """The probability that an entry is drawn."""
        return 1 - self.rate if self.draws_kept else self.rate

    def thresholds(self) -> np.ndarray:
        """T_K .. T_1, ascending, int64; none where the rate is 0 (or 1 − rate is 1 in float64)."""
        step = 1 - self.drawn_rate
        found: list[int] = []
        q = step
        # A gap of a block or more ends the block whatever its length, so that the table may end there.
        while step < 1 and len(found) < BLOCK and (t := int(q * 2.0**32)) >= 1:
            found.append(t)
            q *= step
        return np.array(found[::-1], dtype=np.int64)

    def draws(self) -> int:
        """Draws that end most blocks, in whole counters; the others go on."""
        mean = self.drawn_rate * BLOCK
        return 4 * math.ceil((mean + 3 * math.sqrt(mean) + 1) / 4)

    def block_ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of blocks whose draws are held at once."""
        blocks, size = -(-self.elements // BLOCK), max(1, _DRAWS_AT_ONCE // self.draws())
        for first in range(0, blocks, size):
            yield first, min(first + size, blocks)


def numpy_reference(mask: Mask) -> np.ndarray:
    """The definition in NumPy, over many blocks and draws at once."""
    thresholds, draws = mask.thresholds(), mask.draws()
    longest, name = len(thresholds), fnv1a32(mask.name)
    parts = [np.empty(0, dtype=np.int64)]
    for first, last in mask.block_ranges() if longest else ():
        blocks, position, counter = np.arange(first, last), np.zeros(last - first, dtype=np.int64), 0
        found = []
        while len(blocks):
            counters = np.arange(counter, counter + draws // 4)
            u = numpy_words(counters, blocks[:, None], mask.member, name, mask.seed).astype(np.int64)
            gap = longest - np.searchsorted(thresholds, u.reshape(len(blocks), draws), side="right")
            at = position[:, None] + np.cumsum(gap + (gap < longest), axis=1)  # where the next draw begins
            dropped = (gap < longest) & (at <= BLOCK)
            found.append((blocks[:, None] * BLOCK + at - 1)[dropped])
            going = at[:, -1] < BLOCK
            blocks, position, counter = blocks[going], at[going, -1], counter + draws // 4
        part = np.sort(np.concatenate(found))
        part = part[: np.searchsorted(part, mask.elements)]
        if mask.draws_kept:
            rest = np.ones(min(last * BLOCK, mask.elements) - first * BLOCK, dtype=bool)
            rest[part - first * BLOCK] = False
            part = np.flatnonzero(rest) + first * BLOCK
        parts.append(part)
    return np.concatenate(parts)


def torch_reference(mask: Mask, device: str | torch.device = "cpu") -> Tensor:
    """The definition in torch, on any device; the same integers as `numpy_reference`."""
    thresholds, draws = torch.from_numpy(mask.thresholds()).to(device), mask.draws()
    longest, name = len(thresholds), fnv1a32(mask.name)
    parts = [torch.empty(0, dtype=torch.int64, device=device)]
    for first, last in mask.block_ranges() if longest else ():
        blocks = torch.arange(first, last, device=device)
        position, counter = torch.zeros_like(blocks), 0
        found = []
        while len(blocks):
            counters = torch.arange(counter, counter + draws // 4, device=device)
            u = torch_words(counters, blocks[:, None], mask.member, name, mask.seed).reshape(len(blocks), draws)
            gap = longest - torch.searchsorted(thresholds, u, right=True)
            at = position[:, None] + torch.cumsum(gap + (gap < longest), dim=1)  # where the next draw begins
            dropped = (gap < longest) & (at <= BLOCK)
            found.append((blocks[:, None] * BLOCK + at - 1)[dropped])
            going = at[:, -1] < BLOCK
            blocks, position, counter = blocks[going], at[going, -1], counter + draws // 4
        part = torch.cat(found).sort().values
        part = part[part < mask.elements]
        if mask.draws_kept:
            rest = torch.ones(min(last * BLOCK, mask.elements) - first * BLOCK, dtype=torch.bool, device=device)
            rest[part - first * BLOCK] = False
            part = rest.nonzero().squeeze(1) + first * BLOCK
        parts.append(part)
    return torch.cat(parts)


def _name(where: str, name: Any) -> bytes:
    if not isinstance(name, str):
        raise InputTypeError(f"{where}: expected name to be a string; got {type(name).__name__}. Pass the parameter's name.")
    if not name:
        raise InputError(f"{where}: expected name to be the parameter's name; got ''. A bare nn.Linear's weight is 'weight'.")
    try:
        return name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected name to be valid Unicode; got {name!r} ({error.reason}). Rename it.") from error


def _elements(where: str, shape: Any) -> int:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Iterable):
        raise InputTypeError(
            f"{where}: expected shape to be a tuple of integers; got {type(shape).__name__}. Pass tuple(parameter.shape)."
        )
    sizes = list(shape)
    if not all(hasattr(size, "__index__") and not isinstance(size, bool) for size in sizes):
        raise InputTypeError(f"{where}: expected shape to be a tuple of integers; got {sizes}. Pass tuple(parameter.shape).")
    sizes = [size.__index__() for size in sizes]
    if any(size < 0 for size in sizes) or math.prod(sizes) > BLOCK << 32:
        raise InputError(
            f"{where}: expected shape to be of sizes ≥ 0 with at most 2^44 elements in all; got {sizes}. "
            "Pass tuple(parameter.shape)."
        )
    return math.prod(sizes)


def _rate(where: str, rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise InputTypeError(f"{where}: expected rate to be a number; got {type(rate).__name__}. Pass a float such as 0.01.")
    value = float(rate)
    if not 0 <= value < 1:  # NaN included
        raise InputError(
            f"{where}: expected rate to be a share of the entries, 0 ≤ rate < 1; got {value:g}. Pass a float such as 0.01."
        )
    return value


def _unsigned(where: str, argument: str, value: Any, bits: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputTypeError(f"{where}: expected {argument} to be an integer; got {type(value).__name__}. Pass an int.")
    try:
        number = int(value.__index__())
    except TypeError as error:  # an array of several elements
        raise InputTypeError(
            f"{where}: expected {argument} to be an integer; got {type(value).__name__}. Pass an int."
        ) from error
    if not 0 <= number < 1 << bits:
        raise InputError(f"{where}: expected {argument} to be in 0 .. 2^{bits}-1; got {number}. Choose another one.")
    return number
