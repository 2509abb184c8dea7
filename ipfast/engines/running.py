"""How a network is run so that it can be differentiated: attention, recurrent layers, checkpoints and compiled functions."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import InputError


def uncompiled() -> AbstractContextManager[object]:
    """Functions of a network that were compiled on their own run as they are: no compiler takes what engines call them with."""
    found = "torch._dynamo" in sys.modules  # which takes a second to import, and which whoever compiles has imported
    return torch.compiler.set_stance("force_eager") if found else nullcontext()


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention layer by layer: its fused inference path calls no layer, so that no hook would see one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def forward_differentiable(module: nn.Module) -> Iterator[None]:
    """Attention and LSTMs in forms that have a forward derivative: no fused path, no library kernels without one."""
    config = getattr(module, "config", None)
    form = getattr(config, "_attn_implementation", None)
    exchanged = isinstance(form, str) and form not in ("eager", "sdpa")
    with ExitStack() as stack:
        stack.enter_context(without_fast_path())
        stack.enter_context(torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]))
        if any(isinstance(one, nn.LSTM) for one in module.modules()):
            kept: Any = {"deterministic": None, "allow_tf32": None, "fp32_precision": None}
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False, **kept))
        try:
            if exchanged:
                config._attn_implementation = "sdpa"  # type: ignore[union-attr]
            yield
        finally:
            if exchanged:
                config._attn_implementation = form  # type: ignore[union-attr]


@contextmanager
def whole_checkpoints(where: str) -> Iterator[None]:
    """Refuse activation checkpoints of the older kind, which have no gradient in part, or none where their input has none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="None of the inputs have requires_grad")
        try:
            yield
        except (RuntimeError, UserWarning) as error:
            if "use_reentrant" not in str(error) and "None of the inputs have requires_grad" not in str(error):
                raise
            raise InputError(
                f"{where}: expected a model whose activation checkpoints can be differentiated in part; got "
                "checkpoint(..., use_reentrant=True). Pass use_reentrant=False, which gives the same."
            ) from error
