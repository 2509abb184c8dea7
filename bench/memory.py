"""Extra peak memory of one call: what it needs beyond its inputs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]
Prepare = Callable[..., tuple[Call, Call]]


def extra_peak_bytes(prepare: Prepare, *arguments: Any) -> int | None:
    """Peak resident memory of a call in a fresh process, less what was resident before it. None where /proc cannot tell.

    Args:
        prepare: a function of a module; prepare(*arguments) makes the inputs there and returns (a small call of the same
            kind, which loads libraries and starts threads; the call).
    """
    # Spawned, not forked: OpenMP's threads do not survive a fork, and a used heap would hide what the call allocates.
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as child:
        return child.submit(_in_child, prepare, arguments).result()


def cuda_extra_peak_bytes(call: Call, device: torch.device) -> int:
    """Peak of the allocator during a call, less what was allocated before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _in_child(prepare: Prepare, arguments: tuple[Any, ...]) -> int | None:
    small, call = prepare(*arguments)
    small()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
        before = _status_bytes("VmRSS")
        call()
        return max(_status_bytes("VmHWM") - before, 0)
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
