"""layer_dot: the inner product of every sample's gradient at one linear layer with one query or several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import InputError
from ..registry import check_choice
from . import _head, _layer
from ._layer import Layer, RouteChoice

ROUTES = ("auto", "contract", "direct")
GRADIENT_COST = 9.0
"""What writing and reading back one gradient costs on the CPU, in units of one product of its size (measured)."""
QUERY_COST = 2.2
"""What its product with a query costs, in the same units (measured): its few columns feed the processor badly."""
FEW_TOKENS = 64
"""Tokens below which inputs [B, d_in, T] are copied, rather than multiplied as they lie: their products would be too narrow."""


def select_dot_route(*, tokens: int, queries: int, per_token: bool = False, route: str = "auto") -> RouteChoice:
    """Choose how `layer_dot` computes, and say why.

    With T tokens, Q queries and products of d_in·d_out multiplications as the unit, a sample costs

        contract   Q·T                      b_tᵀ (V_q a_t) for every token and query
        direct     T + γ + κ·Q              the gradient Σ_t b_t a_tᵀ once, then a product of it with every V_q

    where γ = GRADIENT_COST is for holding the gradient in the cache and κ = QUERY_COST for a product that is bound by it.
    It does not depend on the number of samples. With one query or one token it is always contract.

    Args:
        tokens: T. queries: Q. per_token: whether a score for each token is asked for, which only contract gives.
        route: "auto", or the name of a route, which is then used or refused but never replaced.

    Returns:
        The chosen name ("contract" or "direct") and the reason.

    Raises:
        InputError: an unknown route, or "direct" with per_token.

    >>> select_dot_route(tokens=128, queries=1).name
    'contract'
    >>> select_dot_route(tokens=128, queries=8).name
    'direct'
    """
    where = "layer_dot"
    check_choice(where, "route", route, ROUTES)
    if per_token and route == "direct":
        raise InputError(
            f"{where}: expected route='contract' or 'auto' with per_token=True; got 'direct', which sums over the tokens first."
        )
    if route != "auto":
        return RouteChoice(route, "asked for by name")
    if per_token:
        return RouteChoice("contract", "a score for each token needs a product for each")
    contract, direct = float(queries * tokens), tokens + GRADIENT_COST + QUERY_COST * queries
    about = f"{contract:g} products of one token for contract, {direct:g} for direct, at T={tokens}, Q={queries}"
    return RouteChoice("direct" if direct < contract else "contract", about)


def layer_dot(
    a: Any,
    b: Any,
    query: Any,
    query_bias: Any = None,
    *,
    groups: int = 1,
    per_token: bool = False,
    route: str = "auto",
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Score s_iq = ⟨V_q, g_i⟩ + ⟨V_bq, Σ_t b_it⟩ of every sample at one linear layer, without storing its gradient g_i.

    With the layer's inputs a and the cotangents b = ∂(Σ_i ℓ_i)/∂(outputs), the gradient of its weight is g_i = Σ_t b_it a_itᵀ:

        contract   s_iq = Σ_t b_itᵀ (V_q a_it + V_bq)       2·Q·B·T·d_in·d_out flops; V a is held a block at a time
        direct     s_iq = ⟨V_q, Σ_t b_it a_itᵀ⟩ + …          2·B·T·d_in·d_out + 2·Q·B·d_in·d_out; g is held a tile at a time

    `select_dot_route` tells which is taken. A convolution is such a layer: a_t are its patches (torch's unfold, transposed),
    b_t its positions, V its kernel [C_out, C_in/G·k²]. Of a layer that is used several times the scores add up.

    Args:
        a: inputs [B, T, d_in] or, for T = 1, [B, d_in]; any strides, so that the transposed [B, d_in, T] of an image needs no
            copy. float64 (computed in float64) or float32, float16, bfloat16 (computed in float32).
        b: cotangents of the SUM of the losses, [B, T, d_out] or [B, d_out].
        query: V [d_out, d_in/G] or [Q, d_out, d_in/G], as the layer stores its weight.
        query_bias: V_b [d_out] or [Q, d_out], or None: the bias does not count.
        groups: G. The channels of a group lie side by side; outputs of group j see inputs of group j.
        per_token: a score for each token, b_itᵀ (V_q a_it + V_bq), instead of their sum.
        route: "auto", "contract" or "direct". backend: "auto", "reference" or "triton".
        out: receives the scores, contiguous, in the dtype of the computation.

    Returns:
        Scores [B], or [B, Q] where query has three dimensions; with per_token [B, T] or [B, T, Q] (for a of shape [B, d_in] as
        without it). float64 where a or b is, else float32. NaN or infinity in a sample makes its own scores NaN or infinite,
        and no other's. On a GPU each score has the same bits in any batch; the CPU's matrix products round by their size, so
        that there another batch size may differ by rounding.

    Raises:
        InputError, InputTypeError: shapes, dtypes or the route do not fit. UnavailableError: the backend cannot run.

    Source: the "ghost" contraction of per-sample gradients, as arXiv 2009.03106 uses it for norms; ⟨V, Σ b aᵀ⟩ = Σ bᵀ V a.

    >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one sample, two tokens
    >>> b = torch.tensor([[[1.0], [10.0]]])
    >>> layer_dot(a, b, torch.tensor([[1.0, -1.0]])).tolist()  # 1·(1 − 2) + 10·(3 − 4)
    [-11.0]
    """
    where = "layer_dot"
    args = _layer.layer(where, a, b, groups)
    samples, tokens, inputs, outputs = args.sizes
    v = _head.stacked(where, "query", query, outputs * groups, inputs, args.inputs.new_empty(0, dtype=args.dtype))
    vb = _head.stacked_vectors(where, "query_bias", query_bias, v)
    choice = select_dot_route(tokens=tokens, queries=len(v), per_token=per_token, route=route)
    rows = tuple(_head.tensor(where, "a", a).shape[:-1]) if per_token else (samples,)
    several = _head.tensor(where, "query", query).dim() == 3
    out = _layer.output(where, out, args, (*rows, len(v)) if several else rows)
    engine = _layer.select_backend(where, backend, args.inputs.device)
    if out.numel() == 0:
        return out
    if tokens == 0:
        return out.zero_()
    into = out.view(samples, tokens if per_token else 1, len(v))
    if engine.name == "triton":
        dispatch.triton_kernels(where).layer_dot(*args[:2], v, vb, into, groups=groups, route=choice.name)
    else:
        reference(args, v, vb, into, route=choice.name)
    return out


