"""Compile every layer kernel for one target, dtype and precision, and check the binaries. Run by test_compiled_kernels.py."""

import sys
from itertools import product

import torch
from compile_defaults import MATRIX_INSTRUCTION
from compiled import SHARED_MEMORY, TYPES, compiled
from ipfast.kernels import LayerConfig, default_layer_config
from ipfast.kernels._layer_tiles import SUM_TILE, sum_parts_kernel
from ipfast.kernels.layer_dot import PIECE, SAMPLES, layer_contract_kernel, layer_direct_kernel
from ipfast.kernels.layer_norm_sq import TOKEN_TILE, layer_gram_kernel, layer_square_kernel, layer_token_kernel

KERNELS = {
    layer_contract_kernel: "contract",
    layer_direct_kernel: "direct",
    layer_gram_kernel: "gram",
    layer_square_kernel: "direct",
}
CHANNELS = {"a_channel": 1, "b_channel": 1}
LAYOUTS = {
    # Arguments of value 1 are compiled in: channels side by side, or tokens, or neither.
    "rows": CHANNELS,
    "columns": {"a_token": 1, "b_token": 1},
    "any": {},
}


def types(kernel, dtype: torch.dtype, constants: dict[str, object]) -> dict[str, str]:
    compute = "*fp64" if dtype == torch.float64 else "*fp32"
    tensors = {"a": f"*{TYPES[dtype]}", "b": f"*{TYPES[dtype]}"} | dict.fromkeys(
        ("parts", "query", "query_bias", "out"), compute
    )
    return {name: "constexpr" if name in constants else tensors.get(name, "i32") for name in kernel.arg_names}


def check(target: str, dtype: str, precision: str) -> list[str]:
    """What is wrong with the binaries."""
    wrong = []
    storage = getattr(torch, dtype)
    for (kernel, route), (layout, strides) in product(KERNELS.items(), LAYOUTS.items()):
        asked = "ieee" if precision == "fp64" else precision
        config = default_layer_config(route, storage, asked, hip=target.startswith("gfx"))
        every = {
            "HAS_BIAS": True,
            "PIECE": PIECE,
            "SAMPLES": SAMPLES,
            "PRECISION": precision,
            "BLOCK_T": config.tokens,
            "BLOCK_O": config.outputs,
            "BLOCK_I": config.inputs,
            **strides,
        }
        constants = {name: value for name, value in every.items() if name in kernel.arg_names}
        binary = compiled(kernel, target, types(kernel, storage, constants), constants, config)
        name = f"{kernel.fn.__name__}, {layout}, {config}"
        if binary.spilled:
            wrong.append(f"{name}: spills {binary.spilled}, {binary.registers} registers")
        if binary.shared > SHARED_MEMORY[target]:
            wrong.append(f"{name}: needs {binary.shared} bytes of shared memory, {SHARED_MEMORY[target]} are there")
        if precision in ("tf32", "tf32x3", "bf16") and not binary.count(MATRIX_INSTRUCTION[target]):
            wrong.append(f"{name}: no matrix instruction {MATRIX_INSTRUCTION[target]}")
    single = {"HAS_BIAS": True, "BLOCK_N": TOKEN_TILE[0], "BLOCK_D": TOKEN_TILE[1]}
    for kernel, constants in ((sum_parts_kernel, SUM_TILE), (layer_token_kernel, single | CHANNELS)):
        binary = compiled(kernel, target, types(kernel, storage, constants), constants, LayerConfig(0, 0, 0, 4, 3))
        if binary.spilled:
            wrong.append(f"{kernel.fn.__name__}: spills {binary.spilled}")
    return wrong


if __name__ == "__main__":
    found = check(*sys.argv[1:])
    print("\n".join(found))
    sys.exit(bool(found))
