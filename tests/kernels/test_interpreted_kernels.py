"""The tests of the operations, with the Triton kernels in the interpreter: their logic and their numbers, without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipfast import dispatch

pytest.importorskip("triton", reason="triton is not installed")
if dispatch.interpreting():
    pytest.skip("this process interprets already: tests/ops runs the kernels itself", allow_module_level=True)

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in (TESTS / "ops").glob("test_*.py")))
def test_kernels_pass_the_tests_of_the_operations(file):
    """In a process of its own, since triton interprets or compiles from its import on."""
    # Safe path: the current folder must not hide an installed ipfast.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    # The interpreter computes with NumPy, which warns of the infinities that the kernels are meant to meet.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::RuntimeWarning",
        TESTS / "ops" / file,
    ]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) > 0
