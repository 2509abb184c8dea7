"""The result of a scoring run."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from .checks import as_tensor, existing_file, positive_integer
from .data.archives import opened_archive
from .data.files import read_scores
from .data.joining import joined, joined_ids
from .data.writers import FORMATS, as_array, check_output, write_table, written_whole
from .errors import InputError, InputTypeError
from .registry import check_choice

BESIDE = ("members", "counted", "by_layer", "by_token")
"""Arrays that there may be beside the values."""


@dataclass(frozen=True)
class Scores:
    """Scores of N training samples, in the order of the data. Positive = beneficial, negative = detrimental, in every method.

    Attributes:
        values: [N], or [N, Q] of several queries, or [N, T] of the tokens of sequences; float32 or float64, on the CPU.
        method, engine, backend: what computed them.
        stats: the query's norm, M, class counts, reasons for the choices, seconds a stage.
        ids: [N] names of the samples, if given.
        members: scores at each point [N, T] ([N, T, Q]), where they were asked for.
        queries: names of the Q queries.
        counted: [N, T] bool, which tokens count, where the values are of tokens; the others score 0.
        by_layer: the part of the parameters of each layer [N, L] ([N, L, Q]), where it was asked for; the sum over layers is
            the values.
        layers: names of the L layers.
        by_token: the part of what the network computes at each position of its sequences [N, T] ([N, T, Q]), where it was asked
            for, 0 beyond their end; with what is at no position, it adds up to the values.
    """

    values: Tensor
    method: str
    engine: str
    backend: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    ids: np.ndarray | None = None
    members: Tensor | None = None
    queries: tuple[str, ...] | None = None
    counted: Tensor | None = None
    by_layer: Tensor | None = None
    layers: tuple[str, ...] | None = None
    by_token: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor) or self.values.dim() not in (1, 2) or not self.values.dtype.is_floating_point:
            shape = f"{self.values.dtype} {list(self.values.shape)}" if isinstance(self.values, Tensor) else type(self.values)
            raise InputError(f"Scores: expected values to be a floating-point tensor [N] or [N, Q]; got {shape}.")
        if self.queries is not None and self.values.shape[1:] != (len(self.queries),):
            raise InputError(
                f"Scores: expected values of shape [N, {len(self.queries)}], one column for each of queries; got "
                f"{list(self.values.shape)}."
            )
        if self.counted is not None and (self.counted.shape != self.values.shape or self.counted.dtype != torch.bool):
            raise InputError(
                f"Scores: expected counted to be bool of shape {list(self.values.shape)}, as values; got {self.counted.dtype} "
                f"{list(self.counted.shape)}."
            )
        if self.by_layer is not None or self.layers is not None:
            given = "None" if self.by_layer is None else str(list(self.by_layer.shape))
            expected = [len(self), len(self.layers or ()), *self.values.shape[1:]]
            if given != str(expected):
                raise InputError(
                    f"Scores: expected by_layer of shape {expected}, a column for each of layers; got {given}. Pass both."
                )
        if self.by_token is not None:
            expected = [len(self), *self.by_token.shape[1:2], *self.values.shape[1:]]
            if list(self.by_token.shape) != expected or self.by_token.dim() < 2:
                raise InputError(
                    f"Scores: expected by_token of a column for each position of {len(self)} sequences, each like values; got "
                    f"{list(self.by_token.shape)}."
                )
        if self.ids is not None and len(self.ids) != len(self.values):
            raise InputError(f"Scores: expected one of ids a value; got {len(self.ids)} for {len(self.values)} values.")

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        low, high = (float(bound) for bound in torch.aminmax(self.values)) if self.values.numel() else (math.nan, math.nan)
        kind = "queries" if self.counted is None else "tokens"
        several = f" × {self.values.shape[1]} {kind}" if self.values.dim() == 2 else ""
        return (
            f"Scores({len(self)} samples{several}, method={self.method!r}, engine={self.engine!r}, backend={self.backend!r}, "
            f"range {low:.4g}..{high:.4g}, {int((self.values < 0).sum())} negative)"
        )

    def count(self, amount: float) -> int:
        """How many samples `amount` means: a float in (0, 1) is a share (floor(share·N)), an int a count up to N."""
        if isinstance(amount, bool) or not isinstance(amount, (int, float, np.integer, np.floating)):
            raise InputTypeError(f"Scores: expected a share in (0, 1) or a count; got {type(amount).__name__}.")
        if isinstance(amount, (int, np.integer)):
            if not 0 <= amount <= len(self):
                raise InputError(f"Scores: expected a count between 0 and {len(self)}; got {amount}.")
            return int(amount)
        if not 0 < amount < 1:
            raise InputError(f"Scores: expected a share between 0 and 1; got {amount:g}. Pass an int for a count.")
        # 0.29·100 is 28.999999999999996: a product that is an integer up to rounding is meant to be that integer.
        return math.floor(float(amount) * len(self) * (1 + 4 * sys.float_info.epsilon))

    def of(self, query: int | str | None = None) -> Tensor:
        """Scores [N] for one query, by number or name; None where there is only one."""
        if self.counted is not None:
            raise InputError(
                "Scores: expected one score a sample; these are scores of tokens [N, T]. Take by_sequence() of them, or look "
                "at values[counted]."
            )
        if self.values.dim() == 1:
            if query is not None:
                raise InputError(f"Scores: expected no query for scores of a single one; got {query!r}. Leave it out.")
            return self.values
        return self.values[:, self._column(query)]

    def only(self, query: int | str) -> Scores:
        """The scores of one query, by number or name, with all that belongs to it: of several queries Scores [N] of one."""
        values = self.of(query)
        column = self._column(query)
        beside = {name: array[..., column] for name in BESIDE if (array := getattr(self, name)) is not None}
        return replace(self, values=values, queries=None, **beside)

    def _column(self, query: int | str | None) -> int:
        """The number of a query, of several."""
        count = self.values.shape[1]
        if isinstance(query, str):
            names = self.queries or ()
            if query not in names:
                known = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}" or "numbers only"
                raise InputError(f"Scores: expected query to be one of {known}; got {query!r}.")
            return names.index(query)
        if isinstance(query, bool) or not hasattr(query, "__index__"):
            raise InputError(
                f"Scores: expected query, a name or a number below {count}, of the {count} there are; got {query!r}."
            )
        number = int(query.__index__())  # type: ignore[union-attr]
        if not 0 <= number < count:
            raise InputError(f"Scores: expected query to be in 0 .. {count - 1}; got {number}.")
        return number

    def of_layer(self, layer: str) -> Tensor:
        """The part of one layer in the scores, [N] or [N, Q], of scores by layer."""
        if self.by_layer is None or self.layers is None:
            raise InputError("Scores: expected scores by layer; these are not. Score with by='layer'.")
        return self.by_layer[:, self.layers.index(check_choice("Scores", "layer", layer, self.layers))]

    def lowest(self, amount: float, *, query: int | str | None = None) -> Tensor:
        """Indices of the most detrimental samples, worst first, ties by index: int64 [k]. See `count` and `of`."""
        return torch.argsort(self.of(query), stable=True)[: self.count(amount)]

    def highest(self, amount: float, *, query: int | str | None = None) -> Tensor:
        """Indices of the most beneficial samples, best first, ties by index: int64 [k]. See `count` and `of`."""
        return torch.argsort(self.of(query), descending=True, stable=True)[: self.count(amount)]

    def topk(self, k: int, *, largest: bool = True, query: int | str | None = None) -> tuple[Tensor, Tensor]:
        """(values, indices) of the k highest scores, or the lowest with largest=False."""
        k = positive_integer("Scores.topk", "k", k)
        indices = self.highest(k, query=query) if largest else self.lowest(k, query=query)
        return self.of(query)[indices], indices

    def by_sequence(self, how: str = "mean") -> Scores:
        """Scores of sequences [N] from those of their tokens: the "mean" over the counted ones, which is the score of
        tokens="mean"; their "sum"; or the lowest, "min", which finds sequences with one bad token. 0 where none counts."""
        check_choice("Scores.by_sequence", "how", how, ("mean", "sum", "min"))
        if self.counted is None:
            raise InputError(
                f"Scores.by_sequence: expected scores of tokens, as tokens='each' gives; got values {list(self.values.shape)}."
            )
        counts = self.counted.sum(dim=1)
        if how == "min":
            values = self.values.masked_fill(~self.counted, torch.inf).amin(dim=1).masked_fill(counts == 0, 0)
        else:
            total = self.values.double().sum(dim=1)
            values = (total if how == "sum" else total / counts.clamp(min=1)).to(self.values.dtype)
        return replace(self, values=values, members=None, counted=None)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each sample's scores over the members (with T − 1): [N], or [N, Q]."""
        if self.members is None or self.members.shape[1] < 2:
            count = "no members" if self.members is None else "one member"
            raise InputError(
                f"Scores: expected the scores of two members or more; got {count}. Score an ensemble with keep_members=True."
            )
        return self.members.std(dim=1)

    @classmethod
    def concat(cls, parts: Iterable[Scores | str | os.PathLike[str]]) -> Scores:
        """Scores of the parts of one data set, one after another: of shards that were scored by themselves.

        Args:
            parts: in the order of the data, each a Scores object or the path of what `save` wrote. Of the same method, queries
                and layers, all or none with ids, members and parts by token. Sequences may be of other lengths in each.

        Returns:
            Scores of all N₁ + N₂ + … samples. Of the stats those that are equal in all parts, and "parts", their numbers of
            samples.

        Raises:
            InputError: a part does not fit the first one, or an id is in two of them.

        >>> one, two = (Scores(torch.tensor(values), "ip", "head", "cpp") for values in ([0.5, -1.0], [2.0]))
        >>> Scores.concat([one, two]).values.tolist()
        [0.5, -1.0, 2.0]
        """
        where = "Scores.concat"
        found: dict[str, Scores] = {}
        if isinstance(parts, (Scores, str, os.PathLike)):
            raise InputTypeError(f"{where}: expected a list of parts; got one, a {type(parts).__name__}. Pass [one, other].")
        for number, part in enumerate(parts):
            if isinstance(part, (str, os.PathLike)):
                found[f"part {number} ({os.fspath(part)})"] = cls.load(part)
            elif isinstance(part, Scores):
                found[f"part {number}"] = part
            else:
                raise InputTypeError(
                    f"{where}: expected parts as Scores, or paths of saved ones; part {number} is a {type(part).__name__}."
                )
        if not found:
            raise InputError(f"{where}: expected at least one part; got none.")
        every = list(found.values())
        check_alike(where, found)
        arrays = {name: joined([getattr(part, name) for part in every]) for name in ("values", *BESIDE)}
        first, *others = every
        common = {k: v for k, v in first.stats.items() if all(k in each.stats and each.stats[k] == v for each in others)}
        return cls(
            method=first.method,
            engine=", ".join(dict.fromkeys(part.engine for part in every)),
            backend=", ".join(dict.fromkeys(part.backend for part in every)),
            stats={**common, "parts": [len(part) for part in every]},
            ids=joined_ids(where, {name: part.ids for name, part in found.items() if part.ids is not None}),
            queries=first.queries,
            layers=first.layers,
            **arrays,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to .safetensors (everything, for `load`), .parquet or .csv (id or index, score) or .npy (the scores alone).

        Of scores by layer .parquet and .csv get a column for each layer too. Of scores of tokens they get a row a counted token
        (id or index, token, token score), and .npy gets [N, T]. Parts by token are in .safetensors alone.
        """
        where = "Scores.save"
        file = check_output(where, "path", path, (".safetensors", *FORMATS))
        if self.counted is not None and file.suffix in (".csv", ".parquet"):
            return write_table(where, file, self._token_columns(self.counted))
        if file.suffix != ".safetensors":
            names = {"index": np.arange(len(self))} if self.ids is None else {"id": self.ids}
            layers = self._layer_columns() if file.suffix != ".npy" else {}
            named = self.queries or () if file.suffix != ".npy" else ()
            check_columns(where, named)
            return write_table(where, file, {**names, **self._columns(file.suffix), **layers})
        about = {
            "method": self.method,
            "engine": self.engine,
            "backend": self.backend,
            "stats": json.dumps(dict(self.stats)),
            "ids": json.dumps(None if self.ids is None else self.ids.tolist()),
            "queries": json.dumps(self.queries),
            "layers": json.dumps(self.layers),
        }
        arrays = {"values": self.values} | {name: array for name in BESIDE if (array := getattr(self, name)) is not None}
        with written_whole(file) as beside:
            save_file({name: as_array(array.contiguous()) for name, array in arrays.items()}, beside, metadata=about)
        return None

    def _columns(self, suffix: str) -> dict[str, np.ndarray]:
        """The scores as columns of a table: one a query, where it is not the one array of .npy."""
        if self.values.dim() == 1 or suffix == ".npy":
            return {"score": as_array(self.values)}
        names = self.queries or tuple(map(str, range(self.values.shape[1])))
        return {f"score {name}": as_array(self.values[:, index].contiguous()) for index, name in enumerate(names)}

    def _layer_columns(self) -> dict[str, np.ndarray]:
        """The parts of each layer as columns of a table, named after the column that they are parts of."""
        found: dict[str, np.ndarray] = {}
        for layer in self.layers or ():
            part = replace(self, values=self.of_layer(layer), by_layer=None, layers=None, by_token=None)
            found |= {f"{name}, {layer or 'the model itself'}": column for name, column in part._columns("").items()}
        return found

    def _token_columns(self, counted: Tensor) -> dict[str, np.ndarray]:
        """One row a counted token: its sequence, its position and its score."""
        sequence, position = (place.numpy() for place in counted.nonzero(as_tuple=True))
        names = {"index": sequence} if self.ids is None else {"id": self.ids[sequence]}
        return {**names, "token": position, "token score": as_array(self.values[counted])}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read what `save` wrote: everything from .safetensors; scores, their queries and ids from .csv and .parquet, whose
        rows go by `index` where it holds 0..N−1; scores [N] from .npy. Scores of tokens come back from .safetensors alone."""
        where = "Scores.load"
        file = existing_file(where, "path", path)
        if file.suffix in FORMATS:
            values, queries, ids = read_scores(where, "path", file)
            return cls(as_tensor(values), "unknown", "unknown", "unknown", {}, ids, queries=queries)
        with opened_archive(where, file, "Scores.save") as (about, archive):
            ids = json.loads(about["ids"])
            queries, layers = (json.loads(about.get(name, "null")) for name in ("queries", "layers"))
            return cls(
                archive.get_tensor("values"),
                about["method"],
                about["engine"],
                about["backend"],
                json.loads(about["stats"]),
                None if ids is None else np.asarray(ids),
                queries=None if queries is None else tuple(queries),
                layers=None if layers is None else tuple(layers),
                **{name: archive.get_tensor(name) for name in BESIDE if name in archive.keys()},  # noqa: SIM118 (not a dict)
            )


def check_columns(where: str, queries: Sequence[str]) -> None:
    """Refuse names of queries that a table could not tell apart."""
    for name in queries:
        longer = next((other for other in queries if other.startswith(f"{name}, ")), None)
        if longer is not None:  # parts of a layer are named so
            raise InputError(
                f"{where}: expected queries whose columns can be told apart; {longer!r} looks like a part of {name!r}. "
                "Save as .safetensors, or rename one of them."
            )


def check_alike(where: str, parts: Mapping[str, Scores]) -> None:
    """Refuse parts, by name, that are not of one kind."""
    (first, one), *others = parts.items()
    for name, part in others:
        for what, of in KINDS.items():
            if of(part) != of(one):
                raise InputError(
                    f"{where}: expected parts of the same data set, scored alike; {what} of {first}: {of(one)}, of {name}: "
                    f"{of(part)}. Score them with the same arguments."
                )


def _columns_of(array: Tensor | None) -> str:
    """The shape of what belongs to a sample."""
    return "none" if array is None else str(list(array.shape[1:]))


def _presence(array: Any) -> str:
    return "none" if array is None else "some"


KINDS: dict[str, Callable[[Scores], str]] = {
    # what parts have in common
    "method": lambda scores: scores.method,
    "tokens": lambda scores: _presence(scores.counted),
    "queries": lambda scores: ", ".join(scores.queries or ()) or "none",
    "columns": lambda scores: _columns_of(scores.values if scores.counted is None else None),
    "members": lambda scores: _columns_of(scores.members),
    "layers": lambda scores: f"{', '.join(scores.layers or ()) or 'none'} {_columns_of(scores.by_layer)}",
    "parts by token": lambda scores: "none" if scores.by_token is None else f"each {list(scores.by_token.shape[2:])}",
    "ids": lambda scores: _presence(scores.ids),
}
