"""Where scores go: .npy, .parquet and .csv files that appear only when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ..errors import InputError, MissingFileError, UnavailableError

FORMATS = (".npy", ".parquet", ".csv")
ARCHIVES = (".npz", ".safetensors")


def check_output(where: str, argument: str, path: str | os.PathLike[str], formats: tuple[str, ...] = FORMATS) -> Path:
    """Make sure, before any work, that `path` can be written in the format its ending names."""
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
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise."""
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


def write_archive(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays to .npz or .safetensors."""
    with written_whole(path) as beside:
        if path.suffix == ".npz":
            with open(beside, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        else:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, beside)


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