def reference(args: Layer, query: Tensor, query_bias: Tensor | None, out: Tensor, *, route: str) -> Tensor:
    """The definition by the library's products, in blocks that stay in the cache: fills `out` [B, 1 or T, Q]."""
    out.zero_()
    outputs = args.sizes[3]
    for group in range(args.groups):
        v = query[:, group * outputs : (group + 1) * outputs]
        if route == "direct":
            for samples, tile, g in _layer.gradient_blocks(args, group):
                out[samples, 0].addmm_(g.flatten(1), v[:, tile].flatten(1).T)
        else:
            _contract(*args.group(group), v, out)
    if query_bias is not None:
        if out.shape[1] == 1:
            out[:, 0].addmm_(args.summed_cotangents(), query_bias.T)
        else:
            for block in _head.row_blocks(len(out), max(1, _layer.PRODUCT_ELEMENTS // args.cotangents[0].numel())):
                out[block] += args.cotangents[block].to(args.dtype) @ query_bias.T
    return out


def _contract(a: Tensor, b: Tensor, query: Tensor, out: Tensor) -> None:
    """Add Σ_t b_tᵀ (V a_t), or its terms, of one group."""
    samples, tokens, width = a.shape
    outputs = b.shape[2]
    # Products are laid out as the inputs are, unless there are too few tokens to make a matrix of.
    across = a.stride(2) != 1 and a.stride(1) == 1 and tokens >= FEW_TOKENS
    rows = max(_layer.PRODUCT_ELEMENTS // max(outputs, width if a.dtype != out.dtype else 1), 64)
    buffer = out.new_empty(min(rows, samples * tokens) * outputs)
    for sample, token in _layer.blocks(samples, tokens, rows):
        x, y = a[sample, token].to(out.dtype), b[sample, token].to(out.dtype)
        into = out[sample] if out.shape[1] == 1 else out[sample, token]
        u = buffer[: x.shape[0] * x.shape[1] * outputs]
        u = u.view(len(x), outputs, -1) if across else u.view(len(x), -1, outputs)
        for q, v in enumerate(query):
            _product(x, v, u, across)
            u.mul_(y.transpose(1, 2) if across else y)
            into[:, :, q] += u.flatten(1).sum(dim=1, keepdim=True) if out.shape[1] == 1 else u.sum(dim=1 if across else 2)


def _product(x: Tensor, v: Tensor, u: Tensor, across: bool) -> None:
    """u = x Vᵀ [n, t, d_out], or across: V xᵀ [n, d_out, t]."""
    if across:
        torch.bmm(v.expand(len(x), -1, -1), x.transpose(1, 2), out=u)
    elif x.stride(2) == 1 and x.stride(0) != x.shape[1] * x.stride(1) and min(x.shape[:2]) > 1:
        torch.bmm(x, v.T.expand(len(x), -1, -1), out=u)  # rows that do not follow each other from sample to sample
    else:
        torch.mm(x.flatten(0, 1), v.T, out=u.flatten(0, 1))
