"""Checks of what users pass in, made before any work."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError, InputTypeError, MissingFileError, UnavailableError


def _acts_in_training(module: nn.Module) -> bool:
    """Whether a module computes something else in train mode than in eval mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return bool(module.dropout)
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.RReLU))


def check_not_compiled(where: str, model: nn.Module, *, within: bool) -> None:
    """Refuse TorchScript, whose layers run unseen and with parameters that cannot be exchanged; `within`: in any module."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and (within or not name):
            raise InputTypeError(
                f"{where}: expected model to be made of Python modules; {name or 'it'} is TorchScript "
                f"({type(module).__name__}). Pass the model that torch.jit.script or torch.jit.trace was called with."
            )


def check_evaluation_mode(where: str, model: nn.Module) -> None:
    """Refuse a model in which a layer would drop out, or couple the samples of a batch, while scoring."""
    for name, module in model.named_modules():
        if module.training and _acts_in_training(module):
            raise InputError(
                f"{where}: expected model in eval mode; {name or 'it'} ({type(module).__name__}) is in train mode, where "
                "scores would depend on chance or on the other samples of a batch. Call model.eval() first."
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise InputError(
                f"{where}: expected model to treat each sample alone; {name or 'it'} ({type(module).__name__}) divides its "
                "gradient by how often an index is in the batch. Set its scale_grad_by_freq to False."
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{where}: expected model to treat each sample alone; {name or 'it'} ({type(module).__name__}) keeps no "
                "running statistics, so that a score would depend on the other samples of its batch even in eval mode. Train "
                "it with track_running_stats=True."
            )


def check_finite_parameters(where: str, **parameters: torch.Tensor | None) -> None:
    """Refuse NaN or infinity in the head: every score would be NaN and no row at fault."""
    for name, value in parameters.items():
        if value is not None and not bool(torch.isfinite(value).all()):
            raise InputError(f"{where}: expected a finite {name} of the head; got NaN or infinity. Did training diverge?")


def check_finite_network(where: str, model: nn.Module) -> None:
    """Refuse NaN or infinite parameters and NaN buffers, whose masks may hold infinity; the first is named."""
    for kind, tensors in (("parameters", model.named_parameters()), ("buffers", model.named_buffers())):
        for name, value in tensors:
            if value.is_meta:
                raise InputError(
                    f"{where}: expected a model with values; {name} is on the device 'meta'. Load the model first."
                )
            wrong = torch.isnan(value) if kind == "buffers" else ~torch.isfinite(value.detach())
            if bool(wrong.any()):
                raise InputError(
                    f"{where}: expected finite {kind} of the model; {name} has NaN{' or infinity' * (kind == 'parameters')}. "
                    "Did training diverge?"
                )


def existing_file(where: str, argument: str, path: str | os.PathLike[str]) -> Path:
    """`path` as a Path to a file that is there."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputTypeError(f"{where}: expected {argument} to be the path of a file; got {type(path).__name__}.")
    result = Path(path)
    if not result.exists():
        raise MissingFileError(f"{where}: expected {argument} to be a file; {str(result)!r} does not exist. Check the path.")
    if not result.is_file():
        raise InputError(f"{where}: expected {argument} to be a file; {str(result)!r} is a folder.")
    return result


