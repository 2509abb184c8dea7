"""What score, query, fit and Scorer are asked for, refused before any work where it does not go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .engines import PARTS, SampleLoss
from .errors import InputError, InputTypeError
from .impacts import Impact
from .losses import Loss, get_loss
from .methods import Control, Method
from .registry import check_choice

BATCH_SIZE = 256
"""Samples that go through a backbone at once, where the data does not come in batches."""


def known_params(where: str, params: Any) -> str | list[str]:
    """A known word, or patterns in a list; anything else is refused."""
    words = ("last", "all", "trainable")
    if not isinstance(params, str) and not isinstance(params, Iterable):
        raise InputTypeError(
            f"{where}: expected params to be one of {', '.join(map(repr, words))}, or a list of patterns of parameter names; "
            f"got {type(params).__name__}. Leave it out to score the last layer."
        )
    if isinstance(params, str) and params not in words:
        raise InputTypeError(
            f"{where}: expected params to be one of {', '.join(map(repr, words))}, or a list of patterns of parameter names; "
            f"got {params!r}. Put a single pattern into a list."
        )
    return params if isinstance(params, str) else list(params)


def require_engine(where: str, params: str | Sequence[str], engine: str, head_only: Mapping[str, bool]) -> None:
    """Refuse, before any work, an engine or an option that does not go with what is scored; `head_only` are those given."""
    if params == "last":
        if engine not in ("auto", "head"):
            raise InputError(
                f"{where}: expected engine='head' with params='last'; got {engine!r}. Name the parameters to score, as in "
                "params='all'."
            )
        return
    if engine == "head":
        raise InputError(f"{where}: expected engine='head' with params='last' only; got params={params!r}. Leave engine out.")
    superfluous = " and ".join(name for name, is_given in head_only.items() if is_given)
    if superfluous:
        raise InputError(
            f"{where}: expected no {superfluous} with params={params!r}: it names the parameters itself, and each layer's "
            "operation chooses its backend. Leave it out, or use params='last'."
        )


def require_by(
    where: str, by: object, params: str | Sequence[str], engine: str, method: Method | Control, combine: str
) -> None:
    """Refuse, before any work, parts of a score where there are none."""
    if by is None:
        return
    by = check_choice(where, "by", by, PARTS)
    reason = None
    if params == "last":
        reason = "params that name more than the last layer", "params='last'"
    elif engine not in ("auto", "ghost"):
        reason = "engine='ghost', which takes a score apart", f"engine={engine!r}"
    elif isinstance(method, Control) or method.points.deviation_floor is not None:
        reason = "a method that scores by gradients", method.name
    elif by == "token" and method.target == "self":
        reason = "a query, which a score is linear in", f"method={method.name!r}"
    elif combine != "mean":
        reason = "members that are averaged, so that parts add up", f"combine={combine!r}"
    if reason is not None:
        raise InputError(f"{where}: expected {reason[0]}, with by={by!r}; got {reason[1]}. Leave by out.")


def known_loss(where: str, loss: str | Loss | SampleLoss, params: str | Sequence[str] = "last") -> str | Loss | SampleLoss:
    """The loss asked for, checked before a model runs; "auto" stays, since only the model can tell."""
    if params != "last" and callable(loss) and not isinstance(loss, (Loss, type)):
        if isinstance(loss, nn.Module):
            raise InputTypeError(
                f"{where}: expected loss to be a name, an object of ipfast.losses, or a function (model, batch) -> [B] with a "
                f"loss for each sample; got the module {type(loss).__name__}, which takes logits and gives their mean. Use "
                "'cross_entropy', 'bce_with_logits' or 'mse'."
            )
        if getattr(loss, "__module__", None) == "torch.nn.functional":
            raise InputTypeError(
                f"{where}: expected loss to be a name, an object of ipfast.losses, or a function (model, batch) -> [B] with a "
                f"loss for each sample; got torch's {getattr(loss, '__name__', 'loss')}, which takes logits. Use "
                "'cross_entropy', 'bce_with_logits' or 'mse', or call it in a function (model, batch)."
            )
        return loss
    return loss if isinstance(loss, str) and loss == "auto" else get_loss(where, loss)  # type: ignore[arg-type]


def default_loss(loss: str | Loss | SampleLoss, own: str | None, where: str) -> Any:
    """The loss asked for; "auto" is the estimator's own, else cross_entropy."""
    if callable(loss) and not isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss == "auto":
        loss = own or "cross_entropy"
    return get_loss(where, loss)


def require_val(where: str, method: Method | Control, val: Any, impact: Impact) -> None:
    """Refuse val where it has no meaning, and its absence where it is needed."""
    if isinstance(method, Method):
        method.points.check(where)
        if method.points.deviation_floor is not None and impact.name != "utility":
            raise InputError(
                f"{where}: expected no impact with the loss-deviation estimator, which looks at the validation loss and no "
                "other function. Leave it out, or use estimator='gradient'."
            )
    if method.needs_val and val is None:
        raise InputError(
            f"{where}: expected val, the trusted validation data that method {method.name!r} compares with; got None. "
            "Pass (features, labels) or a loader, or use method='self_tracin', which needs none."
        )
    if not method.needs_val and val is not None:
        raise InputError(
            f"{where}: expected no val for method {method.name!r}, which does not look at validation data. Leave it out."
        )
    if not method.needs_val and impact.name != "utility":
        raise InputError(
            f"{where}: expected no impact for method {method.name!r}, which has no validation data to take it on. Leave it out."
        )


def require_one_query(where: str, tokens: str, names: tuple[str, ...] | None) -> None:
    """Refuse scores of tokens for several queries, before any work."""
    if tokens == "each" and names is not None:
        raise InputError(
            f"{where}: expected a single query with tokens='each', whose scores are [N, T]; got {len(names)} queries. Score "
            "them one at a time, or use tokens='mean'."
        )
