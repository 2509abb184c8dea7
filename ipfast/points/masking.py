"""Edit parameters in place to those of a dropout member, and put back the same bits: for models too large to copy.

The dropped values are saved and written back. The kept values are not: x·s/s gives x back in all but about ½·log₂ s of the
values, so the scale is undone by a division, and the values for which that fails are found while scaling and saved too. That is
exact by comparison of bits, whatever the arithmetic does, and takes memory for about (rate + ½·log₂ s)·P values, with
s = 1/(1−rate) less than twice rate·P at small rates, where a copy or a bit per value would take a share of all P.
Why no more values fail: as long as x·s stays in the binade of x, its rounding error is at most half a unit in the last place of
x, the division makes that smaller, and rounding finds x. Only past the next power of two is the unit twice as large.

Gathers and scatters at sorted indices are bound by memory, where torch's are as fast as C++ could be.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError

_BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
_PIECE = 2**18
"""Elements that are scaled at once."""


class Masked:
    """Parameters with dropped entries set to zero and the others scaled, from `apply()` (or `with`) to `restore()`.

        θ_m = scale · (1 − D) ∘ θ,    D = 1 at the dropped indices

    Restoring gives every parameter the bits it had, NaN payloads and −0.0 included, also when the code between raises, and
    on Ctrl-C, which waits while parameters are being edited. Parameters may require gradients, be non-contiguous or be
    inference tensors; autograd sees that they changed, so that a backward pass through the edit fails instead of being wrong.
    Nobody else may read or write the parameters meanwhile. Extra memory: about the dropped values and, with a scale, as many
    again (see above).

    Args:
        parameters: by name, such as dict(model.named_parameters()). Tied parameters (one tensor, several names) are edited
            once, with the mask of the first name.
        dropped: flat indices [dropped] (int64, of `dropout_mask`) of the parameters to edit, by name; the others stay.
        scale: of the kept entries, usually 1/(1 − rate).

    Raises:
        InputError, InputTypeError: before anything is edited.

    >>> w = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> with Masked({"weight": w}, {"weight": torch.tensor([1, 2])}, scale=2.0):
    ...     w.tolist()
    [[2.0, 0.0], [0.0, 8.0]]
    >>> w.tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    def __init__(self, parameters: Mapping[str, Tensor], dropped: Mapping[str, Tensor], *, scale: float = 1.0) -> None:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
            raise InputError(f"Masked: expected scale to be a positive number; got {scale!r}. Pass 1 / (1 - rate), or 1.")
        self._parts = _distinct(parameters, dropped)
        self._scale = float(scale)
        self._edits: list[_Edit] = []
        self._previous: Any = None  # what handled Ctrl-C before
        self._interrupted = False

    def apply(self) -> None:
        """Edit the parameters; if that fails, they are restored before the error goes on."""
        if self._edits:
            raise InputError("Masked: expected parameters that are not masked yet; apply() was called twice. Call restore().")
        self._hold_interrupts()
        try:
            for parameter, dropped in self._parts:
                edit = _Edit(parameter, dropped)
                self._edits.append(edit)
                edit.apply(self._scale)
        except BaseException:
            self.restore()
            raise
        if self._interrupted:
            self.restore()

    def restore(self) -> None:
        """Put back the bits of before `apply()`; may be called again, and after a failure."""
        while self._edits:
            self._edits[-1].undo()
            self._edits.pop()
        self._release_interrupts()

    def __enter__(self) -> Masked:
        self.apply()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.restore()

    def _hold_interrupts(self) -> None:
        """Take over Ctrl-C until `restore`: a `with` statement alone would let it strike before __exit__ has begun."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread is ever interrupted
        previous = signal.getsignal(signal.SIGINT)
        if callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        above = frame
        while above is not None:
            if above.f_code in _UNINTERRUPTED and above.f_locals.get("self") is self:
                self._interrupted = True  # told when the parameters are restored
                return
            above = above.f_back
        self._previous(number, frame)

    def _release_interrupts(self) -> None:
        if self._previous is None or threading.current_thread() is not threading.main_thread():
            return
        previous = self._previous
        if signal.getsignal(signal.SIGINT) == self._on_interrupt:
            signal.signal(signal.SIGINT, previous)
        if self._interrupted:
            self._interrupted = False
            previous(signal.SIGINT, None)


_UNINTERRUPTED: frozenset[CodeType] = frozenset(
    method.__code__ for method in (Masked.__enter__, Masked.apply, Masked.restore, Masked.__exit__)
)


class _Edit:
    """One parameter's edit. Every step leaves a state from which `undo` finds the way back."""

    def __init__(self, parameter: Tensor, dropped: Tensor) -> None:
        self.parameter = parameter
        with _writing(parameter):
            view = parameter.detach()
            memory = view.as_strided((_span(view),), (1,), view.storage_offset())  # with the gaps of a non-contiguous one
            self.line = memory.view(_BITS[view.dtype])
            self.view = view.permute(sorted(range(view.dim()), key=view.stride, reverse=True))  # in the order of memory
        self.offsets = _offsets(view, dropped.to(view.device))
        self.values: Tensor | None = None  # bits of the dropped entries
        self.divisor: Tensor | None = None
        self.pieces: list[Tensor] = []
        self.scaled = 0  # pieces[:scaled] hold scaled values
        self.pending: tuple[int, Tensor] | None = None  # (a piece that is being written, what it holds when not scaled)
        # Offsets and bits of values that the division does not give back, the first `kept` of each. One piece of memory each,
        # made before the loop: many small ones between large temporaries would leave the heap in fragments, many times larger.
        room = view.numel() // 128 + 1024
        self.inexact, self.bits, self.kept = self.offsets.new_empty(room), self.line.new_empty(room), 0

    def apply(self, scale: float) -> None:
        with _writing(self.parameter):
            self.values = self.line.index_select(0, self.offsets)
            self.line.index_fill_(0, self.offsets, 0)
            if scale == 1:
                return
            wide = torch.float64 if self.view.dtype == torch.float64 else torch.float32
            # A tensor, because torch replaces the division by a number with a product on GPUs.
            self.divisor = torch.tensor(scale, dtype=wide, device=self.view.device)
            self.pieces = list(_pieces(self.view))
            for number, piece in enumerate(self.pieces):
                product = (piece.to(wide) * self.divisor).to(piece.dtype)
                original = piece.clone()
                bits = original.view(_BITS[piece.dtype])
                wrong = (self._quotient(product).view(bits.dtype) != bits).nonzero()
                steps = torch.tensor(piece.stride(), device=wrong.device)
                at = (wrong * steps).sum(dim=1).add_(int(piece.storage_offset()) - int(self.line.storage_offset()))
                self._keep(at)
                self.pending = (number, original)
                piece.copy_(product)
                self.scaled = number + 1
            self.pending = None

    def undo(self) -> None:
        with _writing(self.parameter):
            while self.pending or self.scaled:
                if self.pending is None:
                    self.pending = (self.scaled - 1, self._quotient(self.pieces[self.scaled - 1]))
                number, content = self.pending
                self.pieces[number].copy_(content)
                self.scaled = number
                self.pending = None
            self.line.index_copy_(0, self.inexact[: self.kept], self.bits[: self.kept])
            if self.values is not None:
                self.line.index_copy_(0, self.offsets, self.values)

    def _keep(self, at: Tensor) -> None:
        """Remember the bits at some offsets, before they are scaled."""
        stop = self.kept + len(at)
        if stop > len(self.inexact):
            room = 2 * stop
            offsets, bits = self.inexact.new_empty(room), self.bits.new_empty(room)
            offsets[: self.kept], bits[: self.kept] = self.inexact[: self.kept], self.bits[: self.kept]
            self.inexact, self.bits = offsets, bits
        self.inexact[self.kept : stop] = at
        self.bits[self.kept : stop] = self.line.index_select(0, at)
        self.kept = stop

    def _quotient(self, piece: Tensor) -> Tensor:
        assert self.divisor is not None
        return (piece.to(self.divisor.dtype) / self.divisor).to(piece.dtype)


