"""Compile a kernel for a GPU that is not here, and read from the binary what it would cost there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory (LDS) that one block may have."""


@dataclass(frozen=True)
class Binary:
    """What the machine code says of itself."""

    registers: int
    spilled: int  # NVIDIA: bytes of stack and local memory; AMD: spilled registers and bytes of scratch
    shared: int
    assembly: str

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.assembly))


def signature(kernel: Any, features: torch.dtype, constants: dict[str, Any]) -> dict[str, str]:
    """Types of a head kernel's arguments, for features of a dtype."""
    compute = "*fp64" if features == torch.float64 else "*fp32"
    multiplied = "*bf16" if constants["PRECISION"] == "bf16" else compute
    result = {}
    for name in kernel.arg_names:
        if name in constants:
            result[name] = "constexpr"
        elif name in ("rows", "width", "stride", "classes", "outputs"):
            result[name] = "i32"
        elif name == "features":
            result[name] = f"*{TYPES[features]}"
        elif name == "labels":
            result[name] = "*i64" if constants["LOSS"] == 0 else compute
        else:
            result[name] = multiplied if name in ("weight", "query") else compute
    return result


def compile_for(
    kernel: Any, target: str, features: torch.dtype, constants: dict[str, Any], config: Any, *, aligned: bool = False
) -> Binary:
    """A head kernel's binary for a target, with the block sizes of a config; aligned: for rows of multiples of 16 elements."""
    constants = {**constants, "BLOCK_N": config.rows, "BLOCK_C": config.classes, "BLOCK_D": config.width}
    types = signature(kernel, features, constants)
    multiples = [name for name, kind in types.items() if kind.startswith("*") or name in ("width", "stride")]
    return compiled(kernel, target, types, constants, config, multiples if aligned else [])


def compiled(
    kernel: Any, target: str, types: dict[str, str], constants: dict[str, Any], config: Any, multiples: Sequence[str] = ()
) -> Binary:
    """A kernel's binary for a target, with the warps and stages of a config; multiples: arguments that 16 divides."""
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    made = triton.compile(source, target=TARGETS[target], options=options)
    read = _read_hip if target.startswith("gfx") else _read_cuda
    return read(made)


def _read_cuda(made: Any) -> Binary:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", file)
        assembly = _cuobjdump("--dump-sass", file)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Binary(found["REG"], found["STACK"] + found["LOCAL"], made.metadata.shared, assembly)


def _cuobjdump(option: str, file: Path) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, option, file], check=True, capture_output=True, text=True).stdout


def _read_hip(made: Any) -> Binary:
    assembly = made.asm["amdgcn"]
    field = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", assembly, flags=re.MULTILINE)}
    spilled = field["vgpr_spill_count"] + field["sgpr_spill_count"] + field["private_segment_fixed_size"]
    return Binary(field["vgpr_count"], spilled, made.metadata.shared, assembly)
