"""CIFAR-10 with the labels that people gave it (CIFAR-10N, arXiv 2110.12088), and features of a network trained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data import cifar
from ..errors import InputError, MissingFileError
from ..experiments.vision.training import SMALL, extract, train_network
from ..registry import check_choice
from .problem import Problem, stopwatch

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HELD_OUT = 0.1
EPOCHS = 5


def cifar10n(folder: Path, noise_set: str, seed: int) -> Problem:
    """CIFAR-10N: 45,000 images under the labels of `noise_set`, 5,000 for validation, and the standard test set.

    The network is trained on the noisy labels, then gives the features of all images. The clean labels serve the hold-out, the
    test and the evaluation only.
    """
    check_choice("demo", "--cifar-labels", noise_set, cifar.CIFAR10.noise)
    with stopwatch() as loading:
        if not folder.is_dir():
            raise MissingFileError(
                f"demo: expected --cifar to be a folder with {cifar.CIFAR10.folder}/ and {cifar.CIFAR10.human}; "
                f"{str(folder)!r} is not there. {cifar.CIFAR10.images_from}"
            )
        images, labels, test_images, test_labels, noisy = cifar.read_cifar("demo", folder, cifar.CIFAR10, noise_set)
    order = np.random.default_rng(seed).permutation(len(labels))
    held = round(HELD_OUT * len(labels))
    train, val = np.sort(order[held:]), np.sort(order[:held])
    if not (noisy[train] != labels[train]).any():
        raise InputError(f"demo: expected some wrong labels in the {noise_set} labels of CIFAR-10_human.pt; got none.")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with stopwatch() as training:
        recipe = replace(SMALL, epochs=EPOCHS)
        network = train_network(images[train], noisy[train], recipe, classes=len(CLASS_NAMES), seed=seed, device=device)
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
