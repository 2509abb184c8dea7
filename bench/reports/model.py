"""The figures of `python -m bench model`."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import model, model_job
from ..record import Row
from . import plain


def terminal(rows: Sequence[Row]) -> str:
    """Every contender on one batch in units of inference, and the bounds."""
    sizes = rows[0].sizes
    return plain.terminal(
        rows,
        title=f"{sizes['network']}, {sizes['parameters']:,} parameters, a batch of {sizes['rows']}",
        base=model.INFERENCE,
        bounds=model.bounds({row.contender: row for row in rows}),
    )


def job_terminal(rows: Sequence[Row]) -> str:
    """Every library on the whole job in units of inference, and the bounds."""
    sizes = rows[0].sizes
    return plain.terminal(
        rows,
        title=f"{sizes['network']}, a query of {sizes['val']} samples and scores of {sizes['train']}",
        base=model_job.INFERENCE,
        bounds=model_job.bounds({row.contender: row for row in rows}),
    )
