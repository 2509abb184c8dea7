"""What curation takes: scores as an object, an array or a file; and labels, groups and logits beside them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor, fixed_width, missing_row
from ..data.files import read_named, read_npy, scores_in
from ..data.frames import array_of
from ..errors import InputError, InputTypeError
from ..scores import Scores


def as_scores(where: str, scores: Any, argument: str = "scores", *, query: int | str | None = None) -> Scores:
    """Scores [N], or [N, Q] of several queries of which none is chosen, without NaN: from a Scores object, an array, a table,
    or a file that Scores.save wrote."""
    if isinstance(scores, (str, os.PathLike)):
        scores = Scores.load(scores)
    if hasattr(scores, "columns") and hasattr(scores, "to_numpy"):
        scores = _of_table(where, argument, scores)
    if not isinstance(scores, Scores):
        scores = Scores(
            read_numbers(where, argument, scores, "a Scores object, numbers [N], or the path of a file of scores").to(
                torch.float64
            ),
            "unknown",
            "unknown",
            "unknown",
        )
    if query is not None:
        scores = scores.only(query)
    assert isinstance(scores, Scores)
    finite = torch.isfinite(scores.values)
    if not bool(finite.all()):
        row, *column = (~finite).nonzero()[0].tolist()
        of = f" of query {scores.queries[column[0]] if scores.queries else column[0]!r}" if column else ""
        raise InputError(
            f"{where}: expected finite {argument}; row {row}{of} has {float(scores.values[(row, *column)]):g}. Score it again, "
            "or leave it out."
        )
    return scores


def _of_table(where: str, argument: str, frame: Any) -> Scores:
    """Scores of a DataFrame as of the file it was read from; without columns of that name every column is a query, but for
    `index` and `id`."""
    names = list(map(str, frame.columns))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: expected {argument} to be a table with columns of different names; got {twice!r} twice.")
    table = {name: frame[column].to_numpy() for name, column in zip(names, frame.columns, strict=True)}
    if "score" not in table and not any(name.startswith("score ") for name in names):
        plain = [name for name in names if name not in ("index", "id")]
        if len(plain) == 1:
            table["score"] = table.pop(plain[0])
        else:
            table = {name if name in ("index", "id") else f"score {name}": column for name, column in table.items()}
    try:
        values, queries, ids = scores_in(table)
    except (KeyError, TypeError, ValueError) as error:
        raise InputTypeError(
            f"{where}: expected {argument} to be a table with a column 'score' of numbers, 'score NAME' of each query, or one "
            f"of numbers for each; got columns {', '.join(map(repr, names)) or 'none'} ({type(error).__name__}: {error})."
        ) from error
    return Scores(as_tensor(values), "unknown", "unknown", "unknown", {}, ids, queries=queries)


def class_numbers(where: str, argument: str, values: Any, rows: int) -> tuple[Tensor, list[str]]:
    """(class of each sample [N], 0..K−1 in sorted order of the values, their names), of numbers or strings."""
    given = values
    values = _array(where, argument, values)
    if isinstance(values, Tensor):
        # NumPy has no bfloat16, whose numbers float64 holds as they are.
        values = values.detach().cpu()
        values = (values.double() if values.dtype.is_floating_point else values).numpy()
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    array = fixed_width(array)
    if array.dtype.kind in "OTU" and (row := missing_row(given)) is not None:  # of a list NumPy makes the word "nan"
        raise InputError(f"{where}: expected {argument} of every sample; got a missing value at row {row}. Fill it in first.")
    if array.dtype.kind not in "iufU" or array.shape != (rows,):
        got = f"{array.dtype} {list(array.shape)}" if array.ndim else type(values).__name__
        raise InputError(
            f"{where}: expected {argument} to be {rows} numbers or strings, one for each scored sample; got {got}."
        )
    names, numbers = np.unique(array, return_inverse=True)
    if array.dtype.kind == "f" and not np.isfinite(names).all():
        row = int((~np.isfinite(array)).nonzero()[0][0])
        raise InputError(f"{where}: expected finite {argument}; got {array[row]} at row {row}.")
    shown = [str(int(name)) if array.dtype.kind == "f" and name == int(name) else str(name) for name in names.tolist()]
    return torch.from_numpy(numbers.astype(np.int64).reshape(-1)), shown


def kept_indices(where: str, keep: Any, rows: int) -> Tensor:
    """Indices of kept samples, int64 [k], of whole numbers in [0, N) or of a mask [N] that is true where a sample stays."""
    expected = f"indices of the {rows} samples, or a mask of them"
    found = read_numbers(where, "keep", keep, expected, widen="u")
    if found.dim() != 1:
        raise InputError(f"{where}: expected keep to be {expected}, in one dimension; got {list(found.shape)}.")
    if found.dtype == torch.bool:
        if len(found) != rows:
            raise InputError(f"{where}: expected keep to be a mask of the {rows} samples; got {len(found)}.")
        return found.nonzero()[:, 0]
    if not len(found):
        return found.long()
    if found.dtype.is_floating_point:
        raise InputTypeError(f"{where}: expected keep to be {expected}, as integers or bool; got {found.dtype}.")
    wrong = (found < 0) | (found >= rows)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise InputError(
            f"{where}: expected keep to hold indices of the {rows} samples; got {int(found[place])} at place {place}."
        )
    return found.long()


def mask_length(where: str, keep: Any) -> int | None:
    """N, where `keep` is a mask of N samples; None where it holds indices, which do not tell."""
    found = read_numbers(where, "keep", keep, "indices of samples, or a mask of them", widen="u")
    return len(found) if found.dtype == torch.bool and found.dim() == 1 else None


def sample_weights(where: str, weights: Any) -> Tensor:
    """Weights [N] in float64, finite and not negative."""
    expected = "numbers [N], one for each sample"
    found = read_numbers(where, "weights", weights, expected).double()
    if found.dim() != 1:
        raise InputError(f"{where}: expected weights to be {expected}; got shape {list(found.shape)}.")
    wrong = ~torch.isfinite(found) | (found < 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(f"{where}: expected finite weights that are not negative; got {float(found[row]):g} at row {row}.")
    return found


def soft_labels(where: str, values: Any, rows: int) -> Tensor | None:
    """Soft targets [N, K] in float64, finite; None where labels are of another shape, as hard ones."""
    array = _array(where, "new_labels", values)
    if len(getattr(array, "shape", ())) != 2 or array.shape[1] < 2:
        return None
    found = read_numbers(where, "new_labels", array, f"labels [{rows}], or soft targets [{rows}, K]").double()
    if len(found) != rows:
        raise InputError(f"{where}: expected new_labels of the {rows} samples; got {len(found)}.")
    finite = torch.isfinite(found).all(dim=1)
    if not bool(finite.all()):
        raise InputError(f"{where}: expected finite new_labels; row {int((~finite).nonzero()[0])} has NaN or infinity.")
    return found


def read_values(where: str, argument: str, values: Any) -> Any:
    """The array where `values` is the path of one."""
    return _read(where, argument, values) if isinstance(values, (str, os.PathLike)) else values


def hard_labels(where: str, labels: Any, rows: int, *, least: int | None = 0) -> tuple[Tensor, Tensor]:
    """(labels as they are, a copy; the same as int64 [N]), of whole numbers [N] or [N, 1], none below `least`."""
    given = read_numbers(where, "labels", labels, "whole numbers, the class of each scored sample from 0 on").clone()
    if given.shape not in ((rows,), (rows, 1)):
        raise InputError(
            f"{where}: expected labels of shape [{rows}], one class for each scored sample; got {list(given.shape)}."
        )
    whole = given.long().reshape(rows)
    different = given.reshape(rows) != whole
    if bool(different.any()):
        row = int(different.nonzero()[0])
        raise InputError(
            f"{where}: expected labels as whole numbers, the class of each sample; got {float(given.reshape(rows)[row]):g} at "
            f"row {row}."
        )
    if rows and least is not None and int(whole.min()) < least:
        row = int((whole < least).nonzero()[0])
        raise InputError(f"{where}: expected labels in 0..C-1; got {int(whole[row])} at row {row}. Encode classes from 0 on.")
    return given, whole


def by_class(where: str, argument: str, values: Any, rows: int, labels: Tensor) -> Tensor:
    """Finite numbers [N, C] that belong to labels; [N] or [N, 1] of a binary head stand for its two classes, (0, z)."""
    if values is None:
        raise InputError(f"{where}: expected {argument} [N, C], a number for each class of each sample; got None.")
    found = read_numbers(where, argument, values, "numbers [N, C], one for each class")
    if found.dim() == 1:
        found = found[:, None]
    if found.dim() != 2 or len(found) != rows or not found.shape[1]:
        raise InputError(
            f"{where}: expected {argument} of shape [{rows}, C], a row for each scored sample; got {list(found.shape)}."
        )
    found = found if found.dtype.is_floating_point else found.float()
    finite = torch.isfinite(found).all(dim=1)
    if not bool(finite.all()):
        raise InputError(f"{where}: expected finite {argument}; row {int((~finite).nonzero()[0])} has NaN or infinity.")
    if found.shape[1] == 1:
        found = torch.cat([torch.zeros_like(found), found], dim=1)
    if rows and int(labels.max()) >= found.shape[1]:
        row = int((labels >= found.shape[1]).nonzero()[0])
        raise InputError(
            f"{where}: expected labels in 0..{found.shape[1] - 1}, the classes of {argument}; got {int(labels[row])} at row "
            f"{row}."
        )
    return found


def _read(where: str, argument: str, path: str | os.PathLike[str]) -> Any:
    """The array of an .npy file, or the one of that name in an archive, where classes are its `labels`."""
    if os.fspath(path).endswith((".npz", ".safetensors")):
        name = {"within": "labels", "new_labels": "labels", "keep": "index"}.get(argument, argument)
        return read_named(where, argument, path, (name,))[name]
    return read_npy(where, argument, path)


def _array(where: str, argument: str, values: Any) -> Any:
    """A path as the array in it, sequences and columns of a table as arrays; anything else as it is."""
    values = read_values(where, argument, values)
    if isinstance(values, Tensor):
        return values
    if hasattr(values, "to_numpy"):
        return array_of(where, argument, values)
    if isinstance(values, (list, tuple, range)):
        try:
            return np.asarray([value.tolist() if isinstance(value, Tensor) else value for value in values])
        except ValueError as error:
            raise InputError(
                f"{where}: expected {argument} with as many numbers in each row; got a {type(values).__name__} of rows of "
                "different lengths."
            ) from error
    return values


def read_numbers(where: str, argument: str, values: Any, expected: str, *, widen: str = "ub") -> Tensor:
    """Numbers as a tensor; of arrays those of the kinds `widen`, unsigned and bool, as int64, which is a copy of all."""
    values = _array(where, argument, values)
    if isinstance(values, Tensor) and values.dtype in (
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ):  # of which torch can do little
        values = values.long()
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufb" and values.dtype.itemsize <= 8:
        values = as_tensor(values.astype(np.int64) if values.dtype.kind in widen else values)
    if not isinstance(values, Tensor) or values.dtype.is_complex:
        kind = str(values.dtype) if isinstance(values, (np.ndarray, Tensor)) else type(values).__name__
        raise InputTypeError(f"{where}: expected {argument} to be {expected}; got {kind}.")
    return values.detach().cpu()
