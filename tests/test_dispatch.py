"""select_backend: a name is used or refused, never replaced; "auto" chooses and says why."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from problems import linear_problem

import ipfast
from ipfast import dispatch

MESSAGES = {
    "extension": r"backend='cpp': expected the C\+\+ extension ipfast\._C; it is not installed here .*Reinstall",
    "triton": "backend='triton': expected the package triton; it is not installed here.*backend='auto'",
}


@pytest.fixture
def without(monkeypatch):
    """Takes away a backend."""

    def take(*names):
        if "extension" in names:
            original = importlib.import_module
            monkeypatch.setattr(dispatch, "has_extension", lambda: False)

            def refuse(name, *rest):
                if name == "ipfast._C":
                    raise ImportError("No module named 'ipfast._C'")
                return original(name, *rest)

            monkeypatch.setattr(importlib, "import_module", refuse)
        if "triton" in names:
            monkeypatch.setattr(dispatch, "has_triton", lambda: False)

    return take


def test_auto_on_the_cpu(without):
    assert dispatch.select_backend().name == ("cpp" if dispatch.has_extension() else "reference")
    without("extension")
    choice = dispatch.select_backend()
    assert choice.name == "reference"
    assert "the C++ extension is not installed" in choice.reason


def test_auto_on_a_gpu(without, monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert dispatch.select_backend(device="cuda").name == "triton"
    without("triton")
    choice = dispatch.select_backend(device="cuda:1")
    assert choice.name == "reference"
    assert "triton is not installed" in choice.reason


def test_auto_on_any_other_device():
    choice = dispatch.select_backend(device="meta")
    assert choice.name == "reference"
    assert "'meta'" in choice.reason


def test_reference_is_always_there(without):
    without("extension", "triton")
    for device in ("cpu", "cuda", "meta"):
        assert dispatch.select_backend("reference", device=device).name == "reference"


def test_a_named_backend_that_is_not_there_is_refused(without, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    without("extension", "triton")
    with pytest.raises(ipfast.UnavailableError, match=MESSAGES["extension"]):
        dispatch.select_backend("cpp")
    with pytest.raises(ipfast.UnavailableError, match=MESSAGES["triton"]):
        dispatch.select_backend("triton", device="cuda")


def test_a_named_backend_that_cannot_work_on_the_device_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    with pytest.raises(ipfast.UnavailableError, match="backend='cpp': expected data on the CPU; got device 'cuda'"):
        dispatch.select_backend("cpp", device="cuda")
    with pytest.raises(
        ipfast.UnavailableError, match=r"backend='triton': expected data on a GPU; got device 'cpu'.*TRITON_INTERPRET=1"
    ):
        dispatch.select_backend("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.select_backend("triton").name == "triton"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ipfast.InputError, match=r"expected backend to be one of .*; got 'cuda'"):
        dispatch.select_backend("cuda")


@pytest.mark.parametrize("name", ["cpp", "triton"])
def test_score_does_not_fall_back(name, without, monkeypatch, tmp_path):
    """Nor does it begin: the error comes before the data is read."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    without("extension", "triton")
    problem = linear_problem()
    train = (problem.x * torch.nan, problem.y)
    with pytest.raises(ipfast.UnavailableError, match=f"backend='{name}'"):
        ipfast.score(problem.model, train, problem.val, backend=name, out=tmp_path / "s.npy")
    assert list(tmp_path.iterdir()) == []


def test_score_without_the_extension_computes_with_torch_and_says_so(without):
    without("extension")
    problem = linear_problem()
    got = ipfast.score(problem.model, problem.train, problem.val)
    assert got.backend == "reference"
    assert "not installed" in got.stats["backend_reason"]


def test_an_absent_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    problem = linear_problem()
    with pytest.raises(
        ipfast.UnavailableError, match=r"score: expected a device that works here; device='cuda' does not .* device='cpu'"
    ):
        ipfast.score(problem.model, problem.train, problem.val, device="cuda")


def test_storage_view_shares_memory_and_stays_on_the_cpu():
    tensor = torch.ones(3, dtype=torch.bfloat16)
    view = dispatch.storage_view(tensor)
    assert view.dtype.name == "uint16"
    tensor[0] = 0
    assert view[0] == 0
    with pytest.raises(ipfast.InputError, match="expected a CPU tensor; got one on meta"):
        dispatch.storage_view(torch.ones(3, device="meta"))


def test_select_backend_changes_nothing():
    """It is pure: asking for triton's availability does not import triton."""
    code = (
        "import sys, torch; before = set(sys.modules); import ipfast; "
        "ipfast.select_backend(device='cuda'); ipfast.select_backend('reference'); "
        "assert not {n for n in set(sys.modules) - before if n.startswith(('triton', 'ipfast.kernels', 'ipfast._C'))}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "0"})
