"""What is installed, which backends work here, and whether they agree with the reference."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import dispatch, ops
from .errors import UnavailableError


@dataclass(frozen=True)
class Finding:
    """One line of the report; `good` is False for something that is installed and does not work, None for what is not here."""

    name: str
    text: str
    good: bool | None = True


def examine() -> Iterator[Finding]:
    """Findings about versions, the processor, the GPU and each backend's arithmetic."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("ipfast", "torch", "triton", "numpy", "safetensors", "scikit-learn", "matplotlib", "pyarrow"):
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed", None)
    yield Finding("threads", f"{torch.get_num_threads()} (torch.set_num_threads changes it)")
    try:
        yield Finding("instruction sets", ", ".join(dispatch.instruction_sets()) or "no C++ extension")
    except UnavailableError as error:  # built, and not to be imported
        yield Finding("instruction sets", str(error), False)
    if torch.cuda.is_available():
        yield Finding("gpu", torch.cuda.get_device_name())
    else:
        yield Finding("gpu", "none; the CPU computes", None)
    choice = dispatch.select_backend(device="cpu")
    yield Finding("auto on the CPU", f"{choice.name}: {choice.reason}")
    yield _self_test("reference", "cpu")
    yield _self_test("cpp", "cpu")
    yield _self_test("triton", "cuda" if torch.cuda.is_available() else "cpu")


def _self_test(backend: str, device: str) -> Finding:
    """Compare a backend in float32 with a float64 formula written out here."""
    name = f"backend {backend}"
    try:
        dispatch.select_backend(backend, device=device)
    except UnavailableError as error:
        broken = backend == "cpp" and dispatch.has_extension()
        return Finding(name, f"not here: {error}", False if broken else None)
    generator = torch.Generator().manual_seed(0)
    h, w, g = (torch.randn(size, generator=generator) for size in ((65, 33), (7, 33), (7, 33)))
    b, gb = (torch.randn(7, generator=generator) for _ in range(2))
    y = torch.randint(7, (65,), generator=generator)
    try:
        arguments = (t.to(device) for t in (h, y, w, b, g, gb))
        scores = ops.head_dot(*arguments, loss="cross_entropy", backend=backend)
        norms = ops.head_norm(*(t.to(device) for t in (h, y, w, b)), loss="cross_entropy", backend=backend)
    except Exception as error:
        # Whatever a broken installation raises (a driver, a compiler) is what the doctor is there to show.
        return Finding(name, f"failed: {type(error).__name__}: {error}", good=False)
    residual = torch.softmax(h.double() @ w.T.double() + b.double(), 1) - torch.nn.functional.one_hot(y, 7)
    dots = (residual * (h.double() @ g.T.double() + gb.double())).sum(1)
    squares = residual.square().sum(1) * (h.double().square().sum(1) + 1)
    worst = max(float((got.cpu() - truth).abs().max() / truth.abs().max()) for got, truth in ((scores, dots), (norms, squares)))
    good = worst < 1e-5
    return Finding(name, f"largest error {worst:.1e} of the largest score" + ("" if good else ": WRONG"), good)
