"""What a network does with one batch and not with others: what a plan, made from a few samples, has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ORDER = "the network brings its samples into another order"

_BY_DIM = {
    *(torch.index_select, Tensor.index_select, torch.gather, Tensor.gather, torch.take_along_dim, Tensor.take_along_dim),
    *(torch.index_copy, Tensor.index_copy, Tensor.index_copy_, torch.index_add, Tensor.index_add, Tensor.index_add_),
    *(torch.scatter, Tensor.scatter, Tensor.scatter_, torch.scatter_add, Tensor.scatter_add, Tensor.scatter_add_),
}
"""Functions (x, dim, index, ...), but take_along_dim, which is (x, index, dim)."""
_TAKE_ALONG = {torch.take_along_dim, Tensor.take_along_dim}
_BY_INDEX = {Tensor.__getitem__, Tensor.__setitem__}
_ROLLS = {torch.roll, Tensor.roll}
_ORDERING = _BY_DIM | _BY_INDEX | _ROLLS | {torch.flip, Tensor.flip}
_NO_USE = {int, bool, torch.Size, torch.dtype, torch.device, torch.layout}
"""What functions give that look at no number of a tensor."""


class Watch(TorchFunctionMode):
    """While a batch passes: whether its samples are brought into another order, and which parameters are used outside of their
    layers.

    Rows are told apart by the dimension that has as many as there are samples; that another one may happen to be as long costs
    time and no more.

    Args:
        names: identities of the parameters in use -> their names.
        count: B.

    Attributes:
        reordered: whether samples were.
        outside: name of a parameter -> the function that it was given to.
        inside: names of the parameters of the layers that are being called, the innermost last.
    """

    def __init__(self, names: Mapping[int, str], count: int) -> None:
        super().__init__()
        self.names, self.count = names, count
        self.reordered = False
        self.outside: dict[str, str] = {}
        self.inside: list[set[str]] = []

    @contextmanager
    def over(self, module: nn.Module) -> Iterator[None]:
        """While the module runs, and not what is done with its output."""

        def begin(*_: Any) -> None:
            self.__enter__()  # type: ignore[no-untyped-call]

        def end(*_: Any) -> None:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs) if kwargs else function(*args)
        if type(result) in _NO_USE:
            return result
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()) if kwargs else args:
            for one in value if type(value) in (list, tuple) else (value,):
                name = self.names.get(id(one))
                if name is not None and not any(name in layer for layer in self.inside):
                    self.outside[name] = getattr(function, "__name__", str(function))
        if function in _ORDERING and self.count > 1 and not self.reordered:
            self.reordered = self._reorders(function, args, kwargs)
        return result

    def _reorders(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
        if function in _BY_INDEX:
            index = args[1][0] if type(args[1]) is tuple and args[1] else args[1]
            return self._has_samples(args[0], 0) and self._permutes(index, 0)
        if function in _BY_DIM:
            names = ("index", "dim") if function in _TAKE_ALONG else ("dim", "index")
            given: dict[str, Any] = {**dict(zip(names, args[1:3], strict=False)), **kwargs}
            x, dim, index = args[0] if args else kwargs.get("input"), given.get("dim"), given.get("index", given.get("indices"))
            return isinstance(dim, int) and self._has_samples(x, dim) and self._permutes(index, dim)
        x, *rest = args or [kwargs.get("input")]
        if not self._has_samples(x, 0):
            return False
        dims = kwargs.get("dims", (rest[1:] or None) if function in _ROLLS else rest)
        return dims is None or not {0, -x.dim()}.isdisjoint(tree_leaves(dims))

    def _has_samples(self, x: Any, dim: int) -> bool:
        return isinstance(x, Tensor) and -x.dim() <= dim < x.dim() and x.shape[dim] == self.count

    def _permutes(self, index: Any, dim: int) -> bool:
        """Whether an index takes each row once, and not in their order; what looks up a table takes some again."""
        if isinstance(index, (list, np.ndarray)):
            index = torch.as_tensor(index)
        if not isinstance(index, Tensor) or not index.dim() or index.dtype in (torch.bool, torch.uint8):
            return False
        along = dim if index.dim() > 1 else 0
        if not -index.dim() <= along < index.dim() or index.shape[along] != self.count:
            return False
        rows, order = index.movedim(along, -1) % self.count, torch.arange(self.count, device=index.device)
        return bool((rows != order).any()) and bool((rows.sort(dim=-1).values == order).all())
