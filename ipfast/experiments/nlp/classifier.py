"""A Hugging Face sequence classifier: where it comes from, how texts go into it, and its last layer."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError, MissingFileError
from .. import minilm
from .rewriting import Sentences

CLASSES = 2
Tokens = list[dict[str, list[int]]]
"""Of each text its token ids, and what else the model takes, without padding."""
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Files, one of which every tokenizer has. Without any, transformers makes an empty one, to which all words are the same."""

BESIDE_TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""Files that change what a tokenizer does, where they are there."""


@dataclass(frozen=True)
class Pretrained:
    """What fine-tuning starts from.

    Attributes:
        source: a folder, or a name on the hub.
        about: what the recipe says of it: its name, without folders, and for a folder a hash of its weights and its tokenizer.
    """

    source: str
    about: dict[str, str]


def find_pretrained(model: str) -> Pretrained:
    """The weights called `model`: those of the package, of a folder, or of the hub.

    Raises:
        MissingFileError, InputError: it is a path and there is no folder, or one without a model.
    """
    folder = minilm.minilm_folder() if model == minilm.NAME else Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith(".") or model.count("/") > 1:
            raise MissingFileError(
                f"experiment: expected --model to be a folder with a model of Hugging Face; {model!r} does not exist. Check "
                "the path."
            )
        return Pretrained(model, {"name": model})
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not (folder / "config.json").exists() or not weights:
        raise InputError(
            f"experiment: expected --model to be a folder with config.json and model.safetensors; {model!r} has no such files. "
            "Pass what save_pretrained has written."
        )
    tokenizer = sorted(path for name in (*TOKENIZERS, *BESIDE_TOKENIZERS) for path in folder.glob(name) if path.is_file())
    if not any(path.match(name) for path in tokenizer for name in TOKENIZERS):
        raise InputError(
            f"experiment: expected --model to be a folder with its tokenizer, one of {', '.join(TOKENIZERS)}; {model!r} has no "
            "such file. Get it from where the weights are from: on the hub it lies beside them, and "
            "tokenizer.save_pretrained(FOLDER) writes it."
        )
    digest = hashlib.sha256()
    for file in (folder / "config.json", *weights, *tokenizer):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    name = minilm.NAME if model == minilm.NAME else folder.resolve().name
    return Pretrained(str(folder), {"name": name, "sha256": digest.hexdigest()})


def check_pretrained(pretrained: Pretrained) -> None:
    """Refuse, before any work, a model whose tokenizer or configuration cannot be loaded; its weights are large, and wait."""
    _from_pretrained("AutoTokenizer", pretrained)
    _from_pretrained("AutoConfig", pretrained)


class Classifier(nn.Module):
    """Token batches in, logits out; `features` gives what goes into the last linear layer, `head`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        linear = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
        heads = [each for _, each in linear if each.out_features == CLASSES]
        if not heads:
            raise InputError(
                "experiment: expected --model to end in a linear layer, as the sequence classifiers of Hugging Face do; it has "
                "none. Choose another one."
            )
        self._heads = heads[-1:]  # in a list, so that its parameters are there once

    @property
    def head(self) -> nn.Linear:
        return self._heads[0]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        z: Tensor = self.model(**batch).logits
        return z

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, d]"""
        found: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            self(batch)
        finally:
            hook.remove()
        return found[-1]


def load_classifier(pretrained: Pretrained) -> Classifier:
    """The pretrained weights under a new head of two classes, which torch's generator decides."""
    made = _from_pretrained("AutoModelForSequenceClassification", pretrained, num_labels=CLASSES)
    return Classifier(made)


def tokenize(pretrained: Pretrained, texts: list[Sentences], longest: int) -> Tokens:
    """Tokens of one or two sentences each, at most `longest`."""
    if not texts:
        return []
    tokenizer = _from_pretrained("AutoTokenizer", pretrained)
    found = tokenizer(*(list(part) for part in zip(*texts, strict=True)), truncation=True, max_length=longest)
    return [{name: found[name][row] for name in found} for row in range(len(texts))]


def check_known(pretrained: Pretrained, tokens: Tokens) -> None:
    """Refuse a tokenizer that knows few of the texts' words."""
    tokenizer = _from_pretrained("AutoTokenizer", pretrained)
    unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    counts = Counter(token for each in tokens for token in each["input_ids"] if token == unknown or token not in special)
    words = counts.total()
    if not words or (unknown is not None and 2 * counts[unknown] > words):
        raise InputError(
            f"experiment: expected --model with a tokenizer that knows the words of the training texts; to that of "
            f"{pretrained.about['name']!r} {counts[unknown]:,} of {words:,} tokens are unknown. Get the tokenizer from where "
            "the weights are from, or choose a model for English."
        )


def pad(tokens: Tokens, device: torch.device, filler: int) -> dict[str, Tensor]:
    """A batch [B, T], as long as the longest of its texts."""
    length = max(len(each["input_ids"]) for each in tokens)

    def column(name: str) -> Tensor:
        fill = filler if name == "input_ids" else 0
        return torch.tensor([each[name] + [fill] * (length - len(each[name])) for each in tokens], device=device)

    return {name: column(name) for name in tokens[0]}


def _from_pretrained(kind: str, pretrained: Pretrained, **options: Any) -> Any:
    factory = getattr(minilm.load_transformers(), kind)
    try:
        return factory.from_pretrained(pretrained.source, **options)
    except Exception as error:  # a foreign file can raise anything
        raise InputError(
            f"experiment: expected --model to be a folder with a model of Hugging Face, or the name of one on the hub that can "
            f"be downloaded; {pretrained.about['name']!r} cannot be loaded ({type(error).__name__}). Pass the path of a folder "
            "that save_pretrained has written."
        ) from error
