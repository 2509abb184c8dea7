"""Sentence embeddings of all-MiniLM-L6-v2, computed once and kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ...data.writers import written_whole
from .. import minilm
from ..kept_files import kept
from ..minilm import load_transformers, minilm_folder
from ..pins import digest

TOKENS = 256
"""Of a text; what is longer is cut off, as the model's own settings have it."""
BATCH = 64


def require_packages() -> None:
    """Refuse, before any work, to go on without the model."""
    minilm_folder()
    load_transformers()


def kept_embeddings(texts: Sequence[str], file: Path, device: torch.device, *, progress: bool) -> np.ndarray:
    """`embed`, read from the file where it was kept, whose name also holds a digest of the texts and of what embeds them."""
    made_by = [minilm.NAME, version(minilm.PACKAGE), TOKENS, device.type]
    file = file.with_name(f"{file.stem}-{digest(list(texts), made_by)[:12]}.npy")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = embed(texts, device, progress=progress)
        with written_whole(file) as beside:
            np.save(beside, found)
    with kept(file), open(file, "rb") as stream:
        return np.asarray(np.load(stream, allow_pickle=False))


@torch.inference_mode()
def embed(texts: Sequence[str], device: torch.device, *, progress: bool) -> np.ndarray:
    """[N, 384] float32 of length 1: the mean of the last states of a text's tokens, normalised."""
    tokenizer, encoder = _load(device)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # so that there is little padding
    found = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(texts), desc="embeddings", unit=" texts", leave=False, disable=not progress) as bar:
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            made = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            ).to(device)
            told = made["attention_mask"][:, :, None].float()
            states = encoder(**made).last_hidden_state
            mean = (states * told).sum(dim=1) / told.sum(dim=1)
            found[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
            bar.update(len(rows))
    return found


def _load(device: torch.device) -> tuple[Any, Any]:
    """(tokenizer, encoder in eval mode)"""
    transformers, path = load_transformers(), minilm_folder()
    encoder = transformers.BertModel.from_pretrained(path, add_pooling_layer=False)
    return transformers.AutoTokenizer.from_pretrained(path), encoder.to(device).eval()
