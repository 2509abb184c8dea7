"""The demos from data to page, and what they say about files that are missing, cut off, foreign or hostile."""

import io
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import ipfast
from ipfast.data import cifar as files
from ipfast.demo import cifar, run_demo
from ipfast.demo.compare import ROWS, Row, compare
from ipfast.demo.digits import digits
from ipfast.demo.report import page_of, table_of

RECORDS = 60


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on data this small, and much more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def comparison():
    return compare(digits(0.1, seed=0))


def outcomes(comparison):
    return {outcome.row.name: outcome for outcome in comparison.outcomes}


def assert_self_contained(page: str) -> None:
    """Nothing is fetched: every source lies in the page, and no style, script or link points outside."""
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", re.sub(r"data:image/[^\"]*", "", page))


def test_digits_write_a_page_that_needs_nothing_else(tmp_path):
    lines: list[str] = []
    run_demo(report=tmp_path / "report.html", echo=lines.append)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "Why the hold-out must be clean" in page
    assert page.count("<li class=") == 48
    printed = "\n".join(lines).splitlines()
    assert max(map(len, printed)) < 80 + len(str(tmp_path))
    for row in ROWS:
        assert any(line.startswith(row.name) for line in printed)
        assert row.name in page


def test_methods_find_flipped_labels_and_chance_does_not(comparison):
    found = outcomes(comparison)
    assert found["ip"].auc > 0.9
    assert found["ip_ensemble"].auc > 0.9
    assert found["tracin"].auc > 0.9
    assert found["self_tracin"].auc > 0.95
    assert abs(found["random"].auc - 0.5) < 0.1
    assert found["ip"].found > 0.7 > 0.2 > found["random"].found
    assert found["ip"].accuracy > comparison.accuracy
    assert comparison.accuracy > 0.9


def test_label_noise_in_the_holdout_ruins_ip(comparison):
    found = outcomes(comparison)
    assert found["ip, noisy hold-out"].auc < found["ip"].auc - 0.1
    assert found["ip, noisy hold-out"].accuracy < found["ip"].accuracy


def test_the_same_seed_gives_the_same_figures(comparison):
    again = compare(digits(0.1, seed=0))
    for one, other in zip(comparison.outcomes, again.outcomes, strict=True):
        assert np.array_equal(one.scores, other.scores)
        assert (one.auc, one.found, one.accuracy) == (other.auc, other.found, other.accuracy)
    assert not np.array_equal(digits(0.1, seed=1).given, comparison.problem.given)


def test_a_method_is_one_entry_of_the_list(comparison):
    made = Row("mine", "a method made from the trained head", lambda head: ipfast.Method(target="self", name=f"{head.C}"))
    result = compare(comparison.problem, [ROWS[0], made])
    assert np.array_equal(outcomes(result)["mine"].scores, outcomes(comparison)["self_tracin"].scores)
    assert any(line.startswith("mine") for line in table_of(result))
    assert "mine" in page_of(result, 0)


def test_text_from_names_is_escaped(comparison):
    problem = replace(comparison.problem, title="<b>&", class_names=["<script>"] * 10)
    page = page_of(replace(comparison, problem=problem), 0)
    assert "<script" not in page
    assert "<b>" not in page