def check_no_overwriting(where: str, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Refuse, before any work, an output that is an input or another output; of what are no paths, or folders, nothing is said.

    Args:
        outputs, inputs: by the name of the argument: a path; a tuple or a mapping of these; or a list of Path objects, since
            the strings in a list may be data.
    """
    named = [(name, path) for name, value in inputs.items() for path in _paths(value)]
    for name, value in outputs.items():
        for path in _paths(value):
            for other, there in named:
                if _is_same_file(path, there):
                    raise InputError(
                        f"{where}: expected {name} to be another file than {other}; both are {str(there)!r}, which would be "
                        "overwritten. Choose another name."
                    )
            named.append((name, path))


def _paths(value: Any) -> Iterator[Path]:
    """The paths there are in it."""
    if isinstance(value, (str, os.PathLike)):
        yield Path(value)
    elif isinstance(value, list):
        yield from (Path(part) for part in value if isinstance(part, os.PathLike))
    elif isinstance(value, (tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(part)


def _is_same_file(one: Path, other: Path) -> bool:
    if one.is_dir():
        return False
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def usable_device(where: str, device: str | torch.device | None) -> torch.device | None:
    """`device` as torch's object, after it has held a tensor; None stays None."""
    if device is None:
        return None
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{where}: expected device to be one of torch, such as 'cpu' or 'cuda:0'; got {device!r}.") from error
    try:
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = textwrap.shorten(str(error).splitlines()[0], 120, placeholder=" …")
        raise UnavailableError(
            f"{where}: expected a device that works here; device={str(device)!r} does not ({reason}). Use device='cpu'."
        ) from error
    return result


def positive_integer(where: str, argument: str, value: Any) -> int:
    """`value` as an integer of at least one."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputTypeError(f"{where}: expected {argument} to be a positive integer; got {type(value).__name__}.")
    number = int(value.__index__())
    if number < 1:
        raise InputError(f"{where}: expected {argument} to be a positive integer; got {number}.")
    return number


def random_seed(where: str, value: Any) -> int:
    """`value` as what torch's generators are seeded with."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputTypeError(f"{where}: expected seed to be an integer; got {type(value).__name__}. Pass an int.")
    number = int(value.__index__())
    if not 0 <= number < 2**64:
        raise InputError(f"{where}: expected seed to be in 0 .. 2^64-1; got {number}. Choose another one.")
    return number


def check_precision(where: str, precision: object) -> None:
    """Refuse a precision that does not exist."""
    if precision not in (None, "bf16"):
        raise InputError(
            f"{where}: expected precision to be 'bf16' or None, which computes float64 in float64 and all others in exact "
            f"float32; got {precision!r}."
        )


def require_narrow(where: str, precision: str | None, dtype: torch.dtype) -> None:
    """Refuse float64 features where their products would be rounded to bfloat16."""
    if precision == "bf16" and dtype == torch.float64:
        raise InputTypeError(
            f"{where}: expected float32, float16 or bfloat16 features with precision='bf16'; got float64. Leave precision out "
            "to compute in float64, or convert the features to bfloat16 (half the memory of float32) or float32."
        )


def fixed_width(array: np.ndarray) -> np.ndarray:
    """Strings that are objects, as of pandas, or NumPy's StringDType, as NumPy's own; any other array as it is."""
    if array.dtype.kind in "OT" and all(isinstance(each, str) for each in array.flat):
        return array.astype(object).astype(str)
    return array


def missing_row(values: Any) -> int | None:
    """The first row of Python objects that is None, NaN or pandas.NA; None: no row, or they are of a dtype of their own.

    >>> missing_row(["a", None]), missing_row(np.array(["a", "b"]))
    (1, None)
    """
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if not isinstance(values, (list, tuple)) and not (isinstance(values, np.ndarray) and values.dtype.kind in "OT"):
        return None
    return next((row for row, each in enumerate(values) if _is_missing(each)), None)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def native(dtype: np.dtype) -> np.dtype:
    """The dtype in this machine's byte order, which torch needs."""
    return dtype.newbyteorder("=")


def whole_as_int64(labels: Tensor) -> Tensor:
    """Labels of which a number that means "ignored" is told from the others: of uint8, 156 is equal to −100."""
    return labels if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool else labels.long()


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory; a copy only for a foreign byte order or negative strides."""
    if array.dtype != native(array.dtype) or any(stride < 0 for stride in array.strides):
        # No np.ascontiguousarray, which returns as they are the negative strides of an array of one row, or of none.
        array = np.array(array, dtype=native(array.dtype), order="C")
    if array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.int32))
    with warnings.catch_warnings():
        # torch warns about read-only memory, since it cannot protect it from writes; ipfast only reads.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)
