"""From contenders to rows: time them together, measure memory, say on what."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .contender import Contender
from .machine import commit, machine, versions
from .measure import interleaved
from .memory import cuda_extra_peak_bytes
from .record import Row
from .roofline import Probe

ChildMemory = Callable[[Contender], int | None]


def measure(
    case: str,
    sizes: dict[str, Any],
    contenders: Sequence[Contender],
    probe: Probe,
    *,
    device: torch.device,
    repeats: int,
    child_memory: ChildMemory | None,
) -> list[Row]:
    """One row a contender, in their order; the gate must have passed.

    Args:
        probe: what the same rounds measure of the machine itself.
        child_memory: extra peak bytes of a contender in a process of its own (a CPU's memory cannot be measured in this one);
            None measures no memory.
    """
    timings = interleaved({**probe.calls, **{c.name: c.call for c in contenders}}, repeats=repeats, device=device)
    roofline = probe.result(timings)
    about, found, at = machine(device), versions(), commit()
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()

    def memory(contender: Contender) -> int | None:
        if child_memory is None or not contender.memory:
            return None
        return cuda_extra_peak_bytes(contender.call, device) if device.type == "cuda" else child_memory(contender)

    return [
        Row(
            case=case,
            sizes=sizes,
            contender=c.name,
            device=device.type,
            threads=torch.get_num_threads(),
            seconds=timings[c.name].scaled(1 / c.share),
            share=c.share,
            extra_bytes=memory(c),
            roofline=roofline,
            machine=about,
            versions=found,
            commit=at,
            date=today,
        )
        for c in contenders
    ]
