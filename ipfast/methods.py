"""The method table: every method is a choice of points, curvature and target, or a control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .checks import random_seed
from .curvature import CG, EKFAC, Arnoldi, Curvature, DataInf, Exact, Fitted, Identity, LiSSA, Source
from .errors import InputError, InputTypeError
from .points import Checkpoints, Dropout, ExtraSGD, Final, Points, Segments
from .registry import Registry, check_choice


@dataclass(frozen=True)
class Method:
    """Scores s_i = Σ_t w_t ⟨q_t, ∇ℓ_i(θ_t)⟩ at the points θ_t.

    Args:
        points: where gradients are taken.
        curvature: what stands for the inverse Hessian in q_t = H⁻¹ ∇f(θ_t; V).
        target: "val", one query from the validation data; or "self", each sample's own gradient, exported as −⟨g_i, H⁻¹ g_i⟩.
    """

    points: Points = field(default_factory=Final)
    curvature: Curvature = field(default_factory=Identity)
    target: str = "val"
    name: str = "custom"

    def __post_init__(self) -> None:
        check_choice("Method", "target", self.target, ("val", "self"))
        if not isinstance(self.points, Points) or not isinstance(self.curvature, Curvature):
            raise InputTypeError(
                "Method: expected points of ipfast.points and a curvature of ipfast.curvature; got "
                f"{type(self.points).__name__} and {type(self.curvature).__name__}."
            )
        if self.target == "self" and isinstance(self.points, Dropout) and self.points.chain:
            raise InputError(
                "Method: expected target='val' with Dropout(chain=True): the squared norm of a gradient through a mask does "
                "not factor at the head. Leave chain out."
            )

        kind = self.curvature.original
        if self.bent and isinstance(self.points, Dropout) and self.points.chain:
            raise InputError(
                "Method: expected no curvature with Dropout(chain=True), whose Hessian would be that of the unmasked "
                "parameters. Leave chain out."
            )
        if self.target == "val" and isinstance(kind, LiSSA) and kind.mode == "single":
            raise InputError(
                "Method: expected target='self' with LiSSA(mode='single'), which is of self-influence. Use mode='full'."
            )
        if self.target == "self" and not kind.quadratics:
            raise InputError(
                f"Method: expected a curvature that gives self-influence, Identity, Exact, LiSSA, EKFAC, CG or Arnoldi; got "
                f"{type(kind).__name__}, which needs a query. Use target='val'."
            )
        if isinstance(kind, Source) != isinstance(self.points, Segments):
            raise InputError(
                "Method: expected points=ipfast.Segments(...) and curvature=ipfast.Source() together, since both describe a "
                f"training run; got {type(self.points).__name__} and {type(kind).__name__}."
            )
        if self.bent and self.points.deviation_floor is not None:
            raise InputError(
                "Method: expected no curvature with the loss-deviation estimator, which looks at losses and not at gradients. "
                "Leave it out, or use ExtraSGD(estimator='gradient')."
            )

    @property
    def needs_val(self) -> bool:
        return self.target == "val"

    @property
    def bent(self) -> bool:
        """Whether there is a curvature."""
        return not isinstance(self.curvature, Identity)

    @property
    def needs_train(self) -> bool:
        """Whether a query needs the training data: a curvature is fitted to it that is not fitted yet, or self-influence, whose
        gradients are its."""
        return self.bent and (not isinstance(self.curvature, Fitted) or self.target == "self")


@dataclass(frozen=True)
class Control:
    """A score that every method must beat: the per-sample loss (−ℓ_i, so that high loss is detrimental) or chance.

    Args:
        name: "loss" or "random".
        seed: of "random", whose scores are uniform in (0, 1).
    """

    name: str
    seed: int = 0
    needs_val: bool = False

    def __post_init__(self) -> None:
        check_choice("Control", "name", self.name, ("loss", "random"))
        random_seed("Control", self.seed)


METHODS: Registry[Method | Control] = Registry("method")
METHODS.add("ip", Method(name="ip"))
METHODS.add("ip_ensemble", Method(points=Dropout(), name="ip_ensemble"))
METHODS.add("tracin", Method(points=Checkpoints(), name="tracin"))
METHODS.add("gex", Method(points=ExtraSGD(), name="gex"))
METHODS.add("self_tracin", Method(target="self", name="self_tracin"))
METHODS.add("exact", Method(curvature=Exact(), name="exact"))
METHODS.add("lissa", Method(curvature=LiSSA(), name="lissa"))
METHODS.add("datainf", Method(curvature=DataInf(), name="datainf"))
METHODS.add("ekfac", Method(curvature=EKFAC(), name="ekfac"))
METHODS.add("cg", Method(curvature=CG(), name="cg"))
METHODS.add("arnoldi", Method(curvature=Arnoldi(), name="arnoldi"))
METHODS.add("tda", Method(points=Segments(), curvature=Source(), name="tda"))
METHODS.add("self_lissa", Method(curvature=LiSSA(), target="self", name="self_lissa"))
METHODS.add("self_ekfac", Method(curvature=EKFAC(), target="self", name="self_ekfac"))
METHODS.add("loss", Control("loss"))
METHODS.add("random", Control("random"))


def combinations() -> list[tuple[type[Points], type[Curvature], str]]:
    """All (points, curvature, target) that have a meaning together.

    Every choice of points goes with every curvature, but Segments and Source with each other only; target "self" is of the
    curvatures that give self-influence.

    >>> len({points for points, _, _ in combinations()})
    5
    """
    points: list[type[Points]] = [Final, Checkpoints, Dropout, ExtraSGD]
    bends: list[type[Curvature]] = [Identity, Exact, LiSSA, DataInf, EKFAC, CG, Arnoldi]
    found = [
        (at, bend, target)
        for at in points
        for bend in bends
        for target in ("val", "self")
        if target == "val" or bend.quadratics
    ]
    return [*found, (Segments, Source, "val")]


def get_method(where: str, method: Any) -> Method | Control:
    """The method called `method`, or the object itself; of a fitted curvature that of the final model."""
    if isinstance(method, (Method, Control)):
        return method
    if isinstance(method, Fitted):
        return Method(curvature=method, name=type(method.curvature).__name__.lower())
    if isinstance(method, (Points, Curvature)):
        part, name = "points" if isinstance(method, Points) else "curvature", type(method).__name__
        raise InputTypeError(
            f"{where}: expected method to be a name or an ipfast.Method; got {name}. Pass "
            f"ipfast.Method({part}=ipfast.{name}(…))."
        )
    return METHODS.get(where, method)
