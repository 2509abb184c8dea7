"""CIFAR-10 with the labels that people gave it (CIFAR-10N, arXiv 2110.12088), and features of a network trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import existing_file
from ..errors import InputError, MissingFileError
from ..registry import check_choice
from .problem import Problem, stopwatch

NOISE_SETS = {
    "worse": "worse_label",
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]
RECORDS = 10_000  # in a file
RECORD = 1 + 3 * 32 * 32  # a label, then three planes of pixels
HELD_OUT = 0.1
EPOCHS = 5
BATCH_SIZE = 256

IMAGES_FROM = "Download the 'CIFAR-10 binary version' from www.cs.toronto.edu/~kriz/cifar.html and unpack it there."
LABELS_FROM = "Download it from github.com/UCSC-REAL/cifar-10-100n (data/CIFAR-10_human.pt)."


def cifar10n(folder: Path, noise_set: str, seed: int) -> Problem:
    """CIFAR-10N: 45,000 images under the labels of `noise_set`, 5,000 for validation, and the standard test set.

    The network is trained on the noisy labels, then gives the features of all images. The clean labels serve the hold-out, the
    test and the evaluation only.
    """
    check_choice("demo", "--cifar-labels", noise_set, NOISE_SETS)
    with stopwatch() as loading:
        images, labels, test_images, test_labels, noisy = read_files(folder, noise_set)
    order = np.random.default_rng(seed).permutation(len(labels))
    held = round(HELD_OUT * len(labels))
    train, val = np.sort(order[held:]), np.sort(order[:held])
    if not (noisy[train] != labels[train]).any():
        raise InputError(f"demo: expected some wrong labels in the {noise_set} labels of CIFAR-10_human.pt; got none.")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with stopwatch() as training:
        network = train_network(images[train], noisy[train], epochs=EPOCHS, seed=seed, device=device)
    with stopwatch() as extraction:
        every = [images[train], images[val], test_images]
        features = np.split(extract(network, np.concatenate(every)), np.cumsum([len(part) for part in every])[:-1])
    return Problem(
        title=f"CIFAR-10N, {noise_set} labels",
        description=(
            f"{len(train):,} training images of CIFAR-10 with labels given by people (CIFAR-10N, {noise_set}); "
            f"{(noisy[train] != labels[train]).mean():.1%} of them are wrong. {len(val):,} more training images with their "
            f"clean labels are the hold-out, {len(test_labels):,} the test set."
        ),
        model=(
            f"A convolutional network trained for {EPOCHS} epochs on the given labels makes the features, once. The linear "
            "softmax head on them is trained on the given labels, and again from zero after trimming; the network is not."
        ),
        features=features[0],
        given=noisy[train],
        true=labels[train],
        images=images[train],
        class_names=CLASS_NAMES,
        val=(features[1], labels[val]),
        val_given=noisy[val],
        test=(features[2], test_labels),
        seconds={"load the images": loading(), "train the network": training(), "compute features": extraction()},
    )


def read_files(folder: Path, noise_set: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training images, their clean labels, test images, test labels, noisy training labels), all checked."""
    if not folder.is_dir():
        raise MissingFileError(
            f"demo: expected --cifar to be a folder with cifar-10-batches-bin/ and CIFAR-10_human.pt; {str(folder)!r} is not "
            f"there. {IMAGES_FROM}"
        )
    batches = folder / "cifar-10-batches-bin"
    places = [folder / "CIFAR-10_human.pt", folder / "cifar-10n" / "CIFAR-10_human.pt", folder / "data" / "CIFAR-10_human.pt"]
    human = next((place for place in places if place.exists()), places[0])
    files = [_image_file(batches / name) for name in [*BATCHES, "test_batch.bin"]]
    if not human.exists():
        raise MissingFileError(f"demo: expected the labels of CIFAR-10N in {str(human)!r}; it does not exist. {LABELS_FROM}")
    given = read_human_labels(human, noise_set)
    read = [_read_images(file) for file in files]
    images = np.concatenate([part[0] for part in read[:-1]])
    labels = np.concatenate([part[1] for part in read[:-1]])
    if not np.array_equal(given["clean_label"], labels):
        raise InputError(
            f"demo: expected the clean labels in {str(human)!r} to equal those in {str(batches)!r}, image by image; they do "
            f"not. One of the two was reordered or changed. {IMAGES_FROM} {LABELS_FROM}"
        )
    return images, labels, *read[-1], given[NOISE_SETS[noise_set]]


