"""Who may import whom, read from the source of every module."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUNDATION = {"errors", "checks", "registry", "originals", "fingerprint"}
ALLOWED = {
    # part: what of ipfast it may import, beside FOUNDATION and itself
    "errors": set(),
    "checks": set(),
    "registry": set(),
    "originals": set(),
    "fingerprint": set(),
    "dispatch": {"kernels", "_C"},
    "ops": {"dispatch"},
    "losses": {"ops"},
    "layers": {"ops"},
    "tangents": {"ops"},
    "data": set(),
    "engines": {"ops", "losses", "layers", "tangents", "data"},  # data: an engine walks a Source in its own blocks
    "points": {"ops", "losses", "data"},
    "impacts": {"ops", "losses", "data"},
    "curvature": {"ops", "losses", "layers", "engines", "data"},
    "methods": {"points", "curvature"},  # a method is a choice of both
    "terms": {"points", "curvature"},  # what is computed at each point
    "combine": {"terms"},  # tensors in, tensors out
    # where points and engines meet, which do not know each other
    "groups": {"ops", "losses", "data", "engines", "points", "impacts", "curvature", "methods", "terms"},
    "pairwise": {"groups", "methods", "engines"},
    # what entry points are asked for, before any work; a query and its file; the part of a model that is scored
    "arguments": {"losses", "engines", "impacts", "methods"},
    "query_file": {"losses", "data", "engines", "points", "methods", "terms"},
    "opening": {"arguments", "query_file", "losses", "data", "engines", "points", "methods", "terms"},
    # The entry points, which put all of it together.
    "query": {
        *("arguments", "opening", "query_file", "network_score", "dispatch"),
        *("data", "engines", "impacts", "methods", "terms", "groups", "hygiene"),
    },
    "fit": {
        *("arguments", "opening", "network_score", "hygiene"),
        *("groups", "curvature", "methods", "impacts", "losses", "points", "data", "engines"),
    },
    "scores": {"data"},  # the readers and writers of score files
    "hygiene": {"losses", "data", "engines"},  # a look at a few samples before a run
    "token_scores": {"engines"},
    "streaming": {"combine", "data", "terms"},  # one pass over the data
    "head_score": {
        *("streaming", "token_scores", "combine", "pairwise", "groups", "hygiene", "terms", "scores", "dispatch"),
        *("query_file", "opening", "ops", "data", "engines", "curvature", "points", "impacts", "methods"),
    },
    "network_score": {
        *("streaming", "combine", "groups", "hygiene", "terms", "scores"),
        *("query_file", "losses", "data", "engines", "curvature", "points", "impacts", "methods"),
    },
    "scorer": {
        *("arguments", "opening", "query_file", "combine", "groups", "terms", "token_scores", "dispatch"),
        *("data", "engines", "points", "losses"),
    },
    "score": {
        *("arguments", "opening", "query_file", "head_score", "network_score", "scores", "streaming", "pairwise", "dispatch"),
        *("groups", "curvature", "data", "engines", "impacts", "methods"),
    },
    "index": {"query", "scores", "data", "ops"},
    "curate": {"scores", "data", "combine", "query_file", "terms", "losses"},  # relabel reads a query, combine adds up ranks
    # Programs use what users use: names of the package itself, not of its modules.
    "cli": {"ipfast", "curate", "doctor", "demo", "experiments"},  # curate: its checks, before anything is computed
    "__main__": {"cli"},
    "demo": {
        "ipfast",
        "ops",
        "data",
        "methods",
        "experiments",
    },  # it trains, reads and writes as the others do
    "experiments": {"ipfast", "ops", "data", "methods"},  # as the demo
    "adapters": {"ipfast", "ops"},
    "doctor": {"dispatch", "ops"},  # it examines the backends
    "kernels": set(),
}
OUTSIDE_KERNELS = {"torch", "triton", "__future__"}
VAGUE = {"util", "utils", "helper", "helpers", "misc", "common", "tools"}


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module that is installed."""
    found = []
    for folder, package in ((ROOT / "ipfast", "ipfast"), (ROOT / "kernels", "ipfast.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found.append((".".join((package, *parts)), file))
    return found


MODULES = modules()
NAMES = [name for name, _ in MODULES]


def part_of(module: str) -> str:
    """The row of the table that a module of ipfast belongs to: "ipfast.data.files" is of "data", "ipfast" of "ipfast"."""
    pieces = module.removesuffix(".__init__").split(".")
    return pieces[1] if len(pieces) > 1 else "ipfast"


@cache
def imports(name: str, file: Path) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever in the file; imported names that are modules count as such."""
    found = set()
    package = name.rsplit(".", 1)[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = inner in NAMES or f"{inner}.__init__" in NAMES or inner == "ipfast._C"
                found.add(inner if is_module else base)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            text = node.args[0]
            assert isinstance(text, (ast.Constant, ast.JoinedStr)), f"{name} imports a module whose name cannot be read"
            found.add(text.value if isinstance(text, ast.Constant) else str(text.values[0].value).rstrip("."))
    return frozenset(found)


@pytest.mark.parametrize(("name", "file"), MODULES, ids=NAMES)
def test_a_module_imports_only_what_its_part_may(name, file):
    part = part_of(name)
    if part == "ipfast":
        return  # the public surface gathers names of all parts
    assert part in ALLOWED, f"{part} is new: give it a row in ALLOWED"
    inside = {part_of(module) for module in imports(name, file) if module.split(".")[0] == "ipfast"}
    foundation = set() if part in ("errors", "kernels") else FOUNDATION
    superfluous = inside - ALLOWED[part] - foundation - {part}
    assert not superfluous, f"{name} imports {sorted(superfluous)}; {part} may import {sorted(ALLOWED[part] | foundation)}"


@pytest.mark.parametrize(("name", "file"), [m for m in MODULES if part_of(m[0]) == "kernels"])
def test_kernels_import_torch_triton_and_each_other(name, file):
    top = {module.split(".")[0] for module in imports(name, file) if not module.startswith("ipfast.kernels")}
    standard = {module for module in top if module in sys.stdlib_module_names}
    assert top - standard <= OUTSIDE_KERNELS
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] != "ipfast", "relative imports only: the folder is installed under another name"


@pytest.mark.parametrize(("name", "file"), MODULES, ids=NAMES)
def test_nobody_imports_tests_or_the_bench(name, file):
    beside = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests", "bench", "pytest", "hypothesis"}
    assert not {module.split(".")[0] for module in imports(name, file)} & beside


@pytest.mark.parametrize(("name", "file"), [m for m in MODULES if m[0] != "ipfast.dispatch"])
def test_only_dispatch_imports_the_backends(name, file):
    if part_of(name) != "kernels":
        assert not {module for module in imports(name, file) if part_of(module) in ("kernels", "_C") and "ipfast" in module}


def test_dispatch_imports_the_backends():
    """The walk sees the lazy imports, so that the test above means something."""
    found = imports("ipfast.dispatch", ROOT / "ipfast" / "dispatch.py")
    assert {part_of(module) for module in found if module.startswith("ipfast")} >= {"kernels", "_C"}


@pytest.mark.parametrize(("name", "file"), [m for m in MODULES if part_of(m[0]) not in ("demo", "experiments", "adapters")])
def test_extras_are_imported_only_where_they_are_used(name, file):
    """Only base dependencies at the top of a module; a package of an extra is imported inside the function that needs it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        part.split(".")[0]
        for node in top
        for part in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if isinstance(node, ast.Import) or not node.level
    }
    base = {"torch", "numpy", "safetensors", "tqdm", "typer", "ipfast", "triton"} - (
        set() if part_of(name) == "kernels" else {"triton"}
    )
    assert names - set(sys.stdlib_module_names) <= base


@pytest.mark.parametrize("name", NAMES)
def test_no_module_has_a_name_that_says_nothing(name):
    assert not {part.strip("_") for part in name.split(".")} & VAGUE


def test_importing_ipfast_imports_neither_triton_nor_the_extension_nor_extras():
    # torch itself may look for triton, so what counts is what comes on top of it.
    code = (
        "import sys, torch; before = set(sys.modules); import ipfast; new = set(sys.modules) - before; "
        "heavy = ('triton', 'sklearn', 'matplotlib', 'pandas', 'pyarrow', 'typer', 'ipfast._C', 'ipfast.kernels'); "
        "found = sorted(name for name in new if name in heavy or name.split('.')[0] in heavy); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r'^    "(ipfast[a-z_.]*)",$', text.split("packages = [")[1].split("]")[0], re.MULTILINE)
    assert sorted(listed) == sorted(name.removesuffix(".__init__") for name in NAMES if name.endswith(".__init__"))
