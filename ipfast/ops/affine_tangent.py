"""affine_tangent: a channel-wise affine function and its derivative along a direction, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError
from ..registry import check_choice


def affine_tangent(
    x: Tensor,
    dx: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    dscale: Tensor,
    dshift: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y = a x + c and ẏ = a ẋ + ȧ x + ċ with one a, c, ȧ and ċ a channel: normalisation with fixed statistics.

    Args:
        x: [B, C, ...]. dx: ẋ, alike, or None where x does not depend on the direction.
        scale, shift, dscale, dshift: a, c, ȧ and ċ [C].
        backend: "auto", "reference" or "cpp" (contiguous float32 or float64 on the CPU).

    Returns:
        (y, ẏ), each like x.

    Raises:
        InputError: the shapes do not fit. UnavailableError: the backend cannot run.

    >>> one = torch.ones(1)
    >>> affine_tangent(torch.tensor([[2.0]]), torch.tensor([[5.0]]), 3 * one, one, one, 0 * one)  # 3·2 + 1, 3·5 + 1·2 + 0
    (tensor([[7.]]), tensor([[17.]]))
    """
    where = "affine_tangent"
    check_choice(where, "backend", backend, ("auto", "reference", "cpp"))
    factors = (scale, shift, dscale, dshift)
    if x.dim() < 2 or any(tuple(f.shape) != (x.shape[1],) for f in factors) or (dx is not None and dx.shape != x.shape):
        raise InputError(
            f"{where}: expected x [B, C, ...], dx alike, and scale, shift, dscale and dshift of shape [C]; got "
            f"{list(x.shape)}, {None if dx is None else list(dx.shape)} and {[list(f.shape) for f in factors]}. Put the "
            "channels second."
        )
    tensors = [x, *factors] if dx is None else [x, dx, *factors]
    plain = all(t.device.type == "cpu" and t.is_contiguous() and t.dtype == x.dtype for t in tensors)
    able = plain and x.dtype in (torch.float32, torch.float64)
    if backend == "cpp" and not able:
        raise InputError(
            f"{where}: expected contiguous float32 or float64 tensors on the CPU with backend='cpp'; got {x.dtype} on "
            f"{x.device}. Use backend='auto'."
        )
    if backend == "reference" or not able or (backend == "auto" and not dispatch.has_extension()):
        return reference(x, dx, *factors)
    y, dy = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        view = dispatch.storage_view
        three = (len(x), x.shape[1], -1)
        dispatch.extension().affine_tangent(
            view(x.view(three)),
            None if dx is None else view(dx.view(three)),
            *(view(f) for f in factors),
            view(y.view(three)),
            view(dy.view(three)),
            threads=torch.get_num_threads(),
        )
    return y, dy


def reference(
    x: Tensor, dx: Tensor | None, scale: Tensor, shift: Tensor, dscale: Tensor, dshift: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition in plain torch."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    a, c, da, dc = (f.view(shape) for f in (scale, shift, dscale, dshift))
    dy = torch.addcmul(dc, x, da)
    return torch.addcmul(c, x, a), dy if dx is None else dy.addcmul_(dx, a)
