"""The checkpoints of a trained model that is scored."""

from __future__ import annotations

BASE_SEED = 1000
"""Of the model that is scored; those of training again are smaller, so that no run is that model's."""
CHECKPOINTS = 5


def checkpoint_epochs(epochs: int) -> list[int]:
    """TracIn's: equally spaced, the last one is the final model.

    >>> checkpoint_epochs(10), checkpoint_epochs(3)
    ([2, 4, 6, 8, 10], [1, 2, 3])
    """
    return sorted({-(-epochs * place // CHECKPOINTS) for place in range(1, CHECKPOINTS + 1)})
