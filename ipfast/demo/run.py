"""The demo from start to page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checks import positive_integer
from ..data.writers import check_output, written_whole
from ..errors import InputError, UnavailableError


def run_demo(
    *,
    cifar: Path | None = None,
    cifar_labels: str | None = None,
    report: Path = Path("report.html"),
    noise: float | None = None,
    seed: int = 0,
    echo: Callable[[str], object] = print,
) -> None:
    """Find wrong labels, trim, train again; print the table and write the page.

    Args:
        cifar: folder with CIFAR-10 (binary version) and CIFAR-10_human.pt; None: scikit-learn's digits.
        cifar_labels: which labels of CIFAR-10N, "worse" by default.
        report: .html path, which appears only when complete.
        noise: share of the digits' labels to flip, 0.1 by default.
        seed: of the split, the flips and the network.
        echo: called with each line of text.

    Raises:
        InputError, MissingFileError: an argument or a file does not fit; nothing has been written.
        UnavailableError: scikit-learn or matplotlib is not installed.
    """
    page = check_output("demo", "--report", report, (".html",))
    positive_integer("demo", "--seed", seed + 1)
    if cifar is None and cifar_labels is not None:
        raise InputError("demo: expected --cifar DIR beside --cifar-labels; got the digits, whose labels --noise flips.")
    if cifar is not None and noise is not None:
        raise InputError("demo: expected --noise with the digits only; CIFAR-10N has its own. Choose with --cifar-labels.")
    try:
        from .compare import compare
        from .digits import digits
        from .report import page_of, table_of
    except ImportError as error:
        raise UnavailableError(
            f"demo: expected scikit-learn and matplotlib; {error.name} is not installed. Install: pip install 'ipfast[demo]'."
        ) from error
    if cifar is None:
        problem = digits(0.1 if noise is None else noise, seed)
    else:
        from .cifar import cifar10n

        problem = cifar10n(cifar, cifar_labels or "worse", seed)
    comparison = compare(problem)
    for line in table_of(comparison):
        echo(line)
    with written_whole(page) as beside:
        beside.write_text(page_of(comparison, seed), encoding="utf-8")
    echo(f"\nWritten: {page}  (open it in a browser)")
