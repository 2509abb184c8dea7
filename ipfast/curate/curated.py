"""One step from scores to a training set, with the report of what it changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, WeightedRandomSampler

from ..checks import check_no_overwriting
from ..data import check_output
from ..data.writers import ARCHIVES, FORMATS, as_array
from ..errors import InputError
from ..registry import check_choice
from .changes import Before, relabelled, reweighted, trimmed
from .files import training_arrays, write
from .inputs import as_scores, read_values
from .relabelling import relabel
from .reports import Report
from .reweighting import reweight
from .selection import lowest
from .training import sampler, subset
from .trimming import trim

ACTIONS = ("trim", "relabel", "reweight")


@dataclass(frozen=True)
class Curated:
    """A curated training set of N samples.

    Attributes:
        action: "trim", "relabel" or "reweight".
        keep: indices of the samples to train on, in order, int64: all but the dropped ones.
        changed: indices of the dropped or relabelled samples, worst first, int64 [k]; of reweight none.
        labels: new labels of all samples, of relabel. weights: of all samples, of reweight, with mean 1.
        report: what changed, by class and by group.
        ids: [N] names of the samples, where the scores have them.
    """

    action: str
    keep: Tensor
    changed: Tensor
    labels: Tensor | None
    weights: Tensor | None
    report: Report
    ids: np.ndarray | None = None

    def dataset(self, data: Any, labels_key: str = "labels") -> Subset[Any]:
        """The samples of a data set to train on, with their new labels."""
        rows = self.report.samples
        if hasattr(data, "__len__") and len(data) != rows:
            raise InputError(f"Curated.dataset: expected data of the {rows} scored samples; got {len(data)}.")
        return subset(data, self.keep, self.labels, labels_key)

    def sampler(self, *, seed: int | None = None) -> WeightedRandomSampler:
        """Draws samples by their weights."""
        if self.weights is None:
            raise InputError(f"Curated.sampler: expected weights, which 'reweight' gives; this is of {self.action!r}.")
        return sampler(self.weights, seed=seed)

    def save(self, out: str | os.PathLike[str], data: Any = None, *, report: str | os.PathLike[str] | None = None) -> None:
        """Write to a file that appears only when it is complete.

        .npy, .csv or .parquet get the kept indices, the new labels or the weights, tables with the ids of the samples where the
        scores have them; .npz and .safetensors the curated `features` and `labels` themselves, with `index` where samples were
        dropped and `weights` where they are weighted. Features of memory-mapped files are copied in blocks; where samples are
        dropped through a temporary file beside `out`.

        Args:
            data: the training data of .npz and .safetensors: a pair of arrays or .npy paths, or a path with both.
            report: .json path for the report.
        """
        self._write("curate", self.check_save(self.action, out, data, report=report), data)
        if report is not None:
            self.report.save(report)

    @staticmethod
    def check_save(
        action: str, out: str | os.PathLike[str], data: Any = None, *, report: str | os.PathLike[str] | None = None
    ) -> Path:
        """Refuse what `save` would refuse, for those who want to know before they have a Curated; gives `out` as a Path.

        Args:
            action: "trim", "relabel" or "reweight". out, data, report: as in `save`.
        """
        where = "curate"
        check_choice(where, "action", action, ACTIONS)
        file = check_output(where, "out", out, (*FORMATS, *ARCHIVES))
        if report is not None:
            check_output(where, "report", report, (".json",))
        check_no_overwriting(where, {"out": out, "report": report}, {"data": data})
        if file.suffix in ARCHIVES and data is None:
            raise InputError(f"{where}: expected the training data to write {file.name!r}; got none. Pass it, or write .npy.")
        if file.suffix in ARCHIVES:
            training_arrays(where, file, data)
        if file.suffix not in ARCHIVES and data is not None and action == "trim":  # new labels and weights are all that is new
            raise InputError(
                f"{where}: expected out to end in .npz or .safetensors to hold the data; got {file.name!r}. To write indices "
                "pass no features, and labels alone where classes are asked for."
            )
        return file

    def _names(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The first column of a table, of those samples."""
        return {"index": rows} if self.ids is None else {"id": self.ids[rows]}

    def _write(self, where: str, file: Path, data: Any) -> None:
        keep, rows = self.keep.numpy(), self.report.samples
        if self.action == "trim":
            write(where, file, {**self._names(keep), "index": keep}, rows=rows, data=data, keep=keep)
        elif self.labels is not None:
            new = as_array(self.labels)
            columns = {"label": new}
            if new.ndim == 2 and file.suffix in (".csv", ".parquet"):
                columns = {f"label {c}": np.ascontiguousarray(new[:, c]) for c in range(new.shape[1])}
            write(where, file, {**self._names(np.arange(rows)), **columns}, rows=rows, data=data, labels=self.labels)
        else:
            assert self.weights is not None
            weights = {"weights": self.weights.numpy()}
            columns = {**self._names(np.arange(rows)), "weight": weights["weights"]}
            write(where, file, columns, rows=rows, data=data, more=weights)


