"""On what cells are run: noted with each, and the same for all whose networks are compared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ipfast

from ..errors import InputError
from .arithmetic import narrow
from .base import Experiment
from .cells import Cell, Record


def describe_machine(experiment: Experiment) -> dict[str, Any]:
    """What figures depend on beside the recipe; no names of hosts or paths."""
    packages = {"ipfast": ipfast.__version__, "torch": torch.__version__}
    for package in ("numpy", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    name, arithmetic, device = "cpu", "float64", experiment.surroundings.device
    if experiment.trains_networks:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        arithmetic = "bfloat16" if narrow(device) else "float32"
    return {"device": name, "arithmetic": arithmetic, "threads": torch.get_num_threads(), "versions": packages}


def require_same_machine(
    experiment: Experiment, pending: Sequence[Cell], finished: Mapping[Cell, Record], about: Mapping[str, Any]
) -> None:
    """Refuse to go on with cells that are compared by pairs on another device, in another arithmetic, or on a processor with
    another number of threads, each of which changes the order of sums: networks that are trained there differ.

    Raises:
        InputError: that. Of cells of versions that did not note it the arithmetic is not known, nor compared.
    """
    before: dict[Hashable, list[Mapping[str, Any]]] = {}
    for cell, record in finished.items():
        before.setdefault(experiment.compared(cell), []).append(record.about)
    names = ["device", "arithmetic", *(["threads"] if about["device"] == "cpu" else [])]
    for cell in pending:
        key = experiment.compared(cell)
        there = [] if key is None else before.get(key, [])
        for name in names:
            other = next((each[name] for each in there if each.get(name, about[name]) != about[name]), None)
            if other is None:
                continue
            mend = "Set OMP_NUM_THREADS to that number" if name == "threads" else "Choose another --device"
            raise InputError(
                f"experiment: expected to go on with {cell.part}/{cell.setting} on the {name} of the finished cells that it is "
                f"compared with by pairs, {other!r}; here it is {about[name]!r}. {mend}, or choose another --out."
            )
