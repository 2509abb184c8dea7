"""What lies in a folder of results and is read again by later cells."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from ..errors import InputError, IpfastError


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """While a file that an earlier cell has written is read, or a folder of such files.

    Raises:
        InputError: it was cut off, changed, or a part of it is gone.
    """
    try:
        yield
    except IpfastError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, SafetensorError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(
            f"experiment: expected what an earlier run has written in {str(path)!r}; it cannot be read ({reason}). Delete it, "
            "and it is made again."
        ) from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; to be read within `kept`."""
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
