"""In what networks are trained: results of one table must not mix two."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def narrow(device: torch.device) -> bool:
    """Whether networks are trained in bfloat16 there: where it is multiplied faster than float32."""
    if device.type == "cuda":  # is_bf16_supported() counts cards that emulate it
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def exact(device: torch.device) -> AbstractContextManager[None]:
    """float32 where float32 is said, and the same convolutions in every run, where a GPU is free to choose otherwise."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 where that is faster, as a context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow(device))
