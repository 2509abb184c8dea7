"""--train, or --features and --labels: how commands are given the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipfast


def training_data(where: str, train: Path | None, features: Path | None, labels: Path | None) -> Any:
    """The training data: one file, or a pair of .npy files."""
    if train is not None and features is None and labels is None:
        return train
    if train is None and features is not None and labels is not None:
        return (features, labels)
    raise ipfast.InputError(
        f"{where}: expected either --train data.npz (with features and labels) or both --features H.npy and --labels y.npy."
    )
