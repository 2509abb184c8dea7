"""How a classifier is fine-tuned, and what is computed with it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import minilm
from ..arithmetic import fast
from .classifier import Classifier, Pretrained, Tokens, load_classifier, pad

EXTRACTED = 64  # texts at once
SORTED = 8  # batches whose texts are sorted by length, so that they are padded little


@dataclass(frozen=True)
class Recipe:
    """All that fine-tuning depends on, beside its data and its seed.

    Attributes:
        model: "all-MiniLM-L6-v2", a name on the hub, or a folder.
        batch_sizes: by task. rate: of AdamW, reached after the share `warmup` of the steps, then falling to nothing.
        longest: tokens of a text. most: training texts.
    """

    model: str
    epochs: int
    rate: float
    batch_sizes: dict[str, int] = field(default_factory=dict)
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    largest_gradient: float = 1.0
    longest: int = 256
    most: int | None = None


SMALL = Recipe(minilm.NAME, epochs=3, rate=5e-5, most=10_000)
PAPER = Recipe("roberta-base", epochs=10, rate=1e-5, batch_sizes={"RTE": 64, "CoLA": 16, "QNLI": 32}, warmup=0.06, longest=512)

AfterEpoch = Callable[[int, Classifier], None]
"""(epochs done, the classifier in eval mode)"""


def fine_tune(
    pretrained: Pretrained,
    tokens: Tokens,
    labels: np.ndarray,
    recipe: Recipe,
    *,
    task: str,
    seed: int,
    device: torch.device,
    after_epoch: AfterEpoch | None = None,
    progress: bool = True,
) -> Classifier:
    """A classifier in eval mode; its new head, the order and what drops out depend on `seed` alone."""
    y = torch.from_numpy(labels).to(device)
    lengths = np.asarray([len(each["input_ids"]) for each in tokens])
    size = recipe.batch_sizes.get(task, recipe.batch_size)
    steps = recipe.epochs * -(-len(tokens) // size)
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = load_classifier(pretrained).to(device)
        optimizer = torch.optim.AdamW(_groups(classifier, recipe.weight_decay), recipe.rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps, recipe.warmup))
        bar = tqdm(total=recipe.epochs * len(tokens), desc="training", unit=" texts", leave=False, disable=not progress)
        with bar:
            for epoch in range(1, recipe.epochs + 1):
                classifier.train()
                for rows in batches(lengths, size, random):
                    x = pad([tokens[row] for row in rows], device, filler(classifier))
                    with fast(device):
                        z = classifier(x)
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(z.float(), y[torch.from_numpy(rows).to(device)])
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(classifier.parameters(), recipe.largest_gradient)
                    optimizer.step()
                    schedule.step()
                    bar.update(len(rows))
                classifier.eval()
                if after_epoch is not None:
                    after_epoch(epoch, classifier)
    return classifier


def batches(lengths: np.ndarray, size: int, random: torch.Generator) -> Iterator[np.ndarray]:
    """Rows of an epoch in an order by chance, texts of a batch being about as long as each other."""
    order = torch.randperm(len(lengths), generator=random).numpy()
    found = []
    for start in range(0, len(order), SORTED * size):
        rows = order[start : start + SORTED * size]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        found += [rows[first : first + size] for first in range(0, len(rows), size)]
    for place in torch.randperm(len(found), generator=random).tolist():
        yield found[place]


@torch.inference_mode()
def extract(classifier: Classifier, tokens: Tokens, *, progress: bool = False) -> np.ndarray:
    """What goes into the last layer: [N, d], computed in float32, texts of about the same length together."""
    device = next(classifier.parameters()).device
    lengths = np.asarray([len(each["input_ids"]) for each in tokens])
    order = np.argsort(lengths, kind="stable")
    features = np.empty((len(tokens), classifier.head.in_features), dtype=np.float32)
    with tqdm(total=len(tokens), desc="features", unit=" texts", leave=False, disable=not progress) as bar:
        for start in range(0, len(order), EXTRACTED):
            rows = order[start : start + EXTRACTED]
            x = pad([tokens[row] for row in rows], device, filler(classifier))
            features[rows] = classifier.features(x).float().cpu().numpy()
            bar.update(len(rows))
    return features


@torch.inference_mode()
def predict(classifier: Classifier, tokens: Tokens) -> np.ndarray:
    """The likeliest class of each text [N] int64."""
    features = torch.from_numpy(extract(classifier, tokens)).to(classifier.head.weight.device)
    found: np.ndarray = classifier.head(features).argmax(dim=1).cpu().numpy()
    return found


def filler(classifier: Classifier) -> int:
    """The token that stands where a text is over."""
    config = getattr(classifier.model, "config", None)
    return int(getattr(config, "pad_token_id", None) or 0)


def _groups(classifier: Classifier, weight_decay: float) -> Sequence[dict[str, object]]:
    """Weights that decay, and biases and gains that do not."""
    parameters: list[Tensor] = list(classifier.parameters())
    return [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]


def _share_of_rate(step: int, steps: int, warmup: float) -> float:
    rising = round(warmup * steps)
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / max(steps - rising, 1)
