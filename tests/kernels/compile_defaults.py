"""Compile every head kernel for one target, dtype and precision, and check the binaries. Run by test_compiled_kernels.py."""

import sys
from itertools import product

import torch
from compiled import SHARED_MEMORY, compile_for
from ipfast.kernels import default_config
from ipfast.kernels.head_dot import head_dot_kernel
from ipfast.kernels.head_norm import head_norm_kernel

LOSSES = ((0, 0), (0, 2), (1, 0), (2, 0))
"""(loss, kind of targets beside the label): hard and soft cross-entropy, BCE, MSE."""
MATRIX_INSTRUCTION = {"sm_80": r"\bHMMA\b|HMMA\.", "sm_90": r"HMMA\.|HGMMA", "gfx942": r"v_mfma_"}


def check(target: str, dtype: str, precision: str) -> list[str]:
    """What is wrong with the binaries."""
    wrong = []
    features = getattr(torch, dtype)
    for kernel, classes, (loss, target_kind) in product((head_dot_kernel, head_norm_kernel), (10, 1000), LOSSES):
        if (loss or target_kind) and classes == 1000 and precision not in ("ieee", "bf16"):
            continue  # the tile loop is that of the softmax; compiling takes seconds
        config = default_config(
            512,
            classes,
            features,
            "ieee" if precision == "fp64" else precision,
            query=kernel is head_dot_kernel,
            hip=target.startswith("gfx"),
        )
        every = {
            "LOSS": loss,
            "HAS_BIAS": True,
            "HAS_QUERY_BIAS": True,
            "INCLUDE_BIAS": True,
            "WEIGHT_EACH": True,
            "BIAS_EACH": True,
            "HAS_ROW_FACTOR": loss == 0,
            "HAS_POS_WEIGHT": loss == 1,
            "HAS_OUTPUT_WEIGHT": True,
            "TARGET": target_kind,
            "SINGLE": classes <= config.classes,
            "PRECISION": precision,
        }
        constants = {name: value for name, value in every.items() if name in kernel.arg_names}
        binary = compile_for(kernel, target, features, constants, config)
        name = f"{kernel.fn.__name__}, {classes} classes, loss {loss}, targets {target_kind}, {config}"
        if binary.spilled:
            wrong.append(f"{name}: spills {binary.spilled}, {binary.registers} registers")
        if binary.shared > SHARED_MEMORY[target]:
            wrong.append(f"{name}: needs {binary.shared} bytes of shared memory, {SHARED_MEMORY[target]} are there")
        tensor_cores = precision in ("tf32", "tf32x3", "bf16")
        if tensor_cores and not binary.count(MATRIX_INSTRUCTION[target]):
            wrong.append(f"{name}: no matrix instruction {MATRIX_INSTRUCTION[target]}")
    return wrong


if __name__ == "__main__":
    found = check(*sys.argv[1:])
    print("\n".join(found))
    sys.exit(bool(found))
