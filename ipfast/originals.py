"""Parameters that a copy of a model reaches past its modules: in closures, hooks and lists, which are not copied with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .errors import InputError


class RefuseOriginals(TorchFunctionMode):
    """Within this context, in which a copy of a model runs with parameters of its own, the use of the model's is refused.

    Args:
        where: the calling function, for messages.
        model: what was copied.
    """

    def __init__(self, where: str, model: nn.Module) -> None:
        super().__init__()
        self.where, self.model = where, model  # kept alive, since identities are told apart
        self.names = {id(value): name for name, value in model.named_parameters() if value.dtype.is_floating_point}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = next((self.names[id(value)] for value in tree_leaves((args, kwargs)) if id(value) in self.names), None)
        # To read its dtype or its shape is not to use it.
        if name is not None and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            raise InputError(
                f"{self.where}: expected a model that reaches its parameters through its modules; {name!r} goes into "
                f"{getattr(function, '__name__', function)} from a lambda, a hook, a list, a patched method or a loss, "
                "which took hold of the parameter itself and reaches no copy of it. Make that a method or module of the model."
            )
        return result
