"""Writers: a file appears only when it is complete."""

import os
import stat
import sys

import numpy as np
import pytest

import ipfast
from ipfast.data import check_output, write_table
from ipfast.data.writers import write_archive, written_whole


def test_a_file_appears_at_the_end(tmp_path):
    file = tmp_path / "a.npy"
    with written_whole(file) as beside:
        beside.write_bytes(b"half")
        assert not file.exists()
        assert beside.parent == tmp_path
        assert beside.suffix == ".npy"
    assert file.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_what_was_there(old, error, tmp_path):
    file = tmp_path / "a.npy"
    if old:
        file.write_bytes(old)

    def fail(beside):
        beside.write_bytes(b"half")
        raise error

    with pytest.raises(error), written_whole(file) as beside:
        fail(beside)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_a_table_that_cannot_be_written_leaves_nothing(ending, tmp_path):
    class Broken(np.ndarray):
        def tolist(self):
            raise OSError("no space left")

        def __array__(self, *_, **__):
            raise OSError("no space left")

    column = np.zeros(3).view(Broken) if ending == ".csv" else np.array([object()] * 3)
    with pytest.raises((OSError, ValueError, TypeError)):
        write_table("f", tmp_path / f"a{ending}", {"score": column})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    write_archive(tmp_path / "a.npz", {"x": np.zeros(2)})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "a.npz")}
    assert len(modes) == 1


def test_an_output_that_cannot_be_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.npy").mkdir()
    for path, error, message in (
        (tmp_path / "a.txt", ipfast.InputError, r"f: expected out to end in one of \.npy, \.parquet, \.csv; got 'a\.txt'"),
        (tmp_path / "none" / "a.npy", ipfast.MissingFileError, "f: expected the folder of out to exist; .* Create it first"),
        (tmp_path / "folder.npy", ipfast.InputError, "f: expected out to be a file; .* is a folder"),
    ):
        with pytest.raises(error, match=message):
            check_output("f", "out", path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ipfast.InputError, match="f: expected out in a folder that can be written"):
        check_output("f", "out", tmp_path / "a.npy")


def test_parquet_without_pyarrow_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ipfast.UnavailableError, match=r"f: expected the package pyarrow .*pip install 'ipfast\[parquet\]'.* \.csv"
    ):
        check_output("f", "out", tmp_path / "a.parquet")
    (tmp_path / "s.parquet").write_bytes(b"")
    with pytest.raises(ipfast.UnavailableError, match=r"Scores\.load: expected the package pyarrow to read"):
        ipfast.Scores.load(tmp_path / "s.parquet")