def _writing(parameter: Tensor) -> Any:
    """The mode in which torch lets a parameter be written in place; inference tensors have one of their own."""
    return torch.inference_mode() if parameter.is_inference() else torch.no_grad()


def _pieces(view: Tensor) -> Iterator[Tensor]:
    """Views of at most _PIECE elements that together are `view`; one-dimensional where its memory has no gaps."""
    if view.is_contiguous():
        yield from torch.split(view.view(-1), _PIECE)
    elif view.numel() <= _PIECE:
        yield view
    elif (rows := _PIECE * view.shape[0] // view.numel()) >= 1:
        yield from torch.split(view, rows)
    else:
        for part in view.unbind():
            yield from _pieces(part)


def _offsets(view: Tensor, flat: Tensor) -> Tensor:
    """Places in memory, counted from the view's first element, of flat indices."""
    if view.is_contiguous():
        return flat
    offsets = torch.zeros_like(flat)
    for size, step in zip(reversed(view.shape), reversed(view.stride()), strict=True):
        offsets += flat % size * step
        flat = flat // size
    return offsets


def _distinct(parameters: Mapping[str, Tensor], dropped: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(parameter, flat indices) of the parameters to edit, tied ones once, in the order of `parameters`."""
    for name in dropped:
        if name not in parameters:
            raise InputError(f"Masked: expected dropped to name parameters; {name!r} is none of them. Check the name.")
    found: dict[tuple[Any, ...], tuple[str, Tensor, Tensor]] = {}
    for name, parameter in parameters.items():
        if name in dropped:
            _check(name, parameter, dropped[name])
            if parameter.numel():
                layout = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype, str(parameter.device))
                found.setdefault(layout, (name, parameter, dropped[name]))  # equal for two names of one tensor
    ends = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.element_size() * _span(p), name) for name, p, _ in found.values()
    )
    for (device, _, stop, name), (next_device, start, _, next_name) in pairwise(ends):
        if device == next_device and start < stop:
            raise InputError(
                f"Masked: expected dropped to name parameters apart in memory, or tied as one tensor; {name!r} overlaps "
                f"{next_name!r}. Name one of them."
            )
    return [(parameter, indices) for _, parameter, indices in found.values()]


def _span(parameter: Tensor) -> int:
    """Elements from the first to the last one in memory."""
    return 1 + sum((size - 1) * step for size, step in zip(parameter.shape, parameter.stride(), strict=True))


def _check(name: str, parameter: Any, dropped: Any) -> None:
    if not isinstance(parameter, Tensor) or parameter.layout != torch.strided or parameter.dtype not in _BITS:
        got = f"{parameter.dtype}, {parameter.layout}" if isinstance(parameter, Tensor) else type(parameter).__name__
        raise InputTypeError(
            f"Masked: expected dense floating-point parameters; {name!r} is {got}. Leave it out of dropped, or convert it."
        )
    reach = 1
    for step, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size > 1 and step < reach:
            raise InputError(
                f"Masked: expected parameters whose elements are apart in memory; {name!r} is expanded (strides "
                f"{list(parameter.stride())}). Make it contiguous first."
            )
        reach += max(size - 1, 0) * step
    if not isinstance(dropped, Tensor) or dropped.dtype != torch.int64 or dropped.dim() != 1:
        got = f"{dropped.dtype} {list(dropped.shape)}" if isinstance(dropped, Tensor) else type(dropped).__name__
        raise InputTypeError(
            f"Masked: expected dropped to hold flat int64 indices; {name!r} has {got}. Use those of ipfast.dropout_mask."
        )
    if dropped.numel() and (int(dropped.min()) < 0 or int(dropped.max()) >= parameter.numel()):
        raise InputError(
            f"Masked: expected dropped to hold indices in 0..{parameter.numel() - 1} of {name!r}; got "
            f"{int(dropped.min())}..{int(dropped.max())}. Is the mask of another shape?"
        )
