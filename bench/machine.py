"""What the figures were measured on: enough to compare them, nothing that names a host, a user or a path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import ipfast
from ipfast import dispatch

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
"""Processor flags that decide which kernel or which library product runs."""
SOURCES = ("ipfast", "kernels", "csrc", "setup.py")
"""What the measured package is built from; changes elsewhere do not make a commit's figures doubtful."""


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, flags, instruction set of the C++ backend, BLAS, and the GPU if it computes."""
    info = _cpuinfo()
    sets = dispatch.instruction_sets()
    about: dict[str, Any] = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": _cores(),
        "flags": [flag for flag in FLAGS if flag in (info.get("flags") or info.get("Features") or "").split()],
        "isa": sets[0] if sets else None,
        "blas": _blas(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def versions() -> dict[str, str | None]:
    """Versions of what computes."""
    found: dict[str, str | None] = {"ipfast": ipfast.__version__, "python": platform.python_version()}
    for package in ("torch", "triton", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def commit() -> str:
    """The commit that is checked out, with "+" if the package's sources differ from it; "unknown" outside a git checkout."""
    head = _git("rev-parse", "--short=10", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", *SOURCES) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blas() -> str:
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found.group(1) if found else "unknown"
