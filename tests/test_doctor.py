"""doctor: what is here, and whether it computes rightly."""

import pytest
import torch
from typer.testing import CliRunner

from ipfast import dispatch, ops
from ipfast.cli import app
from ipfast.doctor import examine
from ipfast.errors import UnavailableError


def findings():
    return {finding.name: finding for finding in examine()}


def test_a_sound_installation():
    found = findings()
    assert {"python", "ipfast", "torch", "triton", "numpy", "threads", "instruction sets", "auto on the CPU"} <= set(found)
    assert found["torch"].text == torch.__version__ or found["torch"].text in torch.__version__
    assert all(finding.good is not False for finding in found.values())
    assert found["backend reference"].good
    assert found["backend cpp"].good or not dispatch.has_extension()
    assert "largest error" in found["backend reference"].text


def test_what_is_not_installed_is_no_fault(monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    monkeypatch.setattr(dispatch, "has_extension", lambda: False)
    monkeypatch.setattr(dispatch, "extension", lambda: (_ for _ in ()).throw(UnavailableError("not built")))
    found = findings()
    assert found["backend cpp"].good is None
    assert found["backend triton"].good is None
    assert found["backend cpp"].text.startswith("not here: not built")
    assert found["instruction sets"].text == "no C++ extension"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_an_extension_that_is_there_and_cannot_be_imported_is_a_fault(monkeypatch):
    monkeypatch.setattr(dispatch, "has_extension", lambda: True)
    monkeypatch.setattr(dispatch, "extension", lambda: (_ for _ in ()).throw(UnavailableError("undefined symbol")))
    found = findings()
    assert found["backend cpp"].good is False
    assert found["instruction sets"].good is False


@pytest.mark.parametrize("operation", ["head_dot", "head_norm"])
def test_a_backend_that_computes_wrongly_is_found(operation, monkeypatch):
    right = getattr(ops, operation)
    monkeypatch.setattr(ops, operation, lambda *arguments, **options: right(*arguments, **options) * (1 + 1e-3))
    finding = findings()["backend reference"]
    assert finding.good is False
    assert finding.text.endswith("WRONG")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "FAIL" in done.output


def test_a_backend_that_fails_is_told_and_the_others_are_still_examined(monkeypatch):
    def broken(*_, backend, **__):
        raise OSError(f"{backend} has no driver")

    monkeypatch.setattr(ops, "head_dot", broken)
    found = findings()
    assert found["backend reference"].good is False
    assert found["backend reference"].text == "failed: OSError: reference has no driver"
    assert "backend triton" in found
