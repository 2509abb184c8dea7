"""Arrays from .npy, .npz and .safetensors files. Nothing is unpickled; arrays of .npy and .safetensors are memory-mapped."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checks import as_tensor, existing_file
from ..errors import InputError, UnavailableError

_MAPPABLE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
BROKEN = (ValueError, OSError, EOFError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, TokenError)
"""What NumPy raises for files that are damaged, encrypted or compressed in another way, or hold objects."""


def read_npy(where: str, argument: str, path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an .npy file, memory-mapped."""
    file = existing_file(where, argument, path)
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except BROKEN as error:
        raise InputError(
            f"{where}: expected {argument} to be an .npy file of numbers; {str(file)!r} cannot be read ({error}). "
            "Save it with numpy.save and a numeric dtype."
        ) from error
    if not isinstance(found, np.ndarray):
        with found as archive:
            names = ", ".join(map(repr, archive))
        raise InputError(
            f"{where}: expected {argument} to be an .npy file of numbers; {str(file)!r} is an archive with "
            f"{names or 'nothing'}. Save the one array with numpy.save."
        )
    return found


def read_named(where: str, argument: str, path: str | os.PathLike[str], names: tuple[str, ...]) -> dict[str, Any]:
    """Some arrays of an .npz or .safetensors file, by name; a name that ends in "?" may be absent."""
    file = existing_file(where, argument, path)
    wanted = {name.rstrip("?") for name in names}
    if file.suffix == ".npz":
        every, found = _read_npz(where, argument, file, wanted)
    elif file.suffix == ".safetensors":
        every, found = _read_safetensors(where, argument, file, wanted)
    else:
        raise InputError(
            f"{where}: expected {argument} to be an .npz or .safetensors file; got {file.name!r}. "
            "Save the arrays with numpy.savez or safetensors."
        )
    for name in names:
        if name not in found and not name.endswith("?"):
            raise InputError(
                f"{where}: expected {argument} to hold {name!r}; {file.name!r} holds {', '.join(sorted(every)) or 'nothing'}. "
                "Rename the array."
            )
    return found


def _read_npz(where: str, argument: str, file: Path, wanted: set[str]) -> tuple[list[str], dict[str, Any]]:
    """(names of all arrays, those that are wanted), of which the others are not read."""
    try:
        # The file is opened here, since numpy leaves it open where the archive turns out to be broken.
        with open(file, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, Mapping):
                raise ValueError("it holds a single array")
            return list(archive), {name: archive[name] for name in archive if name in wanted}
    except BROKEN as error:
        raise InputError(
            f"{where}: expected {argument} to be an .npz file of numbers; {str(file)!r} cannot be read ({error})."
        ) from error


