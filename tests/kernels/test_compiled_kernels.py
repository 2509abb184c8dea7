"""Each kernel compiled for GPUs that need not be here: nothing spills, shared memory fits, matrix products use tensor cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

COMBINATIONS = [
    ("float32", "ieee"),
    ("float32", "tf32"),
    ("float32", "tf32x3"),
    ("float32", "bf16"),
    ("bfloat16", "bf16"),
    ("bfloat16", "ieee"),
    ("float16", "ieee"),
    ("float64", "fp64"),
]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize(("dtype", "precision"), COMBINATIONS)
@pytest.mark.parametrize("script", ["compile_defaults.py", "compile_layers.py"])
def test_default_configurations_fit_the_machine(script, dtype, precision, target):
    if target == "gfx942" and precision == "tf32x3":
        pytest.skip("tf32x3 is NVIDIA's; on AMD the launcher asks for ieee, which is tested")
    # A process of its own: elsewhere in the suite triton may be imported for its interpreter, and it is one or the other.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    file = Path(__file__).parent / script
    done = subprocess.run(
        [sys.executable, "-W", "ignore", file, target, dtype, precision], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
