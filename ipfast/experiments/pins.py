"""What a folder of results belongs to: one recipe, the options of each method, and of each setting the data that its first cell
was computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.writers import written_whole
from ..errors import InputError

RECIPE, METHODS, DATA, RESULTS = "recipe.json", "methods.json", "data.json", "results.jsonl"


def digest(*parts: Any) -> str:
    """SHA-256 of arrays, with their types and shapes, and of texts, numbers, None and lists of these.

    >>> digest(["a", "b"], np.arange(2)) == digest(["a", "b"], np.arange(2))
    True
    >>> digest(["a", "b"]) == digest(["ab"])
    False
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            assert part.dtype.kind in "biuf", f"an array of {part.dtype} is no content"
            body: Any = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
            head, size = f"{body.dtype.str} {body.shape}", body.nbytes
        else:
            body = json.dumps(part).encode()
            head, size = "json", len(body)
        found.update(f"{head} {size}\n".encode())
        found.update(body)
    return found.hexdigest()


def is_begun(folder: Path, unpinned: Iterable[str]) -> bool:
    """Whether anything was kept in a folder of results: files beside those of this module, but for those folders."""
    free = {RECIPE, METHODS, DATA, RESULTS, *unpinned}
    paths = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in free)
    return any(path.is_file() and not path.name.startswith(".") for path in paths)  # a dot: files that were being written


class Pins:
    """The pins of a folder whose results.jsonl is open, so that no other process writes them.

    Args:
        begun: whether a cell is finished or something is kept. Before that, the folder belongs to nothing: a run that failed in
            its first cell, for a model or a file that was no good, leaves no mark.
    """

    def __init__(self, folder: Path, *, begun: bool) -> None:
        self.folder = folder
        self.begun = begun
        self._digests = self._read(DATA, "a digest of the data of each setting") if begun else {}
        self._methods = self._read(METHODS, "the options of each method") if begun else {}

    def recipe(self, recipe: dict[str, Any]) -> None:
        """Write the recipe; refuse a folder that is begun with another one, or with one that nobody knows.

        Raises:
            InputError: that, or recipe.json cannot be read.
        """
        file = self.folder / RECIPE
        text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
        if not file.exists():
            if self.begun:
                raise InputError(
                    f"experiment: expected {RECIPE} beside the results in {str(self.folder)!r}; it does not exist, so that "
                    "nobody can tell what they were computed by. Put it back, or choose another --out."
                )
        elif _text(file) == text:
            return
        elif self.begun:
            raise InputError(
                f"experiment: expected --out with results of the recipe of this version; {str(file)!r} says another one. "
                "Choose another --out."
            )
        _write(file, text)

    def methods(self, found: Mapping[str, str]) -> None:
        """Write the options of methods that are run; those of versions that did not write it are not known, nor compared.

        Raises:
            InputError: a method was run here with other ones.
        """
        for name, text in found.items():
            if self._methods.get(name, text) != text:
                raise InputError(
                    f"experiment: expected --out with results of the methods of this version; {name!r} in "
                    f"{str(self.folder)!r} was {self._methods[name]}, and here it is {text}. Choose another --out."
                )
        if not found.keys() <= self._methods.keys():
            self._methods |= found
            _write(self.folder / METHODS, json.dumps(self._methods, indent=2, sort_keys=True) + "\n")

    def data(self, setting: str, found: str | None) -> None:
        """Write what the data of a setting are, before its first cell runs. Of None nothing is known, nor pinned."""
        self.compare(setting, found)
        if found is not None and setting not in self._digests:
            self._digests[setting] = found
            _write(self.folder / DATA, json.dumps(self._digests, indent=2, sort_keys=True) + "\n")

    def has(self, setting: str) -> bool:
        """Whether the data of a setting are pinned."""
        return setting in self._digests

    def compare(self, setting: str, found: str | None) -> None:
        """Refuse other data than those of the setting's first cell.

        Raises:
            InputError: they are other ones.
        """
        if found is not None and self._digests.get(setting, found) != found:
            raise InputError(
                f"experiment: expected --data with the files that the results of {setting!r} in {str(self.folder)!r} were "
                f"computed from; what it holds of {setting!r} now differs from what {DATA} there says. Pass the folder with "
                "the files of before, or choose another --out."
            )

    def _read(self, name: str, what: str) -> dict[str, str]:
        file = self.folder / name
        if not file.exists():  # of a version that did not write it
            return {}
        try:
            found = json.loads(_text(file))
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            raise InputError(
                f"experiment: expected {what} in {str(file)!r}; it has been changed. Put back what a run has written, or "
                "choose another --out."
            )
        return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(
            f"experiment: expected what a run has written in {str(file)!r}; it cannot be read ({reason}). Put it back, or "
            "choose another --out."
        ) from error


def _write(file: Path, text: str) -> None:
    with written_whole(file) as beside:
        beside.write_text(text, encoding="utf-8")
