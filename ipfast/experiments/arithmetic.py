"""In what networks are trained: results of one table must not mix two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def narrow(device: torch.device) -> bool:
    """Whether networks are trained in bfloat16 there: where it is multiplied faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 where that is faster, as a context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow(device))
