"""The train × validation matrix of gradient inner products, without a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .engines import Labels
from .errors import InputError
from .groups import Group, Validation, validation_rows
from .methods import Control, Method


class Pairwise:
    """⟨∇ℓ_i, ∇ℓ_v⟩ of a block with every validation sample, summed over the points of a group with their weights.

        ⟨∇ℓ_i, ∇ℓ_v⟩ = (r_i·r_v)(h_i·h_v + 1),   r = ∂ℓ/∂z;   without the 1 where the bias is not scored

    Args:
        group: the points. Of each the residuals of V are held, [M, C], and of all the features [M, d].
        validation: V, one set.
    """

    def __init__(self, group: Group, validation: Validation) -> None:
        engine = group.engine
        self.engine, self.weights = engine, [point.weight for point in group.points]
        self.heads = [(member.dense(), member.bias) for member in group.members]
        features: list[Tensor] = []
        residuals: list[list[Tensor]] = [[] for _ in self.heads]
        for block in validation_rows(validation, engine):
            h, y = block.features, block.labels
            if block.tokens is not None:
                raise InputError(
                    f"{engine.where}: expected aggregate=False with one row of features a sample; got token data, whose pairs "
                    "are not there yet. Pass val_groups=range(M) instead: each sequence is a query of its own."
                )
            features.append(h.clone())
            for found, head in zip(residuals, self.heads, strict=True):
                z = engine.logits(h, at=head)
                engine.require_finite("val", block.start, h, z)
                found.append(engine.loss.residual(z, y))
        if not features:
            raise InputError("score: expected at least one sample in val; it is empty.")
        self.features, self.residuals = torch.cat(features), [torch.cat(found) for found in residuals]

    def __call__(self, h: Tensor, y: Labels) -> Tensor:
        """[B, M] in the dtype of the computation."""
        assert isinstance(y, Tensor)
        dtype = torch.promote_types(self.residuals[0].dtype, torch.float64 if h.dtype == torch.float64 else torch.float32)
        products = h.to(dtype) @ self.features.to(dtype).T
        if self.engine.include_bias:
            products += 1
        total: Tensor | None = None
        for weight, head, residuals in zip(self.weights, self.heads, self.residuals, strict=True):
            part = self.engine.loss.residual(self.engine.logits(h, at=head), y).to(dtype) @ residuals.to(dtype).T
            part = part if weight == 1 else part.mul_(weight)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.mul_(products)


def require_pairs(where: str, method: Method | Control, given: dict[str, Any], params: Any) -> None:
    """Refuse what has no matrix of pairs, before any work."""
    superfluous = " and ".join(name for name, is_given in given.items() if is_given)
    if superfluous:
        raise InputError(
            f"{where}: expected aggregate=False with one validation set alone, since every sample of it is a query; got "
            f"{superfluous}. Leave it out."
        )
    if not isinstance(method, Method) or not method.needs_val:
        raise InputError(
            f"{where}: expected aggregate=False with a method that compares with validation data; got {method.name!r}. "
            "Leave it out."
        )
    if method.bent and params == "last":
        raise InputError(
            f"{where}: expected no curvature with aggregate=False at the last layer; got {method.name!r}. Pass val_groups, a "
            "number for each sample of val, whose queries are solved, or name the head in params."
        )
    points = method.points
    if points.combine != "mean" or points.deviation_floor is not None or getattr(points, "chain", False):
        raise InputError(
            f"{where}: expected aggregate=False with the mean of inner products of whole gradients; got {method.name!r} at "
            f"{type(points).__name__} with another combination, estimator or chain. Leave those options out."
        )