def _image_file(file: Path) -> Path:
    """The file, if it is there and whole."""
    if not file.exists():
        python = " What is there is the python version." if (file.parent.parent / "cifar-10-batches-py").is_dir() else ""
        raise MissingFileError(f"demo: expected images in {str(file)!r}; it does not exist.{python} {IMAGES_FROM}")
    size = existing_file("demo", "--cifar", file).stat().st_size
    if size != RECORDS * RECORD:
        raise InputError(
            f"demo: expected {RECORDS * RECORD:,} bytes ({RECORDS:,} images of {RECORD:,}) in {str(file)!r}; got {size:,}. It "
            f"was cut off or is another file. {IMAGES_FROM}"
        )
    return file


def _read_images(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 32, 32, 3] uint8, labels [N] int64)"""
    records = np.fromfile(file, dtype=np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        row = int(np.argmax(labels > 9))
        raise InputError(
            f"demo: expected labels in 0..9 in {str(file)!r}; got {labels[row]} at image {row}. It is another file. "
            f"{IMAGES_FROM}"
        )
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def read_human_labels(file: Path, noise_set: str) -> dict[str, np.ndarray]:
    """The clean and the noisy labels [50,000] of CIFAR-10_human.pt, a pickle of NumPy arrays that can name nothing else."""
    known = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([each for each in _array_constructors() if each not in known]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can raise anything
        raise InputError(
            f"demo: expected label arrays in {str(file)!r}; it cannot be read, because it is cut off, another file, or holds "
            f"more than arrays ({type(error).__name__}). {LABELS_FROM}"
        ) from error
    result = {}
    for name in ("clean_label", NOISE_SETS[noise_set]):
        labels = content.get(name) if isinstance(content, dict) else None
        if labels is None:
            raise InputError(f"demo: expected an entry {name!r} in {str(file)!r}; there is none. {LABELS_FROM}")
        labels = np.asarray(labels)
        count = len(BATCHES) * RECORDS
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
            raise InputError(
                f"demo: expected {name!r} in {str(file)!r} to hold {count:,} whole numbers in 0..9; got shape "
                f"{list(labels.shape)} of {labels.dtype}. {LABELS_FROM}"
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


def make_network() -> nn.Sequential:
    """1.1 million parameters: a 2×2 stem, three blocks of two convolutions, the mean over places, and a linear head."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2, stride=2), nn.ReLU()]
    width = 24
    for wider in (32, 128, 256):
        for inputs in (width, wider):
            layers += [nn.Conv2d(inputs, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(CLASS_NAMES)))


def train_network(images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int, device: torch.device) -> nn.Sequential:
    """SGD with Nesterov momentum, one cycle of the learning rate, random flips and shifts by up to two pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    random = torch.Generator().manual_seed(seed)
    padded = nn.functional.pad(torch.from_numpy(images), (0, 0, 2, 2, 2, 2))
    y = torch.from_numpy(labels)
    steps = epochs * -(-len(y) // BATCH_SIZE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.25, total_steps=steps)
    with tqdm(total=epochs * len(y), desc="training the network", unit=" images", unit_scale=True) as bar:
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(y), generator=random), BATCH_SIZE):
                x = _augment(padded[rows], random)
                with _fast(device):
                    z = network(_normalised(x, device))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(z.float(), y[rows].to(device))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update(len(rows))
    network.eval()
    return network


def _augment(padded: Tensor, random: torch.Generator) -> Tensor:
    """A window of [B, 36, 36, 3] for each image, half of them mirrored: [B, 32, 32, 3]."""
    count = len(padded)
    down, right = torch.randint(0, 5, (2, count, 1), generator=random)
    place = torch.arange(32)
    columns = torch.where(torch.rand(count, 1, generator=random) < 0.5, place.flip(0), place) + right
    return padded[torch.arange(count)[:, None, None], (place + down)[:, :, None], columns[:, None, :]]


def _normalised(x: Tensor, device: torch.device) -> Tensor:
    """[B, 32, 32, 3] uint8 -> [B, 3, 32, 32] float32 around zero, channels last in memory."""
    return x.to(device).permute(0, 3, 1, 2).float().sub_(120).div_(64)


@torch.inference_mode()
def extract(network: nn.Sequential, images: np.ndarray) -> np.ndarray:
    """What goes into the network's last layer: [N, d] float32."""
    device = next(network.parameters()).device
    features = []
    with tqdm(total=len(images), desc="computing features", unit=" images", unit_scale=True) as bar, _fast(device):
        for x in torch.split(torch.from_numpy(images), 1000):
            features.append(network[:-1](_normalised(x, device)).float().cpu())
            bar.update(len(x))
    return torch.cat(features).numpy()


def _fast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor multiplies it faster than float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")))
