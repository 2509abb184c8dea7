"""Animal-10N in a stand-in of the layout that is downloaded."""

import sys

import numpy as np
import pytest
from PIL import Image

import ipfast
from ipfast.data import animal

COUNTS = {"training": 12, "testing": 5}


def write(file, brightness, side=64, mode="RGB", **options):
    colour = brightness if mode == "L" else (brightness,) * 3
    Image.new(mode, (side, side), colour).save(file, **options)


@pytest.fixture(params=animal.PLACES)
def data(request, tmp_path, monkeypatch):
    """Images whose brightness is ten times their label, and one more for every number."""
    monkeypatch.setattr(animal, "COUNTS", COUNTS)
    for name, count in COUNTS.items():
        folder = tmp_path / request.param / name
        folder.mkdir(parents=True)
        for number in range(count):
            write(folder / f"{number % 10}_{number}.jpg", 10 * (number % 10) + number, quality=100)
    return tmp_path


def folder_of(data):
    return animal.animal_folder(data)


def test_images_come_with_the_labels_of_their_names(data):
    images, labels, test_images, test_labels = animal.read_animal("f", data)
    assert images.shape == (12, 64, 64, 3)
    assert test_images.shape == (5, 64, 64, 3)
    assert images.dtype == np.uint8
    assert sorted(labels.tolist()) == sorted(number % 10 for number in range(12))
    numbers = images[:, 0, 0, 0].astype(int) - 10 * labels
    assert (numbers % 10 == labels).all()
    assert sorted(numbers.tolist()) == list(range(12))
    assert np.array_equal(test_images[:, 5, 7, 2], 11 * test_labels)


def test_the_order_is_that_of_the_names_and_not_of_the_disk(data):
    before = animal.read_animal("f", data)
    training = folder_of(data) / "training"
    for file in sorted(training.iterdir(), reverse=True):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert all(np.array_equal(one, other) for one, other in zip(before, animal.read_animal("f", data), strict=True))


def test_grey_images_and_hidden_files_are_no_fault(data):
    training = folder_of(data) / "training"
    write(training / "3_3.jpg", 33, mode="L")
    (training / ".DS_Store").write_bytes(b"")
    images, *_ = animal.read_animal("f", data)
    assert images.shape == (12, 64, 64, 3)


def test_a_data_set_that_is_not_there(tmp_path):
    assert animal.animal_folder(tmp_path) is None
    with pytest.raises(ipfast.MissingFileError, match=r"f: .*training.*not a folder.*dm.kaist.ac.kr"):
        animal.read_animal("f", tmp_path)


def test_missing_files_are_named(data):
    folder = folder_of(data)
    (folder / "training" / "1_11.jpg").unlink()
    with pytest.raises(ipfast.InputError, match=r"f: expected 12 images in '.*training'; got 11.*dm.kaist.ac.kr"):
        animal.read_animal("f", data)
    for file in (folder / "testing").iterdir():
        file.unlink()
    (folder / "testing").rmdir()
    write(folder / "training" / "1_11.jpg", 11)
    with pytest.raises(ipfast.MissingFileError, match=r"testing'; it is not a folder"):
        animal.read_animal("f", data)


@pytest.mark.parametrize("name", ["cat_3.jpg", "3.jpg", "10_3.jpg", "3_3.png", "notes.txt"])
def test_files_of_another_data_set_are_named(name, data):
    training = folder_of(data) / "training"
    (training / "3_3.jpg").rename(training / name)
    with pytest.raises(ipfast.InputError, match=rf"LABEL_NUMBER.jpg with labels in 0..9 .*'{name}'"):
        animal.read_animal("f", data)


def test_truncated_and_foreign_images_are_named(data):
    file = folder_of(data) / "testing" / "2_2.jpg"
    whole = file.read_bytes()
    write(file, 22, format="PNG")
    png = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-20], b"<!DOCTYPE html>", b"", png):
        file.write_bytes(content)
        with pytest.raises(ipfast.InputError, match=r"JPEG image in '.*2_2.jpg'; it cannot be read.*dm.kaist.ac.kr"):
            animal.read_animal("f", data)
    write(file, 22, side=32)
    with pytest.raises(ipfast.InputError, match=r"64 × 64 in '.*2_2.jpg'; got 32 × 32"):
        animal.read_animal("f", data)


def test_without_pillow_the_error_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ipfast.UnavailableError, match="pip install pillow"):
        animal.read_animal("f", data)