@pytest.mark.parametrize("noise", [0.0, 1.0, -0.1, 1e-9, 0.99999, float("nan")])
def test_noise_must_leave_right_and_wrong_labels(noise, tmp_path):
    with pytest.raises(ipfast.InputError, match="--noise to be a share"):
        run_demo(noise=noise, report=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"report": Path("report.txt")}, ipfast.InputError, "expected --report to end in one of .html"),
        ({"report": Path("nowhere/report.html")}, ipfast.MissingFileError, "folder of --report"),
        ({"seed": -1}, ipfast.InputError, "--seed"),
        ({"cifar_labels": "worse"}, ipfast.InputError, "expected --cifar DIR"),
        ({"cifar": Path("nowhere"), "noise": 0.2}, ipfast.InputError, "--noise with the digits only"),
        ({"cifar": Path("nowhere"), "cifar_labels": "wrose"}, ipfast.InputError, "worse"),
        ({"cifar": Path("nowhere")}, ipfast.MissingFileError, "'nowhere' is not there.*CIFAR-10 binary version"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        run_demo(**arguments, echo=pytest.fail)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """CIFAR-10N in its layout, of six times RECORDS images whose brightness tells the class."""
    folder = tmp_path_factory.mktemp("cifar")
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(6 * RECORDS) % 10).astype(np.uint8)
    pixels = np.clip(labels[:, None] * 25 + random.integers(0, 25, (len(labels), 3072)), 0, 255).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels], axis=1)
    (folder / "cifar-10-batches-bin").mkdir()
    for number, name in enumerate([*files.CIFAR10.train, *files.CIFAR10.test]):
        records[number * RECORDS : (number + 1) * RECORDS].tofile(folder / "cifar-10-batches-bin" / name)
    clean = labels[: 5 * RECORDS].astype(np.int64)
    worse = np.where(random.random(len(clean)) < 0.3, (clean + 1) % 10, clean)
    torch.save({"clean_label": clean, "worse_label": worse, "aggre_label": clean}, folder / "CIFAR-10_human.pt")
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CIFAR10", replace(files.CIFAR10, records=RECORDS, test_records=RECORDS))
    monkeypatch.setattr(cifar, "EPOCHS", 1)
    return shutil.copytree(original, tmp_path / "cifar")


def read_files(folder: Path, noise_set: str):
    return files.read_cifar("demo", folder, files.CIFAR10, noise_set)


def read_human_labels(file: Path):
    return files.read_human_labels("demo", file, files.CIFAR10, "worse")


def refused(folder: Path, error: type[Exception], *words: str, noise_set: str = "worse") -> None:
    page = folder.parent / "report.html"
    with pytest.raises(error) as caught:
        run_demo(cifar=folder, cifar_labels=noise_set, report=page)
    for word in words:
        assert word in str(caught.value)
    assert not page.exists()


def test_cifar_in_the_original_layout_runs_to_the_page(folder):
    page = folder.parent / "report.html"
    run_demo(cifar=folder, report=page, echo=lambda _: None)
    text = page.read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "270 training images" in text
    assert "airplane" in text


def test_cifar_images_and_labels_keep_their_places(folder):
    images, labels, test_images, test_labels, noisy = read_files(folder, "worse")
    assert images.shape == (5 * RECORDS, 32, 32, 3)
    assert len(test_images) == len(test_labels) == RECORDS
    assert np.array_equal(images.mean(axis=(1, 2, 3)) // 25, labels)
    assert 0.2 < (noisy != labels).mean() < 0.4
    raw = np.fromfile(folder / "cifar-10-batches-bin" / "data_batch_2.bin", np.uint8).reshape(RECORDS, 3073)
    assert np.array_equal(images[RECORDS + 3, :, :, 1].ravel(), raw[3, 1 + 1024 : 1 + 2048])


def test_missing_cifar_files_are_named_with_their_origin(folder):
    (folder / "CIFAR-10_human.pt").rename(folder / "elsewhere")
    refused(folder, ipfast.MissingFileError, "CIFAR-10_human.pt", "cifar-10-100n")
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    refused(folder, ipfast.MissingFileError, "data_batch_3.bin", "CIFAR-10 binary version")
    (folder / "cifar-10-batches-py").mkdir()
    refused(folder, ipfast.MissingFileError, "python version")


def test_cut_and_foreign_image_files_are_refused(folder):
    file = folder / "cifar-10-batches-bin" / "test_batch.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(folder, ipfast.InputError, "test_batch.bin", "184,380 bytes", "got 184,379")
    file.write_bytes(b"\xff" + whole[1:])
    refused(folder, ipfast.InputError, "test_batch.bin", "labels in 0..9", "255 at image 0")
    file.unlink()
    file.mkdir()
    refused(folder, ipfast.InputError, "is a folder")


def test_images_and_labels_of_different_order_are_refused(folder):
    one, two = (folder / "cifar-10-batches-bin" / f"data_batch_{number}.bin" for number in (1, 2))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    refused(folder, ipfast.InputError, "clean labels", "image by image")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "no entry"),
        ({"clean_label": np.zeros(300, np.int64)}, "'worse_label'"),
        ({"clean_label": np.zeros(299, np.int64), "worse_label": np.zeros(300, np.int64)}, "[299]"),
        ({"clean_label": np.full(300, 10), "worse_label": np.zeros(300, np.int64)}, "whole numbers in 0..9"),
        ({"clean_label": torch.zeros(300), "worse_label": torch.zeros(300)}, "float32"),
    ],
    ids=["list", "no_noise", "short", "range", "floats"],
)
def test_foreign_label_files_are_refused(content, words, folder):
    torch.save(content, folder / "CIFAR-10_human.pt")
    refused(folder, ipfast.InputError, "CIFAR-10_human.pt", words.replace("no entry", "an entry 'clean_label'"))


