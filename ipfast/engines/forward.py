"""The forward engine: scores as derivatives along the query, from one forward pass and no backward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..errors import UnavailableError
from ..tangents import TangentRules, dual, parts
from .network import Network, Parameters
from .running import forward_differentiable

FORWARD_AD = re.compile(r"forward (mode )?AD")
"""In torch's messages of functions that have no forward derivative."""
MIXED = re.compile(r"dtype|scalar type")
"""In those of functions that take no numbers of two dtypes."""


class ForwardEngine:
    """⟨q, ∇ℓ_i⟩ = d/dε ℓ_i(θ + ε q) at ε = 0, in one forward-mode pass.

    No gradient is formed, no activation is stored, and nothing is differentiated before the first layer that has a scored
    parameter. Cost: three products where inference takes one, for each query.

    Args:
        network: the losses as a function of the scored parameters.
    """

    name = "forward"

    def __init__(self, network: Network) -> None:
        self.network = network

    def dot(self, inputs: Any, labels: Any, queries: Mapping[str, Tensor], *, at: Parameters | None = None) -> Tensor:
        """Scores [B, Q] of a batch.

        Args:
            inputs, labels: of B samples, where the model is.
            queries: q for each scored parameter, or for some of them, each [Q, *shape].
            at: parameters and buffers θ_t in place of the model's own.

        Raises:
            UnavailableError: a function of the network has no forward derivative.
        """
        count = len(next(iter(queries.values())))
        columns = [
            self._pass(inputs, labels, {name: q[index] for name, q in queries.items()}, at or {}) for index in range(count)
        ]
        return torch.stack(columns, dim=1)

    def _pass(self, inputs: Any, labels: Any, query: Mapping[str, Tensor], at: Parameters) -> Tensor:
        network = self.network
        # Nothing requires gradients, so that none are recorded; enabled, they tell where the network itself disables them.
        with (
            torch.inference_mode(False),  # in which there are no forward derivatives either
            torch.enable_grad(),
            torch.autocast(network.device.type, enabled=False),
            forward_ad.dual_level(),
            forward_differentiable(network.structure),
        ):
            theta = {**network.every(), **at}
            theta |= {name: dual(theta[name], direction.to(theta[name])) for name, direction in query.items()}
            try:
                with TangentRules(torch.bfloat16 if network.precision == "bf16" else None):
                    losses = network.losses(theta, inputs, labels, autocast=False)
            except (RuntimeError, ValueError) as error:  # NotImplementedError is one
                if network.precision == "bf16" and MIXED.search(str(error)) is not None:
                    raise UnavailableError(
                        f"{network.where}, engine='forward': expected functions that take products in bfloat16 beside numbers "
                        f"in float32, with precision='bf16'; {str(error).splitlines()[0]}. Leave precision out, or use "
                        "engine='explicit'."
                    ) from error
                if FORWARD_AD.search(str(error)) is None:  # the model's own
                    raise
                raise UnavailableError(
                    f"{network.where}, engine='forward': expected functions with a forward derivative; "
                    f"{str(error).splitlines()[0]} Use engine='ghost'."
                ) from error
            value, tangent = parts(losses)
            return torch.zeros_like(value) if tangent is None else tangent.clone()
