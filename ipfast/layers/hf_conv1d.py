"""Conv1D of Hugging Face, a linear layer whose weight lies transposed, [d_in, d_out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from .base import Kept
from .linear import LinearRule


class HuggingFaceConv1D(LinearRule):
    transposed: ClassVar[bool] = True

    def dot(self, module: Any, kept: Kept, b: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        turned = {name: value.transpose(1, 2) if name == "weight" else value for name, value in queries.items()}
        return super().dot(module, kept, b, turned)
