"""What a set of points tells: parameter vectors θ_t, each described rather than held, and their weights w_t."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from .. import ops
from ..checks import existing_file
from ..data import Batch
from ..data.files import file_hash, read_state
from ..errors import InputError
from ..losses import Loss


@dataclass(frozen=True)
class Mask:
    """Parameter dropout of one member: a masked parameter becomes scale·(1 − D)∘θ.

    Attributes:
        member, rate, seed: of `ipfast.dropout_mask`, which draws D.
        rescale: whether scale is 1/(1 − rate) instead of 1.
        bias: whether the bias is masked too.
        chain: whether gradients are taken through the mask, with respect to the unmasked parameters.
        names: parameter name of the scored layer -> the name whose mask it gets.
        scope: "scored", the scored parameters; or "all" of the model's.
    """

    member: int
    rate: float
    seed: int = 0
    rescale: bool = True
    bias: bool = False
    chain: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    scope: str = "scored"

    @property
    def scale(self) -> float:
        return 1 / (1 - self.rate) if self.rescale else 1.0

    def dropped(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Flat indices of the dropped entries of a parameter, ascending, int64."""
        return ops.dropout_mask(self.names.get(name, name), shape, self.rate, self.seed, self.member)

    def covers(self, name: str, value: Tensor) -> bool:
        """Whether a parameter in the scope is masked: those of two dimensions and more are, and on request biases."""
        return value.dim() >= 2 or (self.bias and name.rsplit(".", 1)[-1] == "bias")

    def masked(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """scale·(1 − D)∘θ of those parameters that are masked."""
        foreign = [name for name in self.names if name not in parameters]
        if foreign:
            raise InputError(
                f"Dropout: expected names to map parameters in the mask's scope; {foreign[0]!r} is none of them. Leave it out."
            )
        made = {}
        for name, value in parameters.items():
            if self.covers(name, value):
                made[name] = (value * self.scale).contiguous()
                made[name].view(-1)[self.dropped(name, tuple(value.shape)).to(value.device)] = 0
        return made


@dataclass(frozen=True, eq=False)
class State:
    """Parameters and buffers, by value or as a file that is read when they are needed.

    Attributes:
        values: name -> tensor, or None where there is a path.
        path: .safetensors, or a file of torch.save that holds nothing but tensors.
        sha256: what the file held when a query was made with it; None: not known.
    """

    values: Mapping[str, Tensor] | None = None
    path: Path | None = None
    sha256: str | None = None

    def load(self, where: str) -> Mapping[str, Tensor]:
        """Name -> tensor; a file is read once a call."""
        if self.values is not None:
            return self.values
        assert self.path is not None
        if self.sha256 is not None and file_hash(existing_file(where, "states", self.path)) != self.sha256:
            raise InputError(
                f"{where}: expected the checkpoint {str(self.path)!r} that the query was made with; it has changed since. "
                "Make the query again."
            )
        return read_state(where, "states", self.path)

    def pinned(self) -> State:
        """The same state with the hash of its file, which a stored query is later compared with."""
        return self if self.path is None else replace(self, sha256=file_hash(self.path))


@dataclass(frozen=True)
class Point:
    """One parameter vector θ_t, and its weight w_t in the sum over points.

    Attributes:
        weight: w_t.
        mask: entries that a member of a dropout ensemble drops; None: none.
        state: parameters and buffers; None: the model as it is.
        segment: of the training run, for curvatures that follow it.
    """

    weight: float = 1.0
    mask: Mask | None = None
    state: State | None = None
    segment: int = 0


@dataclass(frozen=True)
class Trainable:
    """What points that train may do with the model.

    Attributes:
        module: gives the caller's model, to be copied and never changed.
        losses: (module, a batch, a loss, or None for the scored one) -> its ℓ_i [B], differentiable.
    """

    module: Callable[[], nn.Module]
    losses: Callable[[nn.Module, Batch, Loss | None], Tensor]


class Points(ABC):
    """Where gradients are taken: Σ_t w_t ⟨q_t, ∇ℓ_i(θ_t)⟩.

    Attributes:
        combine: "mean" (Σ_t w_t s_t), or "zscore" or "rank", taken of each point's scores over the training set before.
    """

    combine: str = "mean"

    @property
    def deviation_floor(self) -> float | None:
        """ε of the loss-deviation estimator of GEX, which takes the place of gradients; None: gradients."""
        return None

    @abstractmethod
    def points(self, trainable: Trainable | None = None) -> Iterator[Point]:
        """The points in order, one at a time; `trainable` is for those that train the model on."""

    def check(self, where: str) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse, before any work, what cannot be scored."""
