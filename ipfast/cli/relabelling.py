"""The rules of ipfast curate --action relabel, and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipfast
from ipfast.curate.inputs import hard_labels, read_values

TAKES = {
    # what each rule computes from the features, or takes in its place
    "runner_up": ("head", "logits"),
    "rdia_soft": ("head", "logits"),
    "ip_relabel": ("head", "val", "loss", "stored_query", "label_scores"),
}
WAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    # what is enough, each way for itself
    "runner_up": (("head",), ("logits",)),
    "rdia_soft": (("head",), ("logits",)),
    "ip_relabel": (("head", "val"), ("stored_query",), ("label_scores",)),
}
STORED = ("logits", "label_scores")
"""What needs no features: it was computed from them before."""


@dataclass(frozen=True)
class Relabelling:
    """The options of `ipfast curate` that belong to one rule or another, as they were given."""

    head: Path | None
    val: Path | None
    loss: str | None
    stored_query: Path | None
    logits: Path | None
    label_scores: Path | None

    def check(self, rule: str, has_features: bool) -> None:
        """Refuse what the rule does not look at, and too much or too little of what it does.

        Args:
            rule: of relabel its --how; otherwise the action, which takes none of the options.
        """
        given = tuple(name for name, value in vars(self).items() if value is not None)
        for name in given:
            if name not in TAKES.get(rule, ()):
                users = " or ".join(how for how, names in TAKES.items() if name in names)
                raise ipfast.InputError(
                    f"curate: expected {_option(name)} with --action relabel --how {users} only; got {rule!r}. Leave it out."
                )
        if rule not in TAKES:
            return
        without_loss = tuple(name for name in given if name != "loss")
        if without_loss not in WAYS[rule] or ("loss" in given and "val" not in given):
            every = ", or ".join(" and ".join(map(_option, way)) for way in WAYS[rule])
            raise ipfast.InputError(
                f"curate: expected {every}, with --how {rule}; got {' and '.join(map(_option, given)) or 'none'}."
            )
        if not has_features and given[0] not in STORED:
            raise ipfast.InputError(
                f"curate: expected --train data.npz, or both --features and --labels, with {_option(given[0])}, which is "
                "applied to them; got none."
            )

    def of_classes(self, rule: str, features: Path | None, labels: Path | None, rows: int) -> dict[str, Any]:
        """Logits, or scores under other labels, of the features, [N, C]: as given, or computed where they were not, once
        features and labels are known to be those of the N scored samples."""
        if rule not in TAKES or self.logits is not None or self.label_scores is not None:
            return {name: getattr(self, name) for name in STORED}
        hard_labels("curate", labels, rows)
        array = read_values("curate", "features", features)
        if len(array) != rows:
            raise ipfast.InputError(
                f"curate: expected features of the {rows} scored samples; got {len(array)}. Are the scores of other data?"
            )
        if rule == "ip_relabel":
            query = self.stored_query if self.head is None else ipfast.query(self.head, self.val, loss=self.loss or "auto")
            return {"label_scores": ipfast.curate.label_scores(query, array)}
        return {"logits": ipfast.curate.head_logits(self.head, array)}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
