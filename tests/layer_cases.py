"""Shapes, data and float64 truth of the operations on one linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ipfast import dispatch

ON_GPU = dispatch.has_triton() and torch.cuda.is_available()
LAYER_BACKENDS = ("triton",) if dispatch.interpreting() else ("reference", *(("triton",) if ON_GPU else ()))
"""As BACKENDS of tests/backends.py, for operations without a C++ kernel."""


@dataclass(frozen=True)
class LayerCase:
    """One shape: B samples of T tokens, a layer from d_in to d_out in G groups, Q queries."""

    name: str
    samples: int
    tokens: int
    inputs: int
    outputs: int
    groups: int = 1
    queries: int = 3

    def __str__(self) -> str:
        return self.name


LAYER_CASES = (
    LayerCase("aligned", 4, 32, 32, 64),
    LayerCase("prime", 3, 37, 41, 13),
    LayerCase("one_sample", 1, 19, 17, 5),
    LayerCase("one_token", 11, 1, 23, 7),
    LayerCase("one_input", 5, 7, 1, 3),
    LayerCase("one_output", 5, 7, 9, 1),
    LayerCase("one_query", 3, 11, 9, 6, queries=1),
    LayerCase("groups", 3, 13, 15, 9, groups=3),
    LayerCase("depthwise", 2, 9, 8, 8, groups=8),
    LayerCase("pieces", 2, 3, 5, 523, queries=2),  # more outputs than one program goes through
)
RAGGED = LAYER_CASES[1]
GROUPED = LAYER_CASES[7]


@dataclass(frozen=True)
class LayerData:
    """Arguments of layer_dot."""

    a: Tensor
    b: Tensor
    v: Tensor
    vb: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return self.a, self.b, self.v, self.vb


def layer_data(case: LayerCase, dtype: torch.dtype, seed: int = 0) -> LayerData:
    """Random data of a case; the values are exact in `dtype`, so every dtype has its own float64 truth."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    compute = torch.float64 if dtype == torch.float64 else torch.float32
    b, t, i, o, q = case.samples, case.tokens, case.inputs, case.outputs, case.queries
    return LayerData(
        normal(b, t, i).to(dtype),
        normal(b, t, o).to(dtype),
        normal(q, o, i // case.groups).to(compute),
        normal(q, o).to(compute),
    )


def gradients(a: Tensor, b: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(∂/∂W [B, d_out, d_in/G], ∂/∂bias [B, d_out]) in float64, by autograd through torch's grouped convolution, one by one."""
    weight = torch.zeros(b.shape[-1], a.shape[-1] // groups, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(b.shape[-1], dtype=torch.float64, requires_grad=True)
    rows = []
    for x, y in zip(a.double(), b.double(), strict=True):
        z = F.conv1d(x.T[None], weight, bias, groups=groups)  # [1, d_out, T]
        rows.append(torch.autograd.grad((z[0].T * y).sum(), [weight, bias]))
    if not rows:
        return weight.detach()[None, :, :, 0][:0], bias.detach()[None][:0]
    return torch.stack([w[:, :, 0] for w, _ in rows]), torch.stack([v for _, v in rows])


def true_dot(data: LayerData, groups: int = 1) -> Tensor:
    """⟨V_q, g_i⟩ + ⟨V_bq, Σ_t b_it⟩ [B, Q]."""
    g, gb = gradients(data.a, data.b, groups)
    return g.flatten(1) @ data.v.double().flatten(1).T + gb @ data.vb.double().T


def true_token_dot(data: LayerData, groups: int = 1) -> Tensor:
    """The same of every token alone [B, T, Q]: a token is a sample of one."""
    samples, tokens, _ = data.a.shape
    alone = LayerData(data.a.reshape(-1, 1, data.a.shape[2]), data.b.reshape(-1, 1, data.b.shape[2]), data.v, data.vb)
    return true_dot(alone, groups).view(samples, tokens, -1)


def true_norm(data: LayerData, groups: int = 1, *, weight: bool = True, bias: bool = True) -> Tensor:
    """‖g_i‖² + ‖Σ_t b_it‖² [B]."""
    g, gb = gradients(data.a, data.b, groups)
    return g.square().sum(dim=(1, 2)) * float(weight) + gb.square().sum(dim=1) * float(bias)


def plain_gradients(data: LayerData, groups: int = 1) -> Tensor:
    """g [B, d_out, d_in/G] by one einsum in the dtype of the computation: the tolerance rule's reference."""
    a, b = (x.to(data.v.dtype).unflatten(2, (groups, -1)) for x in (data.a, data.b))
    return torch.einsum("btgo,btgi->bgoi", b, a).flatten(1, 2)


def plain_dot(data: LayerData, groups: int = 1) -> Tensor:
    """[B, Q] in the dtype of the computation."""
    summed = data.b.to(data.v.dtype).sum(dim=1)
    return torch.einsum("boi,qoi->bq", plain_gradients(data, groups), data.v) + summed @ data.vb.T


def plain_norm(data: LayerData, groups: int = 1) -> Tensor:
    """[B] in the dtype of the computation."""
    return plain_gradients(data, groups).square().sum(dim=(1, 2)) + data.b.to(data.v.dtype).sum(dim=1).square().sum(dim=1)


def absolute(data: LayerData) -> LayerData:
    """The same with absolute values, whose score is Σ|x||y|."""
    return LayerData(*(x.double().abs() for x in data.arguments))


def norm_magnitude(data: LayerData, groups: int = 1) -> Tensor:
    """Σ_{t,t'} (|a_t|·|a_t'| + 1)(|b_t|·|b_t'|): what the Gram form adds up, no less than what the direct form does."""
    return true_norm(absolute(data), groups)


def on(name: str, operation: Callable[..., Tensor], *arguments: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    """The operation on a backend, on the GPU where Triton compiles for one."""
    if name != "triton" or dispatch.interpreting():
        return operation(*arguments, out=out, backend=name, **options)
    moved = (x.cuda() if isinstance(x, Tensor) else x for x in arguments)
    result = operation(*moved, out=None if out is None else out.cuda(), backend=name, **options).cpu()
    return result if out is None else out.copy_(result)
