"""A stand-in for tasks of GLUE, lists of words and a pretrained model, all tiny and in the layouts of the real ones."""

import json

import numpy as np

ROWS = {"train": 60, "dev": 24}
GOOD = ("good", "fine", "great")
BAD = ("bad", "poor", "awful")
PEOPLE = ("he", "she", "John", "Mary", "film", "book")


def write_tasks(folder, tasks, seed=0):
    """Texts whose label is told by one of their words, half of them about people."""
    random = np.random.default_rng(seed)
    for task in tasks:
        (folder / "glue" / task.name).mkdir(parents=True)
        for part in ("train", "dev"):
            if task.name == "QNLI" and part == "train":
                continue
            lines = ["\t".join(task.header)] if task.titled else []
            for row in range(ROWS[part]):
                label = row % 2
                words = [str(random.choice((GOOD, BAD)[label])), str(random.choice(PEOPLE))]
                fields = dict.fromkeys(task.header, "x") | {"index": str(row), "label": task.labels[label]}
                fields |= dict.fromkeys(task.sentences, f"a {words[1]} is {words[0]} " + "and " * (row % 7))
                lines.append("\t".join(fields[name] for name in task.header))
            text = "\n".join(lines)
            (folder / "glue" / task.name / f"{part}.tsv").write_text(text if task.name == "CoLA" else text + "\n")


def write_lists(folder):
    """The five lists."""
    folder = folder / "perturbation"
    folder.mkdir()
    attributes = {
        "gender": [["he", "she"], ["man", "woman"], ["actor", "actress"], ["him", "her"], ["his", "her"], ["guy", "girl"]],
        "race": [["black", "white", "asian"], ["africa", "europe", "asia"]],
        "religion": [["jewish", "christian", "muslim"], ["rabbi", "priest", "imam"]],
    }
    (folder / "bias_attribute_words.json").write_text(json.dumps(attributes))
    (folder / "winobias_extra_gendered_words.txt").write_text("uncle\taunt\nhost\thostess\npriest\tnun\n")
    crows = (
        "sent_more,sent_less,bias_type\nJohn ran.,Mary ran.,gender\nHe sat.,She sat.,gender\nJamal ran.,Tom ran.,race-color\n"
    )
    (folder / "crows_pairs_anonymized.csv").write_text(crows)
    words = "type,word\nname,Zoe\nname,Liam\nname,John\nidentity,trans\n"
    (folder / "identity_words.csv").write_text(words)
    (folder / "holistic_bias_nouns.json").write_text(json.dumps({"neutral": [["person", "people"], ["kid", "kids"]]}))


def write_model(folder, seed=0):
    """A random BERT of one layer with a tokenizer of whole words, as save_pretrained writes them."""
    from ipfast.experiments.minilm import load_transformers

    transformers = load_transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "is", "and", *GOOD, *BAD, *PEOPLE]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    return folder
