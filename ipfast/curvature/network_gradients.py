"""The gradients of a batch of a whole network, layer by layer; what no layer's rule gives, a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.explicit import ExplicitEngine
from ..engines.ghost import Captured, GhostEngine
from ..engines.network import Parameters
from ..engines.outputs import rows_of, samples
from ..errors import InputError
from .base import Basis, Gradients, Part
from .kronecker_layers import KroneckerLayer, rotated_sum
from .layer_gradients import MatrixGradients, ParameterGradients, gradients_of_calls

DENSE_BYTES = 64 * 2**20
"""Gradients that are written out at once, or those of one sample."""


class NetworkGradients(Gradients):
    """g_i of a batch. One forward and one backward pass to the layers' outputs are made at once, and a and b of all layers are
    held; parameters that are used outside of their layers are differentiated a few samples at a time, when they are asked for.

    Args:
        engine: of the losses. at: the point. parts: the scored parameters. layers: those of EKFAC.
        inputs, labels: the batch.
    """

    def __init__(
        self,
        engine: GhostEngine,
        at: Parameters,
        parts: Sequence[Part],
        layers: Sequence[KroneckerLayer],
        inputs: Any,
        labels: Any,
    ) -> None:
        self.engine, self.at, self.parts, self.layers = engine, at, parts, layers
        self.inputs, self.labels, self.count = inputs, labels, samples(inputs) or 1
        calls: dict[str, list[tuple[Captured, str]]] = {}
        for call in engine.captured(inputs, labels, at=at):
            for short, full in call.names.items():
                calls.setdefault(full, []).append((call, short))
        self.known: dict[str, ParameterGradients] = {}
        rest = [part.name for part in parts if part.name in engine.plan(inputs, labels).remainder]
        for name, uses in calls.items():
            found = gradients_of_calls(uses)
            if found is None:
                rest.append(name)
            else:
                self.known[name] = found
        self._rest = ExplicitEngine(engine.network.only(rest)) if rest else None
        self._held: list[tuple[slice, dict[str, Tensor]]] | None = None

    def dots(self, v: Tensor) -> Tensor:
        out = torch.zeros(self.count, len(v), len(self.parts), dtype=torch.float64, device=v.device)
        for index, part in enumerate(self.parts):
            if part.name in self.known:
                shape = self.engine.network.parameters[part.name].shape
                out[:, :, index] = self.known[part.name].dots(v[:, part.place].reshape(len(v), *shape)).to(out)
        for rows, index, g in self._pieces():
            out[rows, :, index] = (g @ v[:, self.parts[index].place].to(g).T).to(out)
        return out

    def squares(self) -> Tensor:
        out = torch.zeros(self.count, len(self.parts), dtype=torch.float64, device=self.engine.network.device)
        for index, part in enumerate(self.parts):
            if part.name in self.known:
                out[:, index] = self.known[part.name].squares().to(out)
        for rows, index, g in self._pieces():
            out[rows, index] = g.square().sum(dim=1).to(out)
        return out

    def weighted(self, c: Tensor) -> Tensor:
        size = self.parts[-1].place.stop
        out = torch.zeros(c.shape[1], size, dtype=torch.float64, device=c.device)
        for index, part in enumerate(self.parts):
            if part.name in self.known:
                self.known[part.name].weighted(c[:, :, index], out[:, part.place])
        for rows, index, g in self._pieces():
            out[:, self.parts[index].place] += (c[rows, :, index].to(g).T @ g).to(out)
        return out

    def dense(self) -> Iterator[Tensor]:
        for _, found in _in_steps(ExplicitEngine(self.engine.network), self.inputs, self.labels, self.count, self.at):
            yield torch.cat([found[part.name].reshape(len(found[part.name]), -1).double() for part in self.parts], dim=1)

    def rotated(self, layer: int, basis: Basis, scale: Tensor) -> Tensor:
        about = self.layers[layer]
        out = torch.zeros(self.count, dtype=self.engine.network.dtype, device=self.engine.network.device)
        calls = self.matrix(about)
        for rows, a, b in () if calls is None else calls.positions():
            x, y = list(calls.of_groups(a, b, ones=about.bias is not None))[about.group]  # type: ignore[union-attr]
            out[rows] = rotated_sum(x, y, basis, scale).to(out)
        return out

    def scaled_squares(self, scale: Tensor) -> Tensor:
        out = torch.zeros(self.count, dtype=self.engine.network.dtype, device=self.engine.network.device)
        for part in self._loose():
            if part.name in self.known:
                out += self.known[part.name].scaled_squares(scale[part.place]).to(out)
        for rows, index, g in self._pieces():
            out[rows] += (g.square() @ scale[self.parts[index].place].to(g)).to(out)
        return out

    def moments(self, out: Tensor) -> None:
        """Add Σ_i g_i² of the parameters that belong to no Kronecker layer to out [P]."""
        for part in self._loose():
            if part.name in self.known:
                self.known[part.name].moments(out[part.place])
        for _, index, g in self._pieces():
            out[self.parts[index].place] += g.square().sum(dim=0).to(out)

    def matrix(self, layer: KroneckerLayer) -> MatrixGradients | None:
        """The calls of a Kronecker layer; None where the batch has none."""
        found = self.known.get(layer.weight)
        if isinstance(found, MatrixGradients):
            return found
        if self._rest is not None and layer.weight in self._rest.network.parameters:
            raise InputError(
                f"{self.engine.network.where}: expected layer {layer.name!r} to have the samples in its first dimension for "
                "EKFAC; one batch gives it something else. Leave its parameters out of params, or use DataInf."
            )
        return None

    def _loose(self) -> Iterator[Part]:
        taken = {name for layer in self.layers for name in (layer.weight, layer.bias)}
        return (part for part in self.parts if part.name not in taken)

    def _pieces(self) -> Iterator[tuple[slice, int, Tensor]]:
        """(samples, number of the part, g [n, P_l]) of the parameters without a rule."""
        if self._rest is None:
            return
        numbers = {part.name: index for index, part in enumerate(self.parts)}
        blocks = self._held or _in_steps(self._rest, self.inputs, self.labels, self.count, self.at)
        for rows, found in blocks:
            if rows == slice(0, self.count):  # all at once, so they fit
                self._held = [(rows, found)]
            for name, g in found.items():
                yield rows, numbers[name], g.reshape(len(g), -1)


def _in_steps(
    engine: ExplicitEngine, inputs: Any, labels: Any, count: int, at: Parameters
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """(samples, their gradients by name) of as many samples at once as DENSE_BYTES allow."""
    size = sum(value.numel() * value.element_size() for value in engine.network.parameters.values())
    step = max(1, DENSE_BYTES // size)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        yield rows, engine.gradients(rows_of(inputs, rows, count), rows_of(labels, rows, count), at=at)
