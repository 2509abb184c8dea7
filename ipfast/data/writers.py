"""Where scores go: .npy, .parquet and .csv files that appear only when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from ..checks import as_tensor
from ..errors import InputError, InputTypeError, MissingFileError, UnavailableError

FORMATS = (".npy", ".parquet", ".csv")
ARCHIVES = (".npz", ".safetensors")


def check_output(where: str, argument: str, path: str | os.PathLike[str], formats: tuple[str, ...] = FORMATS) -> Path:
    """Make sure, before any work, that `path` can be written in the format its ending names."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputTypeError(f"{where}: expected {argument} to be the path of a file; got {type(path).__name__}.")
    file = Path(path)
    if file.suffix not in formats:
        raise InputError(
            f"{where}: expected {argument} to end in one of {', '.join(formats)}; got {file.name!r}. "
            "The ending chooses the format."
        )
    if not file.parent.is_dir():
        raise MissingFileError(
            f"{where}: expected the folder of {argument} to exist; {str(file.parent)!r} does not. Create it first."
        )
    if file.is_dir():
        raise InputError(f"{where}: expected {argument} to be a file; {str(file)!r} is a folder.")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{where}: expected {argument} in a folder that can be written; {str(file.parent)!r} cannot.")
    if file.suffix == ".parquet":
        _parquet(where)
    return file


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise; where `path` is a
    link, the place of what it points to."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)  # mkstemp makes files private; an output has the permissions of any new file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_table(where: str, path: str | os.PathLike[str], columns: dict[str, np.ndarray]) -> None:
    """Write columns of equal length; .npy holds the last column alone."""
    file = check_output(where, "out", path)
    write: dict[str, Callable[[Path, dict[str, np.ndarray]], None]] = {
        ".npy": _write_npy,
        ".csv": _write_csv,
        ".parquet": _write_parquet,
    }
    with written_whole(file) as beside:
        write[file.suffix](beside, columns)


def write_archive(path: Path, arrays: Mapping[str, np.ndarray | Tensor]) -> None:
    """Write named arrays of numbers to .npz or .safetensors. NumPy has no bfloat16, which becomes float32 in .npz."""
    narrow = any(isinstance(array, Tensor) and array.dtype == torch.bfloat16 for array in arrays.values())
    with written_whole(path) as beside:
        if path.suffix == ".npz":
            with open(beside, "wb") as stream:
                np.savez(stream, **{name: as_array(array) for name, array in arrays.items()})  # type: ignore[arg-type]
        elif narrow:
            tensors = {name: array if isinstance(array, Tensor) else as_tensor(array) for name, array in arrays.items()}
            save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, beside)
        else:
            save_file({name: np.ascontiguousarray(as_array(array)) for name, array in arrays.items()}, beside)


def as_array(values: np.ndarray | Tensor) -> np.ndarray:
    """The numbers of a tensor for NumPy, which has no bfloat16: that becomes float32, which holds it as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _write_npy(path: Path, columns: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as stream:
        np.save(stream, list(columns.values())[-1], allow_pickle=False)


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    import csv

    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _write_parquet(path: Path, columns: dict[str, np.ndarray]) -> None:
    arrow, parquet = _parquet("write_table")
    parquet.write_table(arrow.table(columns), path)


def _parquet(where: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnavailableError(
            f"{where}: expected the package pyarrow to write .parquet; it is not installed. "
            "Install it (pip install 'ipfast[parquet]') or write .npy or .csv."
        ) from error
    return pyarrow, pyarrow.parquet
