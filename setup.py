"""Builds the C++17 extension ipfast._C; everything else about the package is in pyproject.toml."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
OPT_OUT = "IPFAST_NO_EXT"


def extensions() -> list:
    """The extension, or nothing where the user asked for none; a missing compiler is an error, never a silent gap."""
    if os.environ.get(OPT_OUT, "0") not in ("", "0"):
        print(f"ipfast: {OPT_OUT} is set, building without the C++ backend (torch computes instead)")
        return []
    compiler = os.environ.get("CXX", "c++").split()[0]
    if sys.platform != "win32" and not any(shutil.which(name) for name in (compiler, "g++", "clang++")):
        raise SystemExit(
            "ipfast: expected a C++17 compiler to build the CPU backend; found none on PATH. "
            f"Install g++ or clang++, or set {OPT_OUT}=1 to install without it (scores are then computed by torch, slower)."
        )
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension

    ParallelCompile("IPFAST_BUILD_JOBS", default=0).install()
    flags = ["/O2"] if sys.platform == "win32" else ["-O3", "-fno-math-errno", "-fno-trapping-math"]
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.hpp"))
    return [
        Pybind11Extension("ipfast._C", sources, depends=headers, include_dirs=["csrc"], cxx_std=17, extra_compile_args=flags)
    ]


setup(ext_modules=extensions())
