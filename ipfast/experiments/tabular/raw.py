"""What a reader gives: a table of numbers and binary labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Raw:
    """All rows of a data set, before they are split and standardised.

    Attributes:
        features: [N, d] float64. labels: [N] int64, 0 or 1.
    """

    features: np.ndarray
    labels: np.ndarray