def apply(
    scores: Any,
    action: str = "trim",
    amount: float | None = None,
    *,
    labels: Any = None,
    groups: Any = None,
    within: Any = None,
    query: int | str | None = None,
    how: str = "flip",
    logits: Any = None,
    label_scores: Any = None,
    temperature: float | None = None,
    clip: float | None = None,
) -> Curated:
    """Trim, relabel or reweight, and tell what changed.

    Args:
        scores, amount, within, query: as in `trim`; amount is 0.05 unless given, and reweight takes none.
        action: "trim", "relabel" or "reweight".
        labels: [N], which relabel needs, and from which the report tells the balance of the classes; also the path of an .npy
            file, or of an .npz or .safetensors file that holds `labels`.
        groups: [N] of any other attribute that the report shall tell of.
        how, logits, label_scores: as in `relabel`. temperature, clip: as in `reweight`.

    Returns:
        Curated, ready for training or for a file.

    Raises:
        InputError, InputTypeError: an argument does not fit the scores, or is of another action.

    >>> made = apply(torch.tensor([0.3, -1.0, 0.2, 0.1]), "relabel", 1, labels=torch.tensor([0, 1, 1, 0]))
    >>> made.labels.tolist(), made.changed.tolist(), made.report.classes[0].after
    ([0, 0, 1, 0], [1], 3.0)
    """
    where = "curate"
    check_choice(where, "action", action, ACTIONS)
    others = {
        "amount": (amount is not None, ("trim", "relabel")),
        "within": (within is not None, ("trim", "relabel")),
        "how": (how != "flip", ("relabel",)),
        "logits": (logits is not None, ("relabel",)),
        "label_scores": (label_scores is not None, ("relabel",)),
        "temperature": (temperature is not None, ("reweight",)),
        "clip": (clip is not None, ("reweight",)),
    }
    for name, (is_given, users) in others.items():
        if is_given and action not in users:
            raise InputError(f"{where}: expected no {name} with {action!r}; it is of {' and '.join(users)}. Leave it out.")
    found = as_scores(where, scores, query=query)
    rows, every = len(found), torch.arange(len(found))
    labels, groups = read_values(where, "labels", labels), read_values(where, "groups", groups)
    before = Before.read(where, rows, labels, groups)
    if action == "reweight":
        weights = reweight(found, temperature=temperature, clip=clip)
        return Curated(action, every, every[:0], None, weights, reweighted(where, before, weights), found.ids)
    amount = 0.05 if amount is None else amount
    if action == "trim":
        keep, new = trim(found, amount, within=within), None
        about = trimmed(where, before, keep)
    else:
        if labels is None:
            raise InputError(f"{where}: expected labels with 'relabel'; got None.")
        keep = every
        new = relabel(found, amount, labels, how=how, logits=logits, label_scores=label_scores, within=within)
        about = relabelled(where, before, new)
    return Curated(action, keep, lowest(where, found, amount, within=within), new, None, about, found.ids)
