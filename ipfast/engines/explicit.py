"""The explicit engine: per-sample gradients, materialised. What the others are measured against; never chosen by "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputTypeError
from .network import Network, Parameters, gradients_of
from .outputs import rows_of, samples
from .running import forward_differentiable


class ExplicitEngine:
    """⟨q, ∇ℓ_i⟩ and ‖∇ℓ_i‖² from the gradients [B, P] of a batch.

    Args:
        network: the losses as a function of the scored parameters.
        loop: one backward pass a sample; False: torch.func.vmap of them; None: vmap for networks that it takes, else the loop.
    """

    name = "explicit"

    def __init__(self, network: Network, *, loop: bool | None = None) -> None:
        self.network, self.loop = network, loop

    def gradients(self, inputs: Any, labels: Any, *, at: Parameters | None = None) -> dict[str, Tensor]:
        """∇ℓ_i by parameter name, each [B, *shape]."""
        if not self.loop:
            try:
                return self._at_once(inputs, labels, at or {})
            except torch.OutOfMemoryError:
                raise
            # vmap takes no control flow that depends on data, as in attention masks of Hugging Face.
            except (RuntimeError, InputTypeError):
                if self.loop is not None:
                    raise
                self.loop = True
        return self._one_by_one(inputs, labels, at or {})

    def _at_once(self, inputs: Any, labels: Any, at: Parameters) -> dict[str, Tensor]:
        network, count = self.network, samples(inputs) or 1
        dims = _sample_dims(inputs, count), _sample_dims(labels, count)
        theta = {**network.every(), **at}
        scored = {name: theta.pop(name) for name in network.parameters}

        def one(parameters: dict[str, Tensor], sample: Any, label: Any) -> Tensor:
            loss: Tensor = network.losses({**theta, **parameters}, *map(_batch_of_one, (sample, label), dims))[0]
            return loss

        with forward_differentiable(network.structure):
            made: dict[str, Tensor] = torch.func.vmap(torch.func.grad(one), in_dims=(None, *dims))(scored, inputs, labels)
        return {name: value.detach() for name, value in made.items()}

    def _one_by_one(self, inputs: Any, labels: Any, at: Parameters) -> dict[str, Tensor]:
        network, count = self.network, samples(inputs) or 1
        theta = {**network.every(), **at}
        leaves = {name: theta.pop(name).detach().requires_grad_() for name in network.parameters}
        rows = []
        with forward_differentiable(network.structure), torch.enable_grad():
            for row in range(count):
                sample = slice(row, row + 1)
                loss = network.losses({**theta, **leaves}, rows_of(inputs, sample, count), rows_of(labels, sample, count))
                found = gradients_of(loss.sum(), list(leaves.values()))
                pairs = zip(found, leaves.values(), strict=True)
                rows.append([torch.zeros_like(leaf) if g is None else g.to_dense() for g, leaf in pairs])
        return {name: torch.stack(column) for name, column in zip(leaves, zip(*rows, strict=True), strict=True)}

    def dot(self, inputs: Any, labels: Any, queries: Mapping[str, Tensor], *, at: Parameters | None = None) -> Tensor:
        """Scores [B, Q] of a batch; arguments as those of ForwardEngine.dot."""
        gradients = self.gradients(inputs, labels, at=at)
        parts = [_rows(gradients[name]) @ _rows(q.to(gradients[name])).T for name, q in queries.items()]
        return torch.stack(parts).sum(dim=0)

    def norm_sq(self, inputs: Any, labels: Any, *, at: Parameters | None = None) -> Tensor:
        """‖∇ℓ_i‖² [B]"""
        gradients = self.gradients(inputs, labels, at=at)
        return torch.stack([_rows(g).square().sum(dim=1) for g in gradients.values()]).sum(dim=0)


def _rows(value: Tensor) -> Tensor:
    """[B, P] of [B, *shape], where the parameter may be a number."""
    return value.reshape(len(value), -1)


def _batch_of_one(value: Any, dims: Any) -> Any:
    """A sample as a batch; what belongs to all samples, whose dim is None, stays as it is."""
    if isinstance(value, Tensor):
        return value if dims is None else value[None]
    if isinstance(value, dict):
        return {key: _batch_of_one(item, dims[key]) for key, item in value.items()}
    return tuple(map(_batch_of_one, value, dims)) if isinstance(value, tuple) else value


def _sample_dims(value: Any, count: int) -> Any:
    """in_dims of vmap: the first dimension of every tensor of `count` rows."""
    if isinstance(value, Tensor):
        return 0 if value.dim() and len(value) == count else None
    if isinstance(value, dict):
        return {key: _sample_dims(item, count) for key, item in value.items()}
    return tuple(_sample_dims(item, count) for item in value) if isinstance(value, tuple) else None
