"""IP Ensemble: the model with a few of its parameters dropped, several times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass

from ..checks import positive_integer
from ..errors import InputError, InputTypeError
from ..registry import check_choice
from .base import Mask, Point, Points, Trainable

COMBINATIONS = ("mean", "zscore", "rank")


@dataclass(frozen=True)
class Dropout(Points):
    """Members θ_m = (1 − D_m)∘θ/(1 − rate), with each entry of D_m one with probability `rate`; no retraining.

    Both gradients of a member's score are taken at the same θ_m. Masks are those of `ipfast.dropout_mask`: they depend on seed,
    member and the parameter's name alone. Rate 0 is the model itself, once.

    Args:
        members: T. rate: share of the weights that a member drops, 0 ≤ rate < 1.
        seed: of the masks.
        scope: "scored", the weights among the scored parameters; or "all" weights of the network, whose features are then
            computed anew for each member. Weights are the parameters of two dimensions and more.
        rescale: divide the kept weights by 1 − rate, so that the members' mean is θ.
        mask_bias: drop entries of the bias as well.
        chain: take gradients through the mask, with respect to θ; otherwise with respect to θ_m, dropped entries included.
        include_base: the unmasked model as one member more, the first.
        combine: "mean" of the members' scores; or of their "zscore" or "rank" over the training set, which gives every member
            the same say. Ranks run from −1 to 1, so that the median sample has 0; ties share their mean rank.
        names: parameter of the scored layer -> the name whose mask it gets, {"weight": "fc.weight"}, so that features of a
            model are scored with the masks of the model they came from.

    Source: section 4.2 of arXiv 2405.17490; five members at rate 0.01 are its setting.
    """

    members: int = 5
    rate: float = 0.01
    _: KW_ONLY
    seed: int = 0
    scope: str = "scored"
    rescale: bool = True
    mask_bias: bool = False
    chain: bool = False
    include_base: bool = False
    combine: str = "mean"
    names: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        where = "Dropout"
        positive_integer(where, "members", self.members)
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)):
            raise InputTypeError(f"{where}: expected rate to be a number; got {type(self.rate).__name__}. Pass 0.01.")
        if not 0 <= self.rate < 1:
            raise InputError(
                f"{where}: expected rate to be a share of the weights, 0 ≤ rate < 1; got {self.rate:g}. Pass 0.01."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputTypeError(f"{where}: expected seed to be an integer; got {type(self.seed).__name__}. Pass an int.")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"{where}: expected seed to be in 0 .. 2^64-1; got {self.seed}. Choose another one.")
        check_choice(where, "combine", self.combine, COMBINATIONS)
        check_choice(where, "scope", self.scope, ("scored", "all"))
        names = {} if self.names is None else self.names
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for pair in names.items() for name in pair):
            raise InputTypeError(
                f"{where}: expected names to map names of parameters to names, as in {{'weight': 'fc.weight'}}; got {names!r}."
            )

    def points(self, trainable: Trainable | None = None) -> Iterator[Point]:
        if self.rate == 0:
            yield Point()
            return
        weight = 1 / (self.members + self.include_base)
        if self.include_base:
            yield Point(weight)
        for member in range(self.members):
            names = dict(self.names or {})
            mask = Mask(member, float(self.rate), self.seed, self.rescale, self.mask_bias, self.chain, names, self.scope)
            yield Point(weight, mask=mask)
