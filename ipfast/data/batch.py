"""A batch, taken apart: what a model is called with, and what its outputs are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, InputTypeError


@dataclass(frozen=True)
class BatchForm:
    """What a batch was before it was taken apart.

    Attributes:
        flat: whether the model's arguments and the labels were elements of one tuple.
        labels_key: where the labels were in a mapping.
    """

    flat: bool = False
    labels_key: str = "labels"

    def joined(self, inputs: Any, labels: Any) -> Any:
        """The batch as it was, of other inputs and labels."""
        if isinstance(inputs, Mapping):
            return {**inputs, self.labels_key: labels}
        return (*inputs, labels) if self.flat else (inputs, labels)


@dataclass(frozen=True)
class Batch:
    """Attributes:
    inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.
    labels: of its samples. form: how the two were together.
    """

    inputs: Any
    labels: Any
    form: BatchForm = BatchForm()


def split_batch(where: str, argument: str, batch: Any, labels_key: str = "labels") -> Batch:
    """Of a tuple the last element is the labels, and those before it are the model's arguments; of a mapping the entry
    `labels_key` is the labels, and the others are the model's keyword arguments."""
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        if len(batch) == 2:
            return Batch(batch[0], batch[1])
        return Batch(tuple(batch[:-1]), batch[-1], BatchForm(flat=True))
    if isinstance(batch, Mapping):
        if labels_key in batch and len(batch) > 1:
            inputs = {name: value for name, value in batch.items() if name != labels_key}
            return Batch(inputs, batch[labels_key], BatchForm(labels_key=labels_key))
        raise InputError(
            f"{where}: expected batches of {argument} with the labels under {labels_key!r} beside the model's arguments; got "
            f"{', '.join(map(str, batch)) or 'nothing'}. Name their key with labels_key=."
        )
    raise InputTypeError(
        f"{where}: expected batches of {argument} to be tuples (inputs, labels) or dictionaries; got {type(batch).__name__}."
    )
