"""The training loss as a function of the scored parameters of a whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.ghost import GhostEngine
from ..engines.network import Network, Parameters
from ..engines.outputs import rows_of, samples
from ..errors import InputError, InputTypeError, UnavailableError
from ..losses import Loss
from .base import Basis, Gradients, Problem, parts_of
from .kronecker_layers import kronecker_layers, second_moments
from .network_gradients import NetworkGradients
from .products import curvature_products
from .sampled import GivenCotangent, sampled_cotangents

Blocks = Callable[[], Iterator[tuple[int, Any, Any]]]
"""Gives one pass over (first row, inputs, prepared labels) of the batches of the training data."""
First = Callable[[], tuple[Any, Any]]
"""Gives (inputs, prepared labels) of the first batch."""
FLOAT32_ROUNDING = 1e-6
"""As `Problem.rounding`, of products in float32."""
EXACT_TRACE = 64
"""Parameters up to which the trace is the sum of all diagonal entries."""
FEWEST_PROBES, MOST_PROBES = 8, 64
TRACE_ERROR = 0.05
"""Standard error of the trace, relative to it, at which no more probes are taken."""
SYMMETRY = 4.0
"""Roots of eps by which ⟨u, Hv⟩ and ⟨v, Hu⟩ may differ, of the norm of the products: far more than rounding."""
DENSE_ROWS = 64
"""Rows of the Hessian that one pass makes."""


class NetworkProblem(Problem):
    """The training loss of a network at a point. The caller's model is never touched, and everything is computed in the
    model's own precision, also where scores are asked for in "bf16".

    Memory: a few vectors of P numbers, the activations of a batch with their derivatives, and of one layer the patches or
    gradients of a few samples; never [B, P].

    Args:
        network: what is scored.
        blocks: the training data. first: its first batch, which `blocks` gives again; None: it can be read any number of times.
        at: parameters and buffers in place of the model's own.
    """

    def __init__(self, network: Network, blocks: Blocks, at: Parameters, first: First | None = None) -> None:
        self.network = network
        self.where, self.at, self._blocks = network.where, at, blocks
        self.device, self.dtype = network.device, torch.float64
        self.parts = parts_of({name: value.numel() for name, value in network.parameters.items()})
        self._samples: int | None = None
        inputs, labels = next(self._batches())[1:] if first is None else first()
        self.network = copy.copy(network)  # which has learnt from its first batch what its outputs are
        self.network.precision = None
        self.engine = GhostEngine(self.network)
        self._checked: set[bool] = set()
        self._layers = kronecker_layers(self.engine.plan(inputs, labels), self.parts)
        self.layers = tuple(layer.block for layer in self._layers)
        self.convex = isinstance(network.model, nn.Linear) and isinstance(network.loss, Loss)
        self.l2 = 0.0
        if network.dtype != torch.float64:
            self.rounding = FLOAT32_ROUNDING
        self.penalised = torch.ones(self.size, dtype=torch.float64, device=self.device)
        for part in self.parts:
            if part.name.rpartition(".")[2] == "bias":
                self.penalised[part.place] = 0
        self._rest: tuple[tuple[bool, int], Tensor] | None = None

    @property
    def samples(self) -> int:
        if self._samples is None:
            for _ in self._batches():
                pass
        assert self._samples is not None
        return self._samples

    def _batches(self) -> Iterator[tuple[int, Any, Any]]:
        """One pass, whose samples are counted."""
        rows, counted = 0, 0
        for start, inputs, labels in self._blocks():
            count = samples(inputs) or 1
            rows += count
            counted += self.network.counted_samples(labels, count)
            yield start, inputs, labels
        if not rows and self._samples is None:
            raise InputError(f"{self.where}: expected at least one sample in train; it is empty, or can be read only once.")
        if self._samples not in (None, counted):
            raise InputError(
                f"{self.where}: expected train to give the same samples each time it is read, since a curvature needs several "
                f"passes; it gave {self._samples}, then {counted}. Pass a Dataset, or arrays."
            )
        self._samples = counted

    def hessian(self, v: Tensor, *, ggn: bool = False) -> Tensor:
        self._require_derivatives(ggn=ggn)
        out = torch.zeros(v.shape, dtype=torch.float64, device=self.device)
        for _, inputs, labels in self._batches():
            if ggn not in self._checked:
                self._require_symmetry(inputs, labels, ggn=ggn)
            out += curvature_products(self.network, self.at, inputs, labels, v, self.parts, ggn=ggn)
        return out.div_(max(1, self.samples))

    def trace(self, *, ggn: bool = False) -> float:
        """Exact up to 64 parameters. Of more Hutchinson's estimate, the mean of zᵀ∇²L z over vectors z of random signs of a
        fixed seed: at least 8 of them, a pass over the data each, then until its standard error is below 5 % of it, 64 at
        most."""
        if self.size <= EXACT_TRACE:
            return float(self.dense(ggn=ggn).trace())
        generator = torch.Generator().manual_seed(0)
        found: list[float] = []
        while len(found) < MOST_PROBES:
            z = torch.randint(0, 2, (1, self.size), generator=generator).to(self.device, torch.float64).mul_(2).sub_(1)
            found.append(float((z * self.hessian(z, ggn=ggn)).sum()))
            mean = sum(found) / len(found)
            if len(found) >= FEWEST_PROBES:
                spread = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1) / len(found))
                if spread <= TRACE_ERROR * abs(mean):
                    break
        return mean

    def dense(self, *, ggn: bool = False) -> Tensor:
        """A row a parameter: for few of them."""
        out = torch.empty(self.size, self.size, dtype=torch.float64, device=self.device)
        for first in self.passes.over("rows of the Hessian", (out,), range(0, self.size, DENSE_ROWS), lambda _: 1):
            rows = torch.arange(first, min(first + DENSE_ROWS, self.size), device=self.device)
            unit = torch.zeros(len(rows), self.size, dtype=torch.float64, device=self.device)
            unit[torch.arange(len(rows), device=self.device), rows] = 1
            out[rows] = self.hessian(unit, ggn=ggn)
        return out

    def gradients(self) -> Iterator[Gradients]:
        for _, inputs, labels in self._batches():
            yield self.block(inputs, labels)

    def block(self, inputs: Any, labels: Any) -> NetworkGradients:
        return self._gradients(self.engine, inputs, labels)

    def covariances(self, *, empirical: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
        found = [
            tuple(torch.zeros(n, n, dtype=torch.float64, device=self.device) for n in (block.rows, block.columns))
            for block in self.layers
        ]
        sums = [matrix for pair in found for matrix in pair]
        for gradients in self._fisher("covariances", sums, empirical=empirical, seed=seed):
            for index, layer in enumerate(self._layers):
                calls = gradients.matrix(layer) if layer.group == 0 else None
                for _, a, b in () if calls is None else calls.positions():
                    groups = calls.of_groups(a, b, ones=layer.bias is not None)  # type: ignore[union-attr]
                    for (outputs, inputs), (x, y) in zip(found[index:], groups, strict=False):
                        outputs += (y.flatten(0, 1).T @ y.flatten(0, 1)).to(outputs)
                        inputs += (x.flatten(0, 1).T @ x.flatten(0, 1)).to(inputs)
        return [(outputs.div_(self.samples), inputs.div_(self.samples)) for outputs, inputs in found]

    def second_moments(self, bases: Sequence[Basis], *, empirical: bool, seed: int) -> list[Tensor]:
        """The moments of the other parameters are taken in the same pass and kept for `rest_moments`."""
        found = [torch.zeros(block.rows, block.columns, dtype=torch.float64, device=self.device) for block in self.layers]
        rest = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for gradients in self._fisher("second moments", [*found, rest], empirical=empirical, seed=seed):
            for index, layer in enumerate(self._layers):
                calls = gradients.matrix(layer) if layer.group == 0 else None
                for _, a, b in () if calls is None else calls.positions():
                    groups = calls.of_groups(a, b, ones=layer.bias is not None)  # type: ignore[union-attr]
                    for moments, basis, (x, y) in zip(found[index:], bases[index:], groups, strict=False):
                        moments += second_moments(x, y, basis)
            gradients.moments(rest)
        self._rest = (empirical, seed), rest / self.samples
        return [moments.div_(self.samples) for moments in found]

    def rest_moments(self, *, empirical: bool, seed: int) -> Tensor:
        if self._rest is None or self._rest[0] != (empirical, seed):
            rest = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            for gradients in self._fisher("other moments", [rest], empirical=empirical, seed=seed):
                gradients.moments(rest)
            self._rest = (empirical, seed), rest / self.samples
        return self._rest[1]

    def _fisher(self, stage: str, sums: Sequence[Tensor], *, empirical: bool, seed: int) -> Iterator[NetworkGradients]:
        """The gradients of the batches at labels of the data, or at labels of the model's own, the same ones in each pass."""
        generator = torch.Generator().manual_seed(seed)
        engine = self.engine if empirical else self.engine.over(self.network.measured_by(GivenCotangent(), "sum"))
        for _, inputs, labels in self.passes.over(stage, sums, self._batches(), _rows, generator=generator):
            wanted = labels if empirical else sampled_cotangents(self.network, self.at, inputs, labels, generator)
            yield self._gradients(engine, inputs, wanted)

    def _gradients(self, engine: GhostEngine, inputs: Any, labels: Any) -> NetworkGradients:
        return NetworkGradients(engine, self.at, self.parts, self._layers, inputs, labels)

    def _require_symmetry(self, inputs: Any, labels: Any, *, ggn: bool) -> None:
        """Hold ⟨u, Hv⟩ to ⟨v, Hu⟩ on a few samples: what autograd differentiates once only drops out of the second derivative
        without a word."""
        self._checked.add(ggn)
        count = samples(inputs) or 1
        some = rows_of(inputs, slice(0, 2), count), rows_of(labels, slice(0, 2), count)
        pair = torch.randn(2, self.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(self.device)
        products = curvature_products(self.network, self.at, *some, pair, self.parts, ggn=ggn)
        one, other = float((pair[0] * products[1]).sum()), float((pair[1] * products[0]).sum())
        allowed = SYMMETRY * torch.finfo(self.network.dtype).eps ** 0.5 * float(products.norm(dim=1).max())
        if not abs(one - other) <= allowed and math.isfinite(one) and math.isfinite(other):
            raise UnavailableError(
                f"{self.where}: expected products with the Hessian that are symmetric; ⟨u, Hv⟩ is {one:.6g} and ⟨v, Hu⟩ "
                f"{other:.6g}, so a function of the network has a gradient that is not differentiated again. Use EKFAC or "
                "DataInf, which need first derivatives only."
            )

    def _require_derivatives(self, *, ggn: bool) -> None:
        if ggn and not isinstance(self.network.loss, Loss):
            raise InputError(
                f"{self.where}: expected a loss of ipfast.losses for the Gauss-Newton matrix, which needs its second "
                "derivative in the logits; got a callable. Leave ggn out."
            )
        narrow = next((n for n, v in self.network.parameters.items() if v.dtype in (torch.float16, torch.bfloat16)), None)
        if narrow is not None:
            raise InputTypeError(
                f"{self.where}: expected parameters in float32 or float64 for products with the Hessian; {narrow} is "
                f"{self.network.parameters[narrow].dtype}. Convert the model with model.float(), or use EKFAC or DataInf."
            )


def _rows(batch: tuple[int, Any, Any]) -> int:
    return samples(batch[1]) or 1
