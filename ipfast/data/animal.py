"""Animal-10N: photographs of ten animals that are easily confused, under the labels that people gave (SELFIE, ICML 2019)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, MissingFileError, UnavailableError

CLASSES = 10
SIDE = 64
COUNTS = {"training": 50_000, "testing": 5_000}
"""Folder -> its images, each a file LABEL_NUMBER.jpg."""
PLACES = ("animal-10n", "raw_image", "animal-10n/raw_image")
"""Folders of the data where the two may lie."""
SOURCE = "Ask for the 'raw image version' at dm.kaist.ac.kr/datasets/animal-10n and unpack it there."
NAME = re.compile(r"(\d+)_(\d+)\.jpe?g", re.IGNORECASE)


def animal_folder(data: Path) -> Path | None:
    """The folder with one of the two, or None where the data set is not there."""
    places = [data / place for place in PLACES]
    return next((place for place in places if any((place / name).is_dir() for name in COUNTS)), None)


def read_animal(where: str, data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training images [N, 64, 64, 3] uint8, the labels that people gave them, test images, test labels), all checked.

    No true labels of training images are known. Test images are those where the label is also the word that found the image.
    """
    folder = animal_folder(data) or data / PLACES[0]
    files = [_image_files(where, folder / name, count) for name, count in COUNTS.items()]
    image_module = _pillow(where)
    parts = [(np.stack([_decode(where, file, image_module) for file in found]), labels) for found, labels in files]
    (images, labels), (test_images, test_labels) = parts
    return images, labels, test_images, test_labels


def _image_files(where: str, folder: Path, count: int) -> tuple[list[Path], np.ndarray]:
    """The images of a folder in the order of their names, and their labels [N] int64."""
    if not folder.is_dir():
        raise MissingFileError(f"{where}: expected images of Animal-10N in {str(folder)!r}; it is not a folder. {SOURCE}")
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    labels = []
    for file in files:
        name = NAME.fullmatch(file.name)
        if name is None or int(name[1]) >= CLASSES:
            raise InputError(
                f"{where}: expected files LABEL_NUMBER.jpg with labels in 0..{CLASSES - 1} in {str(folder)!r}; got "
                f"{file.name!r}. It belongs to another data set. {SOURCE}"
            )
        labels.append(int(name[1]))
    if len(files) != count:
        raise InputError(
            f"{where}: expected {count:,} images in {str(folder)!r}; got {len(files):,}. It was not unpacked whole, or is "
            f"another data set. {SOURCE}"
        )
    return files, np.array(labels, dtype=np.int64)


def _decode(where: str, file: Path, image_module: Any) -> np.ndarray:
    """[64, 64, 3] uint8"""
    try:
        with image_module.open(file, formats=["JPEG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a foreign file can raise anything
        raise InputError(
            f"{where}: expected a JPEG image in {str(file)!r}; it cannot be read, because it is cut off or another file "
            f"({type(error).__name__}). {SOURCE}"
        ) from error
    if pixels.shape != (SIDE, SIDE, 3):
        raise InputError(
            f"{where}: expected an image of {SIDE} × {SIDE} in {str(file)!r}; got {pixels.shape[1]} × {pixels.shape[0]}. It "
            f"belongs to another data set. {SOURCE}"
        )
    return pixels


def _pillow(where: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnavailableError(
            f"{where}: expected Pillow, to read the images of Animal-10N; it is not installed. Install: pip install pillow."
        ) from error
    return Image
