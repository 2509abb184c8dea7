"""layer_norm_sq: the squared norm of every sample's gradient at one linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registry import check_choice
from . import _head, _layer
from ._layer import Layer, RouteChoice

ROUTES = ("auto", "gram", "direct")
TOKEN_TILE = 128
"""Rows of the Gram matrices that the reference holds at once; the tiles below the diagonal are not computed."""


def select_norm_route(*, tokens: int, inputs: int, outputs: int, groups: int = 1, route: str = "auto") -> RouteChoice:
    """Choose how `layer_norm_sq` computes, and say why.

    The Gram matrices of the tokens cost T²(d_in + d_out) multiplications, the gradient T·d_in·d_out, so gram is chosen where

        T < d_in·d_out/(d_in + d_out)        (d_in, d_out of one group)

    and for one token, where it is the product of two squared norms.

    Args:
        tokens: T. inputs, outputs: d_in and d_out of the layer. groups: of the layer.
        route: "auto", or the name of a route, which is then used.

    Returns:
        The chosen name ("gram" or "direct") and the reason.

    Raises:
        InputError: an unknown route.

    >>> select_norm_route(tokens=128, inputs=384, outputs=1536).name
    'gram'
    >>> select_norm_route(tokens=1024, inputs=576, outputs=64).name
    'direct'
    """
    check_choice("layer_norm_sq", "route", route, ROUTES)
    if route != "auto":
        return RouteChoice(route, "asked for by name")
    if tokens <= 1:
        return RouteChoice("gram", "one token: the product of two squared norms")
    limit = (inputs / groups) * (outputs / groups) / (inputs / groups + outputs / groups)
    about = f"T={tokens} against d_in·d_out/(d_in + d_out) = {limit:.4g}"
    return RouteChoice("gram" if tokens < limit else "direct", about)


def layer_norm_sq(
    a: Any,
    b: Any,
    *,
    include_bias: bool,
    include_weight: bool = True,
    groups: int = 1,
    route: str = "auto",
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Squared norm σ_i = ‖Σ_t b_it a_itᵀ‖² + ‖Σ_t b_it‖² of every sample's gradient at one linear layer, without storing it.

        gram     σ_i = Σ_{t,t'} (a_it·a_it' + 1)(b_it·b_it')        2·B·T²(d_in + d_out) flops, half of that by symmetry
        direct   σ_i = ‖Σ_t b_it a_itᵀ‖²_F + ‖Σ_t b_it‖²            2·B·T·d_in·d_out, a tile of the gradient at a time

    where "+ 1" and the second term are the bias. `select_norm_route` tells which is taken. Where the tokens' gradients cancel,
    direct loses fewer digits. Norms of a layer that is used several times do not add up: concatenate its tokens.

    Args:
        a, b, groups, backend: as in `layer_dot`. out: receives the norms [B].
        include_bias, include_weight: whether the bias and the weight are scored parameters.
        route: "auto", "gram" or "direct".

    Returns:
        Squared norms [B] ≥ 0, float64 where a or b is, else float32. NaN or infinity in a sample makes its own norm NaN or
        infinite. Bits: as in `layer_dot`.

    Raises:
        InputError, InputTypeError: shapes, dtypes or the route do not fit. UnavailableError: the backend cannot run.

    Source: the "ghost norm" of arXiv 2009.03106 and, for convolutions, 2205.10683; T = 1 is arXiv 1510.01799.

    >>> a = torch.tensor([[3.0, 4.0]])
    >>> layer_norm_sq(a, torch.tensor([[2.0]]), include_bias=True).tolist()  # 2²·(3² + 4² + 1)
    [104.0]
    """
    where = "layer_norm_sq"
    args = _layer.layer(where, a, b, groups)
    samples, tokens, _, _ = args.sizes
    widths = {"inputs": args.inputs.shape[2], "outputs": args.cotangents.shape[2]}
    choice = select_norm_route(tokens=tokens, groups=groups, route=route, **widths)
    out = _layer.output(where, out, args, (samples,))
    engine = _layer.select_backend(where, backend, args.inputs.device)
    if tokens == 0 or not include_weight:
        return torch.sum(args.summed_cotangents().square().mul_(float(include_bias)), dim=1, out=out)
    if out.numel() == 0:
        return out
    if engine.name == "triton":
        dispatch.triton_kernels(where).layer_norm_sq(
            *args[:2], out, groups=groups, include_bias=include_bias, route=choice.name
        )
    else:
        reference(args, out, include_bias=include_bias, route=choice.name)
    return out.clamp_(min=0)  # the Gram form may round below zero where the tokens cancel


def reference(args: Layer, out: Tensor, *, include_bias: bool, route: str) -> Tensor:
    """The definition by the library's products, in blocks that stay in the cache: fills `out` [B]."""
    out.zero_()
    for group in range(args.groups):
        if route == "direct":
            for samples, _, g in _layer.gradient_blocks(args, group):
                out[samples] += g.square_().flatten(1).sum(dim=1)
        else:
            _gram(*args.group(group), out)
    if include_bias:
        out += args.summed_cotangents().square().sum(dim=1)
    return out


def _gram(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Add Σ_{t,t'} (a_t·a_t')(b_t·b_t') of one group, by tiles on and above the diagonal."""
    samples, tokens, _ = a.shape
    block = max(1, min(64, _layer.PRODUCT_ELEMENTS // (2 * min(tokens, TOKEN_TILE) * tokens)))
    buffers = out.new_empty(2, min(block, samples) * min(tokens, TOKEN_TILE) * tokens)
    for some in _head.row_blocks(samples, block):
        x, y = a[some].to(out.dtype), b[some].to(out.dtype)
        if tokens == 1:
            out[some] += x.square().sum(dim=(1, 2)) * y.square().sum(dim=(1, 2))
            continue
        for tile in _head.row_blocks(tokens, TOKEN_TILE):
            rows = tile.stop - tile.start
            products = []
            for value, buffer in zip((x, y), buffers, strict=True):
                into = buffer[: len(value) * rows * (tokens - tile.start)].view(len(value), rows, -1)
                products.append(torch.bmm(value[:, tile], value[:, tile.start :].transpose(1, 2), out=into))
            both = products[0].mul_(products[1])
            out[some] += both[:, :, :rows].sum(dim=(1, 2)) + 2 * both[:, :, rows:].sum(dim=(1, 2))
