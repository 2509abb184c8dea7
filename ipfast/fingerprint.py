"""Numbers by which parameters are known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(values: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors, their names, dtypes, shapes and bits, and of what else there is to know again, as JSON."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(values.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        # A copy, since a single number may have any stride and count as contiguous.
        flat = value.detach().to("cpu").clone(memory_format=torch.contiguous_format).view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_all(keys: Iterable[str]) -> str:
    """That of several points together, as of a segment of a training run."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()
