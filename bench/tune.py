"""Block sizes of the Triton kernels on the GPU at hand: every candidate's time beside that of the default.

Candidates are compiled by all cores first, into triton's cache on disk, and then timed one after the other. What is found goes
into kernels/_tune.py and kernels/_layer_tune.py by hand: a default must also fit the other targets (tests/kernels).
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

WIDTH = 512
HEAD, NORM, CONTRACT, DIRECT, GRAM, SQUARE = "head_dot", "head_norm", "contract", "direct", "gram", "square"


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: (rows, classes, queries) of a head, (samples, tokens, d_in, d_out, queries) of a layer."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.kernel} {'×'.join(map(str, self.shape))} {self.dtype} {self.precision}"


TYPES = [("float32", "tf32x3"), ("float32", "tf32"), ("bfloat16", "bf16")]
CASES = [
    *(Case(HEAD, (1_000_000, 10, 1), *types) for types in TYPES),
    *(Case(HEAD, (1_000_000, 10, 5), *types) for types in (TYPES[0], TYPES[2])),
    *(Case(HEAD, (400_000, 100, 1), *types) for types in TYPES),
    *(Case(HEAD, (100_000, 1000, 1), *types) for types in TYPES),
    *(Case(HEAD, (4096, 50_257, 1), *types) for types in (TYPES[0], TYPES[2])),
    *(Case(NORM, (1_000_000, 10), *types) for types in (TYPES[0], TYPES[2])),
    Case(NORM, (100_000, 1000), "bfloat16", "bf16"),
    *(Case(CONTRACT, (256, 64, 384, 1536, 8), *types) for types in TYPES),
    *(Case(DIRECT, (64, 1024, 576, 64, 8), *types) for types in TYPES),
    *(Case(GRAM, (256, 64, 384, 1536, 1), *types) for types in TYPES),
    *(Case(SQUARE, (64, 1024, 576, 64, 1), *types) for types in TYPES),
]


def candidates(case: Case) -> list[Any]:
    """Block sizes worth a try; the default comes first."""
    default = _default(case)
    exact = case.precision == "tf32x3"  # three products a tile: smaller ones
    warps, stages = (4, 8), (2, 3)
    fields: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    if case.kernel in (HEAD, NORM):
        if default.classes >= case.shape[1]:
            classes: tuple[int, ...] = (default.classes,)
        else:
            classes = (16, 32, 64) if exact else (32, 64, 128)
        fields = ("rows", "classes", "width")
        sizes = ((64, 128), classes, (32, 64) if exact else (64, 128))
    else:
        fields = ("tokens", "outputs", "inputs")
        sizes = ((32, 64), (32, 64), (32,)) if exact else ((32, 64), (64, 128), (32, 64))
    grid = itertools.product(*sizes, warps, stages)
    found = (replace(default, **dict(zip((*fields, "num_warps", "num_stages"), point, strict=True))) for point in grid)
    return [default, *(config for config in found if config != default)]


def _default(case: Case) -> Any:
    from ipfast.kernels import default_config, default_layer_config, fits_large_tiles, members_config

    from ipfast.ops._residual import Residual

    dtype = getattr(torch, case.dtype)
    large = fits_large_tiles(torch.empty(1, WIDTH, device="cuda"), Residual("cross_entropy", torch.zeros(1)))
    if case.kernel == HEAD and case.shape[2] > 1:
        return members_config(WIDTH, case.shape[1] * case.shape[2], case.precision, large=large)
    if case.kernel in (HEAD, NORM):
        return default_config(WIDTH, case.shape[1], dtype, case.precision, query=case.kernel == HEAD, large=large)
    return default_layer_config({SQUARE: "direct"}.get(case.kernel, case.kernel), dtype, case.precision)


@lru_cache(maxsize=1)
def _call(case: Case) -> Callable[[Any], Tensor]:
    """Runs the kernel with a configuration; the tensors are made once for all configurations."""
    from ipfast import dispatch
    from ipfast.ops._residual import Residual

    dtype, place = getattr(torch, case.dtype), torch.device("cuda")
    if case.kernel in (HEAD, NORM):
        rows, classes = case.shape[:2]
        h = torch.randn(rows, WIDTH, device=place, dtype=dtype)
        y = torch.randint(classes, (rows,), device=place)
        w, b = torch.randn(1, classes, WIDTH, device=place) / WIDTH**0.5, torch.randn(1, classes, device=place)
        form = Residual("cross_entropy", y)
        if case.kernel == NORM:
            out = torch.empty(rows, device=place)
            norm = dispatch.triton_kernels("head_norm").head_norm
            return lambda config: norm(
                h, form, w, b, out, include_bias=True, scale=1.0, precision=case.precision, config=config
            )
        queries = case.shape[2]
        g, gb = torch.randn(queries, classes, WIDTH, device=place), torch.randn(queries, classes, device=place)
        # Each query at a weight of its own, as the members of an ensemble.
        w, b = w.repeat(queries, 1, 1), b.repeat(queries, 1)
        out = torch.empty(rows, queries, device=place)
        dot = dispatch.triton_kernels("head_dot").head_dot
        return lambda config: dot(h, form, w, b, g, gb, out, scale=1.0, precision=case.precision, config=config)
    samples, tokens, inputs, outputs, queries = case.shape
    a = torch.randn(samples, tokens, inputs, device=place, dtype=dtype)
    d = torch.randn(samples, tokens, outputs, device=place, dtype=dtype)
    if case.kernel in (CONTRACT, DIRECT):
        v, vb = torch.randn(queries, outputs, inputs, device=place), torch.randn(queries, outputs, device=place)
        out = torch.empty(samples, 1, queries, device=place)
        layer = dispatch.triton_kernels("layer_dot").layer_dot
        return lambda config: layer(a, d, v, vb, out, groups=1, route=case.kernel, precision=case.precision, config=config)
    out = torch.empty(samples, device=place)
    square = dispatch.triton_kernels("layer_norm_sq").layer_norm_sq
    route = "direct" if case.kernel == SQUARE else "gram"
    return lambda config: square(a, d, out, groups=1, include_bias=True, route=route, precision=case.precision, config=config)


SMALL = 1024
"""Rows of a head, or samples and tokens of a layer, with which a kernel is compiled: as divisible as the real numbers."""


def _compile(job: tuple[Case, Any]) -> None:
    case, config = job
    few = (min(case.shape[0], SMALL if case.kernel in (HEAD, NORM) else 16), *case.shape[1:])
    with suppress(Exception):  # it does not fit; the timing meets it again and says so
        _call(replace(case, shape=few))(config)


def _milliseconds(case: Case, config: Any) -> float:
    from triton.testing import do_bench

    try:
        call = _call(case)
        return float(do_bench(lambda: call(config), warmup=3, rep=15, return_mode="median"))
    except Exception:  # too much shared memory, or a tile that does not compile
        return math.inf


def tune(cases: Iterable[Case], *, processes: int | None = None) -> Iterator[dict[str, Any]]:
    """For each case the milliseconds of the default and of the best candidates."""
    with multiprocessing.get_context("spawn").Pool(processes or max((os.cpu_count() or 2) - 2, 1)) as pool:
        for case in cases:
            configs = candidates(case)
            for _ in pool.imap_unordered(_compile, [(case, config) for config in configs]):
                pass
            times = [(_milliseconds(case, config), config) for config in configs]
            default = times[0][0]
            times.sort(key=lambda pair: pair[0])
            yield {
                "case": case.name,
                "default_ms": default,
                "best": [{"ms": ms, **asdict(config)} for ms, config in times[:8] if ms < math.inf],
                "failed": sum(ms == math.inf for ms, _ in times),
            }
