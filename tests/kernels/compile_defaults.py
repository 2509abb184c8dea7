"""Compile every head kernel for one target, dtype and precision, and check the binaries. Run by test_compiled_kernels.py."""

import sys
from itertools import product

import torch
from compiled import SHARED_MEMORY, compile_for
from ipfast.kernels import default_config, members_config
from ipfast.kernels.head_dot import head_dot_kernel
from ipfast.kernels.head_dot_members import head_dot_members_kernel
from ipfast.kernels.head_norm import head_norm_kernel

LOSSES = ((0, 0), (0, 2), (1, 0), (2, 0))
"""(loss, kind of targets beside the label): hard and soft cross-entropy, BCE, MSE."""
LARGE_SPILL = 128
"""Bytes a thread that large tiles may keep in local memory: those of tf32x3 do, and an H200 was still fastest with them."""
MATRIX_INSTRUCTION = {"sm_80": r"\bHMMA\b|HMMA\.", "sm_90": r"HMMA\.|HGMMA", "gfx942": r"v_mfma_"}


def check(target: str, dtype: str, precision: str) -> list[str]:
    """What is wrong with the binaries."""
    wrong = []
    features = getattr(torch, dtype)
    hip, asked = target.startswith("gfx"), "ieee" if precision == "fp64" else precision
    shapes = [(kernel, classes, 1) for kernel in (head_dot_kernel, head_norm_kernel) for classes in (10, 100, 1000)]
    members = [(head_dot_members_kernel, classes, together) for classes, together in ((2, 8), (10, 5))]
    sizes = (False, True) if target == "sm_90" and precision in ("tf32", "tf32x3", "bf16") else (False,)
    cases = product(sizes, shapes + members * (precision != "fp64" and not hip), LOSSES)
    for large, (kernel, classes, together), (loss, target_kind) in cases:
        if classes == 100 and not large:
            continue  # as 1000
        if large and (loss or target_kind):
            continue  # large tiles are for plain labels
        if (loss or target_kind) and classes == 1000 and precision not in ("ieee", "bf16"):
            continue  # the tile loop is that of the softmax; compiling takes seconds
        if together > 1:
            config = members_config(512, classes * together, asked, large=large)
        else:
            config = default_config(512, classes, features, asked, query=kernel is head_dot_kernel, large=large, hip=hip)
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
            "MEMBERS": together,
            "PRECISION": precision,
        }
        constants = {name: value for name, value in every.items() if name in kernel.arg_names}
        binary = compile_for(kernel, target, features, constants, config, aligned=large)
        name = f"{kernel.fn.__name__}, {classes} classes, {together} queries, loss {loss}, targets {target_kind}, {config}"
        if binary.spilled > (LARGE_SPILL if large else 0):
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
