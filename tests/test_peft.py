"""Transformers of Hugging Face, whole and with LoRA adapters of peft, against autograd, one sample at a time, in float64."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_unchanged, products, queries_like, snapshot, squared_norms
from tolerances import FLOAT64_RELATIVE, assert_relative
from torch.utils.data import DataLoader, Dataset

import ipfast
from ipfast.engines.explicit import ExplicitEngine
from ipfast.engines.forward import ForwardEngine
from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.losses import CrossEntropy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about itself

WORDS, LENGTH, CLASSES = 17, 6, 3
ENGINES = {"forward": ForwardEngine, "ghost": GhostEngine, "explicit": ExplicitEngine}


def language_model():
    """GPT-2: Conv1D layers, position embeddings, and one weight for the first layer and the last."""
    transformers = pytest.importorskip("transformers")
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=WORDS, bos_token_id=0, eos_token_id=0, **sizes)
    return transformers.GPT2LMHeadModel(config)


def classifier():
    """BERT with a class for each sequence."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, num_labels=CLASSES, **sizes)
    return transformers.BertForSequenceClassification(config)


def adapted(model, targets):
    """The model, frozen, with LoRA layers whose B, which peft starts at zero, is not."""
    peft = pytest.importorskip("peft")
    conv = "c_attn" in targets
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, fan_in_fan_out=conv))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return made


def problem(kind, samples=5):
    """(model, inputs, labels) with padding; labels of a language model are given for each position and not shifted."""
    torch.manual_seed(0)
    model = {
        "language model": language_model,
        "classifier": classifier,
        "language model with LoRA": lambda: adapted(language_model(), ["c_attn", "c_fc"]),
        "classifier with LoRA": lambda: adapted(classifier(), ["query", "value", "dense"]),
    }[kind]()
    # Larger than they start, so that attention and activations are far from linear.
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 else 1).add_(0.01 * torch.randn_like(parameter))
    tokens, mask = torch.randint(0, WORDS, (samples, LENGTH)), torch.ones(samples, LENGTH, dtype=torch.long)
    mask[1, 4:] = mask[3, 2:] = 0
    if kind.startswith("language"):
        labels = torch.randint(0, WORDS, (samples, LENGTH)).masked_fill(mask == 0, -100)
    else:
        labels = torch.randint(0, CLASSES, (samples,))
    return model.double().eval(), {"input_ids": tokens, "attention_mask": mask}, labels


def gradients(model, inputs, labels, names):
    """Per-sample gradients of the mean cross-entropy of a sample's labels."""
    named = {name: value for name, value in model.named_parameters() if name in names}
    rows = []
    for row in range(len(labels)):
        logits = model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits
        loss = F.cross_entropy(logits.flatten(0, -2), labels[row : row + 1].flatten())
        rows.append(torch.autograd.grad(loss, list(named.values())))
    return {name: torch.stack(column) for name, column in zip(named, zip(*rows, strict=True), strict=True)}


KINDS = {"language model": "all", "classifier": "all", "language model with LoRA": ["lora_"], "classifier with LoRA": ["lora_"]}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_inner_products_of_autograd_gradients(kind, engine):
    model, inputs, labels = problem(kind)
    network = Network("test", model, CrossEntropy(), params=KINDS[kind])
    made, before = ENGINES[engine](network), snapshot(model)
    prepared = network.prepare("test", inputs, labels, len(labels))
    got = {count: made.dot(inputs, prepared, queries_like(network.parameters, count)) for count in (1, 3)}
    norms = None if engine == "forward" else made.norm_sq(inputs, prepared)
    assert_unchanged(model, before)
    truth = gradients(model, inputs, labels, network.parameters)
    assert "LoRA" not in kind or all(bool(value.any()) for value in truth.values())
    for count, scores in got.items():
        assert_relative(scores, products(truth, queries_like(network.parameters, count)), FLOAT64_RELATIVE)
    if norms is not None:
        assert_relative(norms, squared_norms(truth), FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_has_a_rule(kind):
    model, inputs, labels = problem(kind)
    network = Network("test", model, CrossEntropy(), params=KINDS[kind])
    plan = GhostEngine(network).plan(inputs, network.prepare("test", inputs, labels, len(labels)))
    assert not plan.remainder
    assert plan.repeated == ({"transformer.wte.weight"} if kind == "language model" else set())


def test_adapters_are_the_parameters_that_train():
    for kind in ("language model with LoRA", "classifier with LoRA"):
        model, _, _ = problem(kind)
        trainable = set(Network("test", model, CrossEntropy(), params="trainable").parameters)
        lora = set(Network("test", model, CrossEntropy(), params=["lora_"]).parameters)
        assert trainable == lora
        assert all("lora_A" in name or "lora_B" in name for name in lora)


class Dictionaries(Dataset):
    """Samples as dictionaries, their labels under a name of their own."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {**{name: value[index] for name, value in self.inputs.items()}, "target": self.labels[index]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ip", "self_tracin"])
def test_dictionaries_are_scored_through_the_front_door(kind, method):
    model, inputs, labels = problem(kind, samples=9)
    rows, rest = slice(0, 5), slice(5, 9)
    train, val = (({name: value[part] for name, value in inputs.items()}, labels[part]) for part in (rows, rest))
    before = snapshot(model)
    data = DataLoader(Dictionaries(*train), batch_size=2)
    given = None if method == "self_tracin" else Dictionaries(*val)
    scores = ipfast.score(model, data, given, method=method, params=KINDS[kind], labels_key="target", progress=False)
    assert_unchanged(model, before)
    names = Network("test", model, CrossEntropy(), params=KINDS[kind]).parameters
    truth = gradients(model, *train, names)
    if method == "self_tracin":
        expected = -squared_norms(truth)
    else:
        query = {name: value.mean(dim=0, keepdim=True) for name, value in gradients(model, *val, names).items()}
        expected = products(truth, query)[:, 0]
    assert_relative(scores.values, expected, FLOAT64_RELATIVE)


def test_attention_is_put_back_in_the_form_it_had():
    model, inputs, labels = problem("classifier")
    forms = {}
    for form in ("sdpa", "eager"):
        model.set_attn_implementation(form)
        network = Network("test", model, CrossEntropy())
        q = queries_like(network.parameters)
        forms[form] = ForwardEngine(network).dot(inputs, labels, q)
        assert model.config._attn_implementation == form
        assert network.structure.config._attn_implementation == form
    assert_relative(forms["eager"], forms["sdpa"], FLOAT64_RELATIVE)
