"""Which backend runs an operation. The only module that imports `ipfast.kernels` and `ipfast._C`, and only when asked.

A backend that the caller names is used or refused, never replaced; "auto" chooses and says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from .errors import InputError, UnavailableError
from .registry import check_choice

BACKENDS = ("auto", "reference", "cpp", "triton")


@dataclass(frozen=True)
class BackendChoice:
    """A backend and the reason for it."""

    name: str
    reason: str


def extension() -> ModuleType:
    """The C++ extension `ipfast._C`."""
    try:
        return importlib.import_module("ipfast._C")
    except ImportError as error:
        raise UnavailableError(
            f"backend='cpp': expected the C++ extension ipfast._C; it is not installed here ({error}). Reinstall ipfast "
            "with a C++17 compiler on PATH and IPFAST_NO_EXT unset, or use backend='reference'."
        ) from error


def triton_kernels(operation: str) -> ModuleType:
    """The module of Triton kernels of one operation."""
    try:
        return importlib.import_module(f"ipfast.kernels.{operation}")
    except ImportError as error:
        raise UnavailableError(
            f"backend='triton': expected the package triton; it cannot be imported here ({error}). Install triton "
            "(Linux x86-64), or use backend='reference'."
        ) from error


def has_extension() -> bool:
    """Whether the C++ extension was built."""
    return importlib.util.find_spec("ipfast._C") is not None


def has_triton() -> bool:
    """Whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in triton's interpreter (TRITON_INTERPRET=1), which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def select_backend(backend: str = "auto", *, device: str | torch.device = "cpu") -> BackendChoice:
    """Choose the backend that computes on `device`, and say why.

    Args:
        backend: "auto", or the name of a backend, which is then used or refused but never replaced.
        device: where the features are.

    Returns:
        The chosen name ("reference", "cpp" or "triton") and the reason.

    Raises:
        UnavailableError: the named backend is not installed, or cannot work on this device.

    >>> select_backend("reference").name
    'reference'
    """
    check_choice("select_backend", "backend", backend, BACKENDS)
    kind = torch.device(device).type
    if backend == "reference":
        return BackendChoice("reference", "asked for by name")
    if backend == "cpp":
        if kind != "cpu":
            raise UnavailableError(
                f"backend='cpp': expected data on the CPU; got device {str(device)!r}. Use backend='triton' or 'auto'."
            )
        extension()
        return BackendChoice("cpp", "asked for by name")
    if backend == "triton":
        if not has_triton():
            raise UnavailableError(
                "backend='triton': expected the package triton; it is not installed here. Install it (Linux x86-64) "
                "or use backend='auto'."
            )
        if kind != "cuda" and not interpreting():
            raise UnavailableError(
                f"backend='triton': expected data on a GPU; got device {str(device)!r}. Pass device='cuda', use "
                "backend='cpp', or set TRITON_INTERPRET=1 before the start to run the kernels in the (slow) interpreter."
            )
        return BackendChoice("triton", "asked for by name")
    if kind == "cuda":
        if has_triton():
            return BackendChoice("triton", "the data is on a GPU and triton is installed")
        return BackendChoice("reference", "the data is on a GPU and triton is not installed")
    if kind == "cpu":
        if has_extension():
            return BackendChoice("cpp", "the data is on the CPU and the C++ extension is installed")
        return BackendChoice("reference", "the C++ extension is not installed (built with IPFAST_NO_EXT=1?)")
    return BackendChoice("reference", f"no kernels for device type {kind!r}")


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of the C++ backend that this processor can run, best first; empty without the extension."""
    return tuple(extension().instruction_sets()) if has_extension() else ()


def storage_view(tensor: torch.Tensor) -> Any:
    """A NumPy view of a CPU tensor without a copy; bfloat16, which NumPy lacks, comes as uint16."""
    if tensor.device.type != "cpu":
        raise InputError(f"storage_view: expected a CPU tensor; got one on {tensor.device}. Move it with .cpu().")
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
