"""Our own .safetensors files, which hold JSON beside their tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError, safe_open

from ..checks import existing_file
from ..errors import InputError, IpfastError


@contextmanager
def opened_archive(where: str, path: str | os.PathLike[str], writer: str) -> Iterator[tuple[dict[str, str], Any]]:
    """(metadata, the open archive); whatever is missing, or of another kind, is told as a file that `writer` did not write."""
    file = existing_file(where, "path", path)
    try:
        with safe_open(str(file), framework="pt") as archive:
            yield archive.metadata() or {}, archive
    except IpfastError:  # some are a ValueError too, and say more
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{where}: expected a file written by {writer}; {str(file)!r} cannot be read ({reason}).") from error
