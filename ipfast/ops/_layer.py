"""What layer_dot and layer_norm_sq share: the inputs and cotangents of a linear layer, their checks, and the block sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..checks import positive_integer
from ..dispatch import BackendChoice
from ..errors import InputError, InputTypeError, UnavailableError
from . import _head

PRODUCT_ELEMENTS = 2**19
"""Elements of a product over tokens that the reference holds at once: 2 MiB of float32 (measured, as is the next)."""
GRADIENT_ELEMENTS = 2**21
"""Elements of the gradients that it holds at once: 8 MiB of float32, since longer ones make better products."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RouteChoice:
    """A route of a layer operation and the reason for it."""

    name: str
    reason: str


class Layer(NamedTuple):
    """Checked arguments, on one device; any strides."""

    inputs: Tensor  # a [B, T, d_in]
    cotangents: Tensor  # b [B, T, d_out]
    groups: int
    dtype: torch.dtype  # of the computation: float64 or float32

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, T, and the inputs and outputs of one group."""
        samples, tokens, width = self.inputs.shape
        return samples, tokens, width // self.groups, self.cotangents.shape[2] // self.groups

    def group(self, index: int) -> tuple[Tensor, Tensor]:
        """(a, b) of one group, views."""
        _, _, inputs, outputs = self.sizes
        return self.inputs.narrow(2, index * inputs, inputs), self.cotangents.narrow(2, index * outputs, outputs)

    def summed_cotangents(self) -> Tensor:
        """The gradient of the bias: Σ_t b_it [B, d_out]."""
        return self.cotangents.sum(dim=1, dtype=self.dtype)


def layer(where: str, a: Any, b: Any, groups: int) -> Layer:
    """Check inputs and cotangents; [B, d] becomes [B, 1, d]."""
    inputs, cotangents = _rows(where, "a", a), _rows(where, "b", b)
    if inputs.dim() != cotangents.dim() or inputs.shape[:-1] != cotangents.shape[:-1]:
        raise InputError(
            f"{where}: expected a and b to have the same samples and tokens; got {list(inputs.shape)} and "
            f"{list(cotangents.shape)}. Flatten the positions of images and sequences to one dimension in both."
        )
    if inputs.device != cotangents.device:
        raise InputError(
            f"{where}: expected a and b on one device; got {inputs.device} and {cotangents.device}. Move b with .to(a.device)."
        )
    groups = positive_integer(where, "groups", groups)
    for name, value in (("a", inputs), ("b", cotangents)):
        if value.shape[-1] == 0 or value.shape[-1] % groups:
            raise InputError(
                f"{where}: expected {name} of a width that {groups} groups divide; got {list(value.shape)}. The channels of a "
                "group lie side by side, as those of a grouped convolution."
            )
    double = torch.float64 in (inputs.dtype, cotangents.dtype)
    if inputs.dim() == 2:
        inputs, cotangents = inputs[:, None], cotangents[:, None]
    return Layer(inputs, cotangents, groups, torch.float64 if double else torch.float32)


def _rows(where: str, argument: str, value: Any) -> Tensor:
    result = _head.tensor(where, argument, value)
    if result.dim() not in (2, 3):
        raise InputError(
            f"{where}: expected {argument} of shape [B, T, d] or [B, d]; got {list(result.shape)}. Flatten the positions of "
            "images and sequences to one dimension."
        )
    if result.dtype not in _FLOATS:
        raise InputTypeError(f"{where}: expected floating-point {argument}; got {result.dtype}. Convert it with .float().")
    return result


def output(where: str, out: Tensor | None, like: Layer, shape: tuple[int, ...]) -> Tensor:
    """The array that receives the result."""
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.inputs.device)
    if tuple(out.shape) != shape or out.dtype != like.dtype or out.device != like.inputs.device or not out.is_contiguous():
        raise InputError(
            f"{where}: expected out to be a contiguous {like.dtype} tensor of shape {list(shape)} on {like.inputs.device}; got "
            f"{out.dtype} {list(out.shape)} on {out.device}."
        )
    return out


def select_backend(where: str, backend: str, device: torch.device) -> BackendChoice:
    """As dispatch.select_backend, for operations without a C++ kernel."""
    if backend == "cpp":
        raise UnavailableError(
            f"{where}: expected a backend that has this operation; got backend='cpp', where all the work is in matrix "
            "products, which torch's library takes at the processor's speed. Use backend='auto' or 'reference'."
        )
    choice = dispatch.select_backend(backend, device=device)
    if choice.name == "cpp":
        return BackendChoice("reference", "on the CPU the work is in the library's matrix products")
    return choice


def blocks(samples: int, tokens: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Cut [samples, tokens] into blocks of about `rows`: several whole samples, or a part of one."""
    for sample in _head.row_blocks(samples, max(1, rows // tokens)):
        for token in _head.row_blocks(tokens, max(rows, 1)):
            yield sample, token


class GradientTiles(NamedTuple):
    """How the gradients Σ_t b_t a_tᵀ are cut: tiles of `outputs` rows, of `samples` samples at once."""

    samples: int
    outputs: int


def gradient_tiles(like: Layer) -> GradientTiles:
    """At least 8 samples, so that a tile of a query is fetched for all of them, and rows in sixteens, as products like them."""
    _, tokens, inputs, outputs = like.sizes
    samples = min(max(GRADIENT_ELEMENTS // (inputs * outputs), 8), 64)
    if any(value.dtype != like.dtype for value in (like.inputs, like.cotangents)):
        # Narrow storage is converted a block at a time.
        samples = max(1, min(samples, GRADIENT_ELEMENTS // (tokens * (inputs + outputs))))
    parts = -(-samples * inputs * outputs // GRADIENT_ELEMENTS)
    return GradientTiles(samples, -(-outputs // (16 * parts)) * 16)


def gradient_blocks(like: Layer, index: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """(samples, outputs, their part of the gradients [n, o, d_in]) of a group; the buffer is used again for the next block."""
    a, b = like.group(index)
    samples, _, inputs, outputs = like.sizes
    tiles = gradient_tiles(like)
    buffer = a.new_empty(min(tiles.samples, samples) * min(tiles.outputs, outputs) * inputs, dtype=like.dtype)
    for block in _head.row_blocks(samples, tiles.samples):
        x, y = a[block].to(like.dtype), b[block].to(like.dtype).transpose(1, 2)
        for tile in _head.row_blocks(outputs, tiles.outputs):
            g = buffer[: len(x) * (tile.stop - tile.start) * inputs].view(len(x), -1, inputs)
            yield block, tile, torch.bmm(y[:, tile], x, out=g)