def test_unreadable_label_files_are_refused(folder):
    file = folder / "CIFAR-10_human.pt"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<!DOCTYPE html><title>Not found</title>"):
        file.write_bytes(content)
        refused(folder, ipfast.InputError, "CIFAR-10_human.pt", "cannot be read")


def test_labels_without_noise_are_refused(folder):
    refused(folder, ipfast.InputError, "some wrong labels", noise_set="aggre")


class _Hostile:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_hostile_label_file_does_not_run(folder):
    file, mark = folder / "CIFAR-10_human.pt", folder / "ran"
    torch.save({"clean_label": _Hostile(mark)}, file)
    refused(folder, ipfast.InputError, "holds more than arrays")
    file.write_bytes(pickle.dumps(_Hostile(mark), protocol=2))
    refused(folder, ipfast.InputError, "cannot be read")
    array = np.empty(1, dtype=object)
    array[0] = _Hostile(mark)
    torch.save({"clean_label": array, "worse_label": array}, file)
    refused(folder, ipfast.InputError, "cannot be read")
    assert not mark.exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_labels_pickled_by_either_numpy_are_read(module, folder):
    file = folder / "CIFAR-10_human.pt"
    expected = read_human_labels(file)
    changed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, re.sub(rb"numpy\._?core\.multiarray", module.encode(), content))
    file.write_bytes(changed.getvalue())
    found = read_human_labels(file)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_reading_labels_keeps_what_the_user_trusts(folder):
    with torch.serialization.safe_globals([np.ndarray]):
        before = set(torch.serialization.get_safe_globals())
        read_human_labels(folder / "CIFAR-10_human.pt")
        assert set(torch.serialization.get_safe_globals()) == before
        assert np.ndarray in before


def test_the_network_depends_on_the_seed_alone(folder):
    images, labels = read_files(folder, "worse")[:2]

    def features(seed: int) -> np.ndarray:
        recipe, device = replace(cifar.SMALL, epochs=1), torch.device("cpu")
        network = cifar.train_network(images[:64], labels[:64], recipe, classes=10, seed=seed, device=device)
        return cifar.extract(network, images[:10])

    before = torch.get_rng_state()
    first = features(0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, features(0))
    assert not np.array_equal(first, features(1))
    assert first.shape == (10, 256)


@pytest.mark.data
@pytest.mark.skipif("IPFAST_DATA" not in os.environ, reason="IPFAST_DATA does not name the folder of the data sets")
@pytest.mark.parametrize(("noise_set", "share"), [("worse", 0.4021), ("aggre", 0.0901), ("random1", 0.1723)])
def test_the_real_cifar_files_are_read(noise_set, share):
    images, labels, test_images, _, noisy = read_files(Path(os.environ["IPFAST_DATA"]), noise_set)
    assert images.shape == (50_000, 32, 32, 3)
    assert test_images.shape == (10_000, 32, 32, 3)
    assert (noisy != labels).mean() == pytest.approx(share, abs=1e-4)
    assert images.mean(axis=(0, 1, 2)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