def _read_safetensors(where: str, argument: str, file: Path, wanted: set[str]) -> tuple[list[str], dict[str, Any]]:
    """(names of all arrays, those that are wanted), as memory maps where NumPy has the dtype (it lacks bfloat16), so that a
    large file stays on disk."""
    try:
        with safe_open(str(file), framework="pt") as archive:  # checks the header and the offsets
            other = {
                name: archive.get_tensor(name)
                for name in archive.keys()  # noqa: SIM118 (not a dict)
                if name in wanted and archive.get_slice(name).get_dtype() not in _MAPPABLE
            }
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{where}: expected {argument} to be a .safetensors file; {str(file)!r} cannot be read ({error})."
        ) from error
    with open(file, "rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    result: dict[str, Any] = dict(other)
    for name, entry in header.items():
        if name not in wanted or name in other:
            continue
        dtype, shape = _MAPPABLE[entry["dtype"]], tuple(entry["shape"])
        if 0 in shape or not shape:
            result[name] = np.zeros(shape, dtype)
        else:
            result[name] = np.memmap(file, dtype, mode="r", offset=8 + size + entry["data_offsets"][0], shape=shape)
    return list(header), result


def read_arrays(where: str, argument: str, path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """(features, labels) of an .npz or .safetensors file."""
    if Path(path).suffix == ".npy":
        raise InputError(
            f"{where}: expected {argument} to hold features and labels; {Path(path).name!r} is a single array. "
            "Pass a pair: (features.npy, labels.npy)."
        )
    arrays = read_named(where, argument, path, ("features", "labels"))
    return arrays["features"], arrays["labels"]


def read_pair(where: str, argument: str, data: Any) -> tuple[Any, Any]:
    """(features, labels) of a path with both, or of a pair of arrays or .npy paths."""
    if isinstance(data, (str, os.PathLike)):
        return read_arrays(where, argument, data)
    features, labels = (read_npy(where, argument, part) if isinstance(part, (str, os.PathLike)) else part for part in data)
    return features, labels


def read_scores(
    where: str, argument: str, path: str | os.PathLike[str]
) -> tuple[np.ndarray, tuple[str, ...] | None, np.ndarray | None]:
    """(scores [N] or [N, Q], the names of the queries or None, ids or None) of a .csv, .parquet or .npy file.

    Tables hold `score`, or `score NAME` of each query; columns of layers beside them, `score, LAYER`, are parts of these. Where
    `index` holds 0..N−1, the rows are put into that order. .npy files hold [N].
    """
    file = existing_file(where, argument, path)
    queries = ids = None
    if file.suffix == ".npy":
        values = np.array(read_npy(where, argument, file))
    else:
        try:
            table = _read_csv(file) if file.suffix == ".csv" else _read_parquet(where, file)
            values, queries, ids = scores_in(table)
        except (KeyError, ValueError, OSError, csv.Error) as error:
            raise InputError(
                f"{where}: expected {argument} to be a table with a numeric column 'score', or 'score NAME' of each query; "
                f"{str(file)!r} cannot be read ({type(error).__name__}: {error})."
            ) from error
    if values.ndim != (1 if queries is None else 2) or values.dtype.kind != "f":
        several = " Of queries or tokens, which .npy does not tell apart, load .safetensors." if values.ndim == 2 else ""
        raise InputError(
            f"{where}: expected {argument} to hold floating-point numbers [N]; {file.name!r} has {values.dtype} "
            f"{list(values.shape)}.{several}"
        )
    return values, queries, ids


def scores_in(table: Mapping[str, Any]) -> tuple[np.ndarray, tuple[str, ...] | None, np.ndarray | None]:
    """(scores [N] or [N, Q] in float64, the names of the queries or None, ids or None) of the columns of a table of scores.

    Raises:
        KeyError, TypeError, ValueError: there is no such column, or it is not of numbers.
    """
    queries = None if "score" in table else _queries_of(table)
    names = ["score"] if queries is None else [f"score {name}" for name in queries]
    columns = [np.asarray(table[name], dtype=np.float64) for name in names]
    values = columns[0] if queries is None else np.stack(columns, axis=1)
    ids = _ids(table["id"]) if "id" in table else None
    order = _order(table["index"], len(values)) if "index" in table else None
    if order is None:
        return values, queries, ids
    return values[order], queries, None if ids is None else ids[order]


def _order(column: Any, rows: int) -> np.ndarray | None:
    """The rows of 0..N−1 in a column that holds these in another order, as after sorting by score; None: there is no such."""
    found = _ids(column)
    if found.dtype.kind not in "iu" or found.shape != (rows,):
        return None
    order = np.argsort(found, kind="stable")
    whole = np.arange(rows)
    return order if np.array_equal(found[order], whole) and not np.array_equal(order, whole) else None


def read_ids(where: str, argument: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Ids [N] of an .npy file, or of a .txt file with one a line, numbers where all are."""
    if Path(path).suffix != ".txt":
        return read_npy(where, argument, path)
    file = existing_file(where, argument, path)
    try:
        return _ids(file.read_text(encoding="utf-8").splitlines())
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: expected {argument} to be text; {str(file)!r} cannot be read ({error}).") from error


def _ids(column: Any) -> np.ndarray:
    """Numbers, or True and False, where all are written as NumPy writes such, else as they are."""
    found = np.asarray(column)
    if found.dtype.kind != "U":
        return found
    if found.size and bool(np.isin(found, ("True", "False")).all()):
        return np.asarray(found == "True")
    for kind in (np.int64, np.uint64, np.float64):
        try:
            numbers = found.astype(kind)
        except (TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(numbers).all() and list(map(str, numbers.tolist())) == found.tolist():
            return numbers
    return found


def _queries_of(table: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the queries of a table with a column each; None where there is none."""
    prefix = "score "
    found = [name for name in table if name.startswith(prefix)]
    parts = {name for name in found if any(name.startswith(f"{other}, ") for other in found)}
    return tuple(name.removeprefix(prefix) for name in found if name not in parts) or None


def _read_csv(file: Path) -> dict[str, Any]:
    with open(file, newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        names = next(reader, [])
        columns = list(zip(*reader, strict=True)) or [()] * len(names)
    return dict(zip(names, columns, strict=True))


def _read_parquet(where: str, file: Path) -> dict[str, Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UnavailableError(
            f"{where}: expected the package pyarrow to read .parquet; it is not installed. "
            "Install it (pip install 'ipfast[parquet]') or use .npy or .csv."
        ) from error
    table = parquet.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_head(where: str, path: str | os.PathLike[str]) -> torch.nn.Linear:
    """A linear head from a .safetensors or .npz file: `weight` [C, d] and, if there, `bias` [C]."""
    arrays = read_named(where, "head", path, ("weight", "bias?"))
    weight = _parameter(where, path, "weight", arrays["weight"], 2)
    bias = _parameter(where, path, "bias", arrays["bias"], 1) if "bias" in arrays else None
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise InputError(f"{where}: expected a bias of {weight.shape[0]} classes like the weight in head; got {bias.shape[0]}.")
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear.requires_grad_(False).eval()


def read_head_name(where: str, path: str | os.PathLike[str]) -> str:
    """The name that a head had in its model ("fc"): safetensors metadata `name`, or an array `name` in an .npz; "" for none."""
    file = existing_file(where, "head", path)
    if file.suffix == ".npz":
        found = read_named(where, "head", file, ("name?",))  # reads the one array
        return str(found["name"]) if "name" in found else ""
    with safe_open(str(file), framework="pt") as archive:
        about: dict[str, str] = archive.metadata() or {}
        return about.get("name", "")


def read_state(where: str, argument: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state dict (name -> tensor, on the CPU) from .safetensors, or from a file of torch.save that holds tensors only."""
    file = existing_file(where, argument, path)
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as archive:
                return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dict)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no file of tensors fails in many ways, also within torch
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{where}: expected {argument} to be files of tensors; {str(file)!r} cannot be read ({reason}). Save "
            "model.state_dict() with safetensors or torch.save."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        inside = f" with {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise InputError(
            f"{where}: expected {argument} to hold state dicts (name -> tensor); {str(file)!r} holds a "
            f"{type(state).__name__}{inside}. Load it and pass the state dict that is in it."
        )
    return dict(state)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _parameter(where: str, path: str | os.PathLike[str], name: str, found: Any, dimensions: int) -> Tensor:
    numbers = isinstance(found, Tensor) or (found.dtype.kind in "fiub" and found.dtype.itemsize <= 8)
    value = found if isinstance(found, Tensor) else as_tensor(np.array(found)) if numbers else None
    if value is None or value.dim() != dimensions or not value.dtype.is_floating_point:
        shape = "[C, d]" if dimensions == 2 else "[C]"
        raise InputError(
            f"{where}: expected {name} of shape {shape} and a floating-point dtype in head; {Path(path).name!r} has "
            f"{list(found.shape)} {str(found.dtype).removeprefix('torch.')}."
        )
    return value
