"""Time by interleaved repeats: every round runs all contenders, so that a slow minute of the machine slows all of them."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, sleep

import numpy as np
import torch

MIN_REPEATS = 9
SETTLE_SECONDS = 0.02
"""Pause before a timed call on the CPU: the threads of the call before go on spinning for a while and would share its cores."""


@dataclass(frozen=True)
class Timing:
    """Quantiles of the seconds of one call."""

    p20: float
    p50: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        p20, p50, p80 = (float(value) for value in np.quantile(seconds, [0.2, 0.5, 0.8]))
        return cls(p20, p50, p80, len(seconds))

    def scaled(self, factor: float) -> Timing:
        """The same timing of `factor` times the work."""
        return Timing(self.p20 * factor, self.p50 * factor, self.p80 * factor, self.repeats)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, Timing]:
    """Time every call `repeats` times, round robin, in a new order each round so that no call always follows the same one.

    On a CUDA device the time is the device's own, between two events around the call; elsewhere it is the wall clock's.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"measure: expected at least {MIN_REPEATS} repeats for a median; got {repeats}.")
    seconds = _cuda_seconds if device.type == "cuda" else _wall_seconds
    for call in calls.values():
        for _ in range(warm_up):
            call()
    order, shuffle = list(calls), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            shuffle.shuffle(order)
            for name in order:
                samples[name].append(seconds(calls[name], device))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(times) for name, times in samples.items()}


def _wall_seconds(call: Callable[[], object], _device: torch.device) -> float:
    sleep(SETTLE_SECONDS)
    started = perf_counter()
    call()
    return perf_counter() - started


def _cuda_seconds(call: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
