"""CIFAR-10 and CIFAR-100 in the binary layout, with the labels that people gave them (CIFAR-N, arXiv 2110.12088)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import existing_file
from ..errors import InputError, MissingFileError

PIXELS = 3 * 32 * 32  # three planes


@dataclass(frozen=True)
class Layout:
    """How one of the two lies in files.

    Attributes:
        folder: of the images; python: what it is called in the version that is not read.
        train, test: files. records: images in a file of train. test_records: in one of test.
        head: bytes before the pixels, of which the last is the label.
        human: the file of CIFAR-N; places: folders beside `folder` where it may lie.
        noise: names of noise sets and of their entries in it.
    """

    name: str
    folder: str
    python: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int
    test_records: int
    head: int
    classes: int
    human: str
    places: tuple[str, ...]
    noise: dict[str, str]

    @property
    def images_from(self) -> str:
        return f"Download the '{self.name} binary version' from www.cs.toronto.edu/~kriz/cifar.html and unpack it there."

    @property
    def labels_from(self) -> str:
        return f"Download it from github.com/UCSC-REAL/cifar-10-100n (data/{self.human})."


CIFAR10 = Layout(
    name="CIFAR-10",
    folder="cifar-10-batches-bin",
    python="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    records=10_000,
    test_records=10_000,
    head=1,
    classes=10,
    human="CIFAR-10_human.pt",
    places=(".", "cifar-10n", "data"),
    noise={
        "worse": "worse_label",
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
    },
)
CIFAR100 = Layout(
    name="CIFAR-100",
    folder="cifar-100-binary",
    python="cifar-100-python",
    train=("train.bin",),
    test=("test.bin",),
    records=50_000,
    test_records=10_000,
    head=2,
    classes=100,
    human="CIFAR-100_human.pt",
    places=(".", "cifar-100n", "data"),
    noise={"noisy": "noisy_label"},
)


def missing_files(folder: Path, layout: Layout) -> list[Path]:
    """Files of the layout that are not there."""
    wanted = [*(folder / layout.folder / name for name in (*layout.train, *layout.test)), _human(folder, layout)]
    return [file for file in wanted if not file.exists()]


def read_cifar(
    where: str, folder: Path, layout: Layout, noise_set: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training images [N, 32, 32, 3], their clean labels, test images, test labels, noisy training labels), all checked."""
    human = _human(folder, layout)
    place = folder / layout.folder
    train, test = ([_image_file(where, place / name, layout, count) for name in names] for names, count in _files(layout))
    if not human.exists():
        raise MissingFileError(
            f"{where}: expected the labels of {layout.name}N in {str(human)!r}; it does not exist. {layout.labels_from}"
        )
    given = read_human_labels(where, human, layout, noise_set)
    (images, labels), (test_images, test_labels) = (
        tuple(map(np.concatenate, zip(*(_read_images(where, file, layout) for file in files), strict=True)))
        for files in (train, test)
    )
    if not np.array_equal(given["clean_label"], labels):
        raise InputError(
            f"{where}: expected the clean labels in {str(human)!r} to equal those in {str(place)!r}, image by image; they do "
            f"not. One of the two was reordered or changed. {layout.images_from} {layout.labels_from}"
        )
    return images, labels, test_images, test_labels, given[layout.noise[noise_set]]


def _files(layout: Layout) -> tuple[tuple[tuple[str, ...], int], tuple[tuple[str, ...], int]]:
    return (layout.train, layout.records), (layout.test, layout.test_records)


def _human(folder: Path, layout: Layout) -> Path:
    found = [folder / place / layout.human for place in layout.places]
    return next((file for file in found if file.exists()), found[0])


def _image_file(where: str, file: Path, layout: Layout, records: int) -> Path:
    """The file, if it is there and whole."""
    if not file.exists():
        python = " What is there is the python version." if (file.parent.parent / layout.python).is_dir() else ""
        raise MissingFileError(f"{where}: expected images in {str(file)!r}; it does not exist.{python} {layout.images_from}")
    size = existing_file(where, "the images", file).stat().st_size
    record = layout.head + PIXELS
    if size != records * record:
        raise InputError(
            f"{where}: expected {records * record:,} bytes ({records:,} images of {record:,}) in {str(file)!r}; got {size:,}. "
            f"It was cut off or is another file. {layout.images_from}"
        )
    return file


def _read_images(where: str, file: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 32, 32, 3] uint8, labels [N] int64)"""
    records = np.fromfile(file, dtype=np.uint8).reshape(-1, layout.head + PIXELS)
    labels = records[:, layout.head - 1].astype(np.int64)
    top = layout.classes - 1
    if labels.max() > top:
        row = int(np.argmax(labels > top))
        raise InputError(
            f"{where}: expected labels in 0..{top} in {str(file)!r}; got {labels[row]} at image {row}. It is another file. "
            f"{layout.images_from}"
        )
    planes = records[:, layout.head :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def read_human_labels(where: str, file: Path, layout: Layout, noise_set: str) -> dict[str, np.ndarray]:
    """The clean and the noisy labels [N] of a file of CIFAR-N, a pickle of NumPy arrays that can name nothing else."""
    known = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([each for each in _array_constructors() if each not in known]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can raise anything
        raise InputError(
            f"{where}: expected label arrays in {str(file)!r}; it cannot be read, because it is cut off, another file, or "
            f"holds more than arrays ({type(error).__name__}). {layout.labels_from}"
        ) from error
    result = {}
    for name in ("clean_label", layout.noise[noise_set]):
        labels = content.get(name) if isinstance(content, dict) else None
        if labels is None:
            raise InputError(f"{where}: expected an entry {name!r} in {str(file)!r}; there is none. {layout.labels_from}")
        labels = np.asarray(labels)
        count, top = len(layout.train) * layout.records, layout.classes - 1
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > top:
            raise InputError(
                f"{where}: expected {name!r} in {str(file)!r} to hold {count:,} whole numbers in 0..{top}; got shape "
                f"{list(labels.shape)} of {labels.dtype}. {layout.labels_from}"
            )
        result[name] = labels.astype(np.int64)
    return result


def _array_constructors() -> list[Any]:
    """What a pickled array of whole numbers is made with."""
    reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    constructors: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in (np.int64, np.int32, np.uint8))]
    # NumPy 2 moved this function and warns where the old name is looked up; files have either name.
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def alias(*arguments: Any) -> Any:
            return reconstruct(*arguments)

        alias.__module__, alias.__name__, alias.__qualname__ = module, "_reconstruct", "_reconstruct"
        constructors.append(alias)
    return constructors
