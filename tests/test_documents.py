"""The Python of the README and of docs/ runs as it stands."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import ipfast
from ipfast import layers, tangents

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{file.name}:{index}": block
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for index, block in enumerate(BLOCK.findall(file.read_text(encoding="utf-8")))
}


class Images(nn.Module):
    """A network with the layers that the text names."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.layer4(x).mean((2, 3)))


class Adapted(nn.Module):
    """A network with a low-rank adapter."""

    def __init__(self):
        super().__init__()
        self.base = Images()
        self.lora_A, self.lora_B = nn.Linear(3, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x.mean((2, 3))))


class LanguageModel(nn.Module):
    """Called and answering as those of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, input_ids, attention_mask=None):
        return types.SimpleNamespace(logits=self.head(torch.tanh(self.embed(input_ids)) * attention_mask[..., None]))


class Texts(Dataset):
    def __init__(self, samples):
        self.ids = torch.randint(0, 7, (samples, 5))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        labels = torch.full_like(self.ids[index], -100)
        labels[:-1] = self.ids[index, 1:]
        return {"input_ids": self.ids[index], "attention_mask": torch.ones(5), "labels": labels}


def pictures(samples):
    _, x, y = images(samples)
    return TensorDataset(x.float(), y)


def scaled(kind):
    """A network with a layer of a type from outside."""
    return nn.Sequential(nn.Flatten(), nn.Linear(216, 6), kind(6), nn.Linear(6, 5)).eval()


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the text takes for granted."""
    monkeypatch.chdir(tmp_path)
    before = dict(layers.RULES), dict(tangents.RULES)
    torch.manual_seed(0)
    model, linear = Images().eval(), nn.Linear(4, 3)
    h, y = torch.randn(40, 4), torch.arange(40) % 3
    np.save("H.npy", h.numpy())
    np.save("y.npy", y.numpy())
    np.savez("val.npz", features=h[:8].numpy(), labels=y[:8].numpy())
    for epoch in (1, 2):
        save_file({name: value.clone() for name, value in Images().state_dict().items()}, f"epoch{epoch}.safetensors")
    data = {"H": h, "y": y, "H_val": h[:8].clone(), "y_val": y[:8], "X": h.numpy(), "X_val": h[:8].numpy()}
    data |= {"train": pictures(24), "val": pictures(8), "cats": pictures(5), "dogs": pictures(6)}
    data |= {"texts": Texts(12), "texts_val": Texts(6)}
    data |= {"sex": np.array(["f", "m"] * 4), "H_rewritten": h[8:16].clone(), "sex_train": np.array(["f", "m"] * 20)}
    data["parity"] = ipfast.DemographicParity(data["sex"], positive=1)
    models = {
        "network": model,
        "model": model,
        "linear": linear,
        "adapted": Adapted().eval(),
        "lm": LanguageModel().eval(),
        "scaled": scaled,
    }
    yield {"ipfast": ipfast, "torch": torch, "estimator": LogisticRegression().fit(h.numpy(), y.numpy()), **data, **models}
    for rules, earlier in zip((layers.RULES, tangents.RULES), before, strict=True):
        rules.clear()
        rules.update(earlier)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_python_of_the_documents_runs(name, names):
    exec(compile(BLOCKS[name], name, "exec"), names)
    assert torch.isfinite(names["scores"].values).all() if "scores" in names else torch.nn.functional.silu in tangents.RULES


def test_the_rule_of_the_documents_is_the_derivative(names):
    exec(next(block for name, block in BLOCKS.items() if "def silu" in block), names)
    x, dx = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        _, tangent = tangents.parts(names["silu"](tangents.dual(x, dx)))
    _, expected = torch.func.jvp(lambda value: value / (1 + torch.exp(-value)), (x,), (dx,))
    assert_relative(tangent, expected, FLOAT64_RELATIVE)


def test_the_layer_rule_of_the_documents_gives_the_scores_of_autograd(names):
    exec(next(block for block in BLOCKS.values() if "class ScaleRule" in block), names)
    model = names["scaled"](names["Scale"]).double()
    x, y = names["train"].tensors
    data = (x[:6].double(), y[:6]), (x[6:12].double(), y[6:12])
    ghost, explicit = (
        ipfast.score(model, *data, params="all", engine=engine, progress=False) for engine in ("ghost", "explicit")
    )
    assert_relative(ghost.values, explicit.values, FLOAT64_RELATIVE)
