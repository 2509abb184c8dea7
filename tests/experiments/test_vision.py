"""The vision experiment on a stand-in of a few hundred images in CIFAR's layout."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import ipfast
from ipfast.data import animal, cifar
from ipfast.experiments import run_experiment
from ipfast.experiments.base import Surroundings
from ipfast.experiments.cells import Cell, Record, Records
from ipfast.experiments.checkpoints import BASE_SEED, checkpoint_epochs
from ipfast.experiments.vision import base_model, detection, experiment, networks, paper, scoring, training
from ipfast.experiments.vision.problem import level_of, read_problem, split

RECORDS = 60
TRAIN = 5 * RECORDS
ANIMALS = {"training": 100, "testing": 20}
TINY = replace(training.SMALL, epochs=2, batch_size=64)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on data this small, and much more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_images(folder, names, labels, head, random):
    """Files of images whose brightness tells the label modulo ten; the label is the last of `head` bytes."""
    pixels = np.clip(labels[:, None] % 10 * 25 + random.integers(0, 25, (len(labels), 3072)), 0, 255).astype(np.uint8)
    records = np.concatenate([*[labels[:, None]] * head, pixels], axis=1).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    for name, part in zip(names, np.split(records, len(names)), strict=True):
        part.tofile(folder / name)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """CIFAR-10N and CIFAR-100N in their layouts."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    # 30 of the 100 classes, so that a tenth of the images of each is one
    for layout, classes in ((cifar.CIFAR10, 10), (cifar.CIFAR100, 30)):
        labels = random.permutation(np.arange(TRAIN) % classes)
        write_images(folder / layout.folder, layout.train, labels, layout.head, random)
        write_images(folder / layout.folder, layout.test, np.arange(RECORDS) % classes, layout.head, random)
        (folder / layout.places[1]).mkdir()
        noisy = np.where(random.random(TRAIN) < 0.3, (labels + 1) % classes, labels)
        content = {"clean_label": labels, **dict.fromkeys(layout.noise.values(), noisy)}
        torch.save(content, folder / layout.places[1] / layout.human)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, records=RECORDS, test_records=RECORDS))
    monkeypatch.setattr(cifar, "CIFAR100", replace(cifar.CIFAR100, records=TRAIN, test_records=RECORDS))
    monkeypatch.setattr(animal, "COUNTS", ANIMALS)
    monkeypatch.setitem(experiment.RECIPES, "small", TINY)
    recipes = {}
    monkeypatch.setitem(networks.NETWORKS, "vit-1x32", partial(networks.vit, depth=1, width=32, heads=2))
    monkeypatch.setitem(networks.NETWORKS, "mixer-1x32", partial(networks.mixer, depth=1, width=32))
    for setting, recipe in experiment.ARCHITECTURES["small"].items():
        recipes[setting] = replace(recipe, network=f"{setting.split()[0]}-1x32", epochs=2, batch_size=64)
    monkeypatch.setitem(experiment.ARCHITECTURES, "small", recipes)


@pytest.fixture
def data(original, tmp_path, tiny):
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture
def animals(data):
    """Animal-10N beside the others: brightness tells the label."""
    random = np.random.default_rng(1)
    for name, count in ANIMALS.items():
        (data / "animal-10n" / name).mkdir(parents=True)
        for number in range(count):
            pixels = (number % 10 * 25 + random.integers(0, 25, (64, 64, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(data / "animal-10n" / name / f"{number % 10}_{number}.jpg")
    return data


def vision(data, folder, scale="small"):
    folder.mkdir(exist_ok=True)
    return experiment.Vision(Surroundings(folder, data, scale, torch.device("cpu"), progress=False))


def run(data, out, **options):
    return run_experiment("vision", data=data, out=out, progress=False, echo=lambda _: None, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:score. LiSSA stopped")  # a head trained for moments on noise is nearly singular
def test_the_experiment_runs_to_its_tables_and_goes_on(data, tmp_path, monkeypatch):
    trained = Counter()

    def counted(images, labels, recipe, *, seed, **options):
        trained[seed, len(labels)] += 1
        return training.train_network(images, labels, recipe, seed=seed, **options)

    monkeypatch.setattr(base_model, "train_network", counted)
    monkeypatch.setattr(experiment, "train_network", counted)
    folder = run(
        data, tmp_path / "out", settings=["detection/worst", "removal/worst", "ensembles/worst T=5 p=0.1"], seeds=[0, 1]
    )
    known = [
        method
        for method in experiment.Vision.methods
        if method == "none" or method.removesuffix(":all") in ipfast.methods.METHODS
    ]
    found = {(row["part"], row["method"], row["seed"]): row["values"] for row in rows(folder)}
    assert {method for part, method, _ in found if part == "detection"} == set(known) - {"none"}
    assert {method for part, method, _ in found if part == "removal"} == set(known) & set(experiment.RETRAINED)
    assert {seed for part, method, seed in found if (part, method) == ("detection", "ip")} == {0}
    assert {seed for part, method, seed in found if (part, method) == ("detection", "random")} == {0, 1}
    kept = int(0.95 * 0.9 * TRAIN) + 1  # floor of the share is removed
    assert {values["kept"] for (part, method, _), values in found.items() if part == "removal" and method != "none"} == {kept}
    removals = len([method for method in known if method in experiment.RETRAINED]) - 1
    assert trained == {
        (BASE_SEED, 270): 1,
        **{(seed, 270): 1 for seed in (0, 1)},
        **{(s, kept): removals for s in (0, 1)},
    }
    assert {file.name for file in folder.glob("*.png")} == {"detection.png", "removal.png"}
    before = (folder / "results.jsonl").read_bytes()
    run(data, tmp_path / "out", settings=["detection/worst", "removal/worst"], seeds=[0, 1])
    assert (folder / "results.jsonl").read_bytes() == before
    text = (folder / "tables.md").read_text()
    for words in ("Which scores find wrong labels", "Points of accuracy above `random`", "T = 5, p = 0.1", "all labels"):
        assert words in text


def test_a_cell_gives_the_same_in_whatever_run(data, tmp_path):
    """Alone, after others and from files: what a cell finds depends on the cell alone."""
    cell = Cell("removal", "aggregate", "ip", 1)
    alone = vision(data, tmp_path / "alone").run(cell)
    other = vision(data, tmp_path / "other")
    other.run(Cell("detection", "worst", "self_tracin", 0))
    other.run(Cell("removal", "aggregate", "random", 1))
    assert other.run(cell) == alone
    assert vision(data, tmp_path / "other").run(cell) == alone


def test_retraining_starts_alike_for_all_methods(data):
    """Paired seeds: first parameters do not depend on what was removed."""
    problem = read_problem(data, "worst")
    first = []
    for count in (270, 250):
        recipe = replace(TINY, epochs=1, schedule="steps", rate=0.0)  # so that it stays where it starts
        made = training.train_network(
            problem.images[:count],
            problem.given[:count],
            recipe,
            classes=10,
            seed=3,
            device=torch.device("cpu"),
            progress=False,
        )
        first.append([parameter.detach() for parameter in made.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*first, strict=True))


def test_the_hold_out_is_clean_stratified_and_apart(data):
    for level, classes in (("worst", 10), ("cifar100", 100)):
        problem = read_problem(data, level)
        assert problem.classes == classes
        brightness = problem.val[0].mean(axis=(1, 2, 3)) // 25
        assert np.array_equal(brightness, problem.val[1] % 10)
        assert 0.2 < problem.wrong.mean() < 0.4
        assert np.array_equal(problem.images.mean(axis=(1, 2, 3)) // 25, problem.true % 10)
    labels = np.repeat(np.arange(10), 30)
    train, val = split(labels, 10)
    assert np.bincount(labels[val]).tolist() == [3] * 10
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(300))


def test_cifar100_is_run_where_its_files_are(data, tmp_path):
    def levels(made, every=False):
        cells = (made.every_cell if every else made.cells)(made.methods, (0,))
        return list(dict.fromkeys(level_of(cell.setting) for cell in cells))

    made = vision(data, tmp_path / "out")
    assert levels(made) == ["aggregate", "random", "worst", "cifar100"]
    assert [line.split(":")[0] for line in made.left_out()] == ["Without animal"]
    missing = data / "cifar-100-binary" / "test.bin"
    missing.unlink()
    assert levels(made) == ["aggregate", "random", "worst"]
    assert levels(made, every=True) == ["aggregate", "random", "worst", "cifar100", "animal"]
    assert f"Without cifar100: {str(missing)!r} is not there." in made.left_out()
    with pytest.raises(ipfast.MissingFileError, match=r"test\.bin"):
        run(data, tmp_path / "out", settings=["removal/cifar100"])


def test_what_is_compared_by_pairs_is_trained_alike(data, tmp_path):
    """Table 4 is beside removal, Table 5 too; the scores of a base model are all of that one."""
    made = vision(data, tmp_path / "out")
    keys = {cell: made.compared(cell) for cell in made.cells(made.methods, (0,))}
    assert {cell.part for cell, key in keys.items() if key is None} == {"base", "detection"}
    at = {key: {cell.part for cell in keys if keys[cell] == key} for key in keys.values() if key is not None}
    assert at["aggregate"] == {"removal", "rates", "ensembles"}
    assert at["architectures", "vit cifar100"] == {"architectures"}


def test_table_5_takes_the_method_from_where_it_is(data, tmp_path):
    made = vision(data, tmp_path / "out")
    settings = {cell.setting for cell in made.cells(made.methods, (0,)) if cell.part == "ensembles"}
    assert "worst T=5 p=0.1" in settings
    assert "worst T=5 p=0.01" not in settings
    values = {"AUC": 0.75, "precision 0.05": 0.5, "base rate": 0.3, "interval 0.05": [0.4, 0.6], "largest class 0.05": 0.1}
    values |= {f"{name} {share}": values[f"{name} 0.05"] for name in ("precision", "interval") for share in (0.01, 0.1)}
    cells = [Cell("detection", "worst", "ip_ensemble", 0), Cell("ensembles", "worst T=5 p=0.1", "ip_ensemble", 0)]
    text = "\n".join(made.tables(Records({cell: Record(cell, values, 1.0) for cell in cells})))
    assert "| T = 5, p = 0.01 | 0.7500 |" in text
    assert "| T = 10" not in text


@pytest.mark.parametrize("name", ["base.json", "features.npz", "epoch-2.safetensors"])
def test_a_base_model_that_cannot_be_read_is_named(name, data, tmp_path):
    made = vision(data, tmp_path / "out")
    made.run(Cell("detection", "worst", "self_tracin", 0))
    file = tmp_path / "out" / "base" / "worst" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ipfast.InputError, match=r"base/worst'; it cannot be read .*Delete it"):
        vision(data, tmp_path / "out").run(Cell("detection", "worst", "loss", 0))


def test_missing_and_foreign_files_are_named_before_any_work(data, tmp_path):
    out = tmp_path / "out"
    test = data / "cifar-10-batches-bin" / "test_batch.bin"
    whole = test.read_bytes()
    test.write_bytes(whole[:-1])
    with pytest.raises(ipfast.InputError, match=r"experiment: .*184,380 bytes.*test_batch.bin.*binary version"):
        run(data, out)
    test.unlink()
    with pytest.raises(ipfast.MissingFileError, match=r"test_batch.bin.*binary version"):
        run(data, out)
    test.write_bytes(whole)
    (data / "cifar-10n" / "CIFAR-10_human.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ipfast.InputError, match=r"CIFAR-10_human.pt.*cifar-10-100n"):
        run(data, out)
    assert not out.exists()


def test_recipes_of_before_are_those_of_before(monkeypatch, tmp_path):
    """Results lie under them; what is new is one entry."""
    small = {
        "network": "convnet",
        "epochs": 10,
        "batch_size": 256,
        "rate": 0.25,
        "schedule": "one-cycle",
        "nesterov": True,
        "shift": 2,
        "momentum": 0.9,
        "weight_decay": 0.0005,
    }
    paper = small | {"network": "resnet34", "epochs": 100, "batch_size": 128, "rate": 0.1, "schedule": "steps"}
    for scale, numbers in (("small", small), ("paper", paper | {"nesterov": False, "shift": 4})):
        recipe = vision(None, tmp_path, scale).recipe
        new = recipe.pop("architectures")
        assert recipe == {
            "experiment": "vision",
            "scale": scale,
            "training": numbers,
            "removed": 0.05,
            "held out": 0.1,
            "split seed": 0,
            "base seed": 1000,
            "checkpoints": 5,
            "segments": 3,
            "gex rate": 0.01,
        }
        settings = {f"{network} {level}" for network in ("vit", "mixer") for level in ("aggregate", "cifar100", "animal")}
        assert set(new) == settings | {"gex share of the rate"}
        assert {new[setting]["optimizer"] for setting in settings} == {"adamw"}
    assert {setting: numbers["rate"] for setting, numbers in new.items() if "aggregate" in setting} == {
        "vit aggregate": 1e-4,
        "mixer aggregate": 1e-3,
    }
    assert {numbers["epochs"] for setting, numbers in new.items() if "animal" in setting} == {400}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_other_networks_come_last(data, animals, tmp_path, scale):
    made = vision(animals, tmp_path / "out", scale)
    cells = list(made.cells(made.methods, (0, 1)))
    without_end = [cell for cell in cells if "cifar100" in cell.setting and cell.method == "self_lissa"]
    assert not without_end, "a series for each of 45,000 samples"
    assert any("cifar100" in cell.setting and cell.method == "self_tracin" for cell in cells)
    parts = [cell.part for cell in cells]
    first = parts.index("architectures")
    assert set(parts[first:]) == {"architectures"}
    assert "architectures" not in parts[:first]
    assert [cell.seed for cell in cells[first:]] == sorted(cell.seed for cell in cells[first:])
    methods = [method for method in made.methods if scale == "paper" or method in experiment.RETRAINED]
    assert {cell.method for cell in cells[first:]} == {method for method in methods if ":" not in method} - {"tda"}
    assert {cell.setting for cell in cells[first:]} == set(made.architectures)
    assert len(cells) == len(set(cells))
    shutil.rmtree(animals / "animal-10n")
    assert list(made.cells(made.methods, (0, 1))) == [cell for cell in cells if "animal" not in cell.setting.split()]


def test_other_networks_run_to_their_table_and_go_on(animals, tmp_path, monkeypatch):
    trained = Counter()

    def counted(images, labels, recipe, *, seed, **options):
        trained[recipe.network, images.shape[1], len(labels), seed] += 1
        return training.train_network(images, labels, recipe, seed=seed, **options)

    monkeypatch.setattr(base_model, "train_network", counted)
    monkeypatch.setattr(experiment, "train_network", counted)
    out = tmp_path / "out"
    options = {"settings": ["architectures"], "methods": ["none", "ip", "random"], "seeds": [0, 1]}
    folder = run(animals, out, **options)
    # floor(5 %) of 270 and of 90 are removed; two levels are of 270
    assert trained == {
        **{(f"{name}-1x32", 32, 270, BASE_SEED): 2 for name in ("vit", "mixer")},
        **{(f"{name}-1x32", 64, 90, BASE_SEED): 1 for name in ("vit", "mixer")},
        **{(f"{name}-1x32", 32, 270, seed): 2 for name in ("vit", "mixer") for seed in (0, 1)},
        **{(f"{name}-1x32", 64, 90, seed): 1 for name in ("vit", "mixer") for seed in (0, 1)},
        **{(f"{name}-1x32", 32, 257, seed): 4 for name in ("vit", "mixer") for seed in (0, 1)},
        **{(f"{name}-1x32", 64, 86, seed): 2 for name in ("vit", "mixer") for seed in (0, 1)},
    }
    levels = ("aggregate", "cifar100", "animal")
    assert {file.name for file in (folder / "base").iterdir()} == {f"{n}-{level}" for n in ("vit", "mixer") for level in levels}
    found = {(row["setting"], row["method"], row["seed"]): row["values"] for row in rows(folder)}
    assert "wrong kept" in found["vit aggregate", "ip", 0]
    assert "wrong kept" not in found["vit animal", "ip", 0]
    text = (folder / "tables.md").read_text()
    means = [np.mean([100 * found[f"mixer {level}", "ip", seed]["last"] for seed in (0, 1)]) for level in levels]
    assert f" | {np.mean(means):.2f} | 61.55 |" in text
    for words in (
        "| ip_ensemble, the paper | 81.96 | 51.01 | 77.20 |  | 70.06 |",
        "| minus random | vit aggregate | vit cifar100 | vit animal | mixer aggregate |",
        "vit-1x32, 2 epochs, batches of 64, AdamW up to 0.001 (vit aggregate, vit cifar100, vit animal)",
        "whose true labels nobody knows",
    ):
        assert words in text
    whole, before = (folder / "results.jsonl").read_bytes(), trained.total()
    (folder / "results.jsonl").write_bytes(whole[:-10])  # killed while the last cell was written
    run(animals, out, **options)
    assert trained.total() == before + 1
    assert rows(folder)[-1]["values"] == found["mixer animal", "random", 1]


def test_the_mean_of_table_6_is_of_all_three_data_sets(data, tmp_path):
    folder = run(data, tmp_path / "out", settings=["vit aggregate"], methods=["none"], seeds=[0])
    (row,) = rows(folder)
    text = (folder / "tables.md").read_text()
    assert f"| none | {100 * row['values']['last']:.2f} |  |  |  | 68.87 |" in text
    assert "mixer" not in text
    assert "nobody knows" not in text


def test_the_papers_means_are_those_of_its_numbers():
    for name, of_data in paper.ENSEMBLE.items():
        assert round(sum(of_data.values()) / 3, 2) == paper.TABLE_6[name]["ip_ensemble"]
        assert set(paper.TABLE_6[name]) <= set(experiment.Vision.methods)


def test_animals_have_no_true_labels(animals, tmp_path):
    problem = read_problem(animals, "animal")
    assert problem.true is None
    assert problem.images.shape == (90, 64, 64, 3)
    assert np.bincount(problem.val[1]).tolist() == [1] * 10
    for images, labels in ((problem.images, problem.given), problem.val, problem.test):
        assert np.array_equal(images.mean(axis=(1, 2, 3)) // 25, labels)
    made = vision(animals, tmp_path / "cells")
    parts = {cell.part for cell in made.cells(made.methods, (0,)) if "animal" in cell.setting.split()}
    assert parts == {"base", "removal", "architectures"}
    settings = ["base/animal", "removal/animal", "detection/aggregate"]
    folder = run(animals, tmp_path / "out", settings=settings, methods=["none", "ip"], seeds=[0])
    found = {(row["part"], row["method"]): row["values"] for row in rows(folder)}
    assert found["removal", "ip"]["kept"] == 86
    assert "wrong" not in found["removal", "ip"]
    text = (folder / "tables.md").read_text()
    assert "whose true labels nobody knows" in text
    detection_tables, removal_tables = text.split("## Training again")
    assert "|  | aggregate |" in detection_tables
    assert "| animal |" not in detection_tables
    assert "animal |" in removal_tables


def test_broken_animals_are_named_before_any_work(animals, tmp_path):
    (animals / "animal-10n" / "training" / "3_13.jpg").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ipfast.InputError, match=r"experiment: .*3_13.jpg.*dm.kaist.ac.kr"):
        run(animals, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(animals, tmp_path / "out", settings=["removal/aggregate"], methods=["none"], seeds=[0])  # which does not read them


def test_methods_that_travel_do_so_as_the_network_was_trained(data, tmp_path):
    made = vision(data, tmp_path / "out")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    for name, kind, rate in (("aggregate", torch.optim.SGD, 0.01), ("vit aggregate", torch.optim.AdamW, 1e-4)):
        base, problem = made._base(name), made._problem("aggregate")
        assert scoring._travelling(base, problem, "tda").points.momentum == 0  # which is in the rates
        optimizer = scoring._travelling(base, problem, "gex").points.optimizer(parameters)
        assert type(optimizer) is kind
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert not optimizer.param_groups[0].get("nesterov")
    for method in ("tracin", "gex", "tda", "ekfac"):
        assert torch.isfinite(made.scores("vit aggregate", method, 0).values).all()


def test_detection_counts_what_lies_lowest():
    wrong = np.arange(100) < 20
    values = torch.arange(100.0)
    values[0] = 1000.0  # one wrong label scores highest
    found = detection.detect(ipfast.Scores(values, "ip", "head", "cpp"), wrong, np.arange(100) // 50)
    assert found["base rate"] == 0.2
    assert [found[f"precision {share}"] for share in detection.SHARES] == [1.0, 1.0, 1.0]
    assert found["AUC"] == pytest.approx(19 / 20)
    assert found["largest class 0.05"] == 1.0
    assert 0 < found["interval 0.05"][0] < found["interval 0.05"][1] == 1


@pytest.mark.parametrize("epochs", [1, 2, 10, 100])
def test_checkpoints_and_segments_cover_the_run(epochs):
    kept = checkpoint_epochs(epochs)
    assert kept[-1] == epochs
    assert kept == sorted(set(kept))
    segments = [segment for segment in base_model.segment_epochs(epochs) if segment[0] < segment[2]]
    assert segments[0][0] == 0
    assert segments[-1][2] == epochs
    assert all(start < middle <= end for start, middle, end in segments)
    assert all(one[2] == other[0] for one, other in pairwise(segments))


def test_learning_rates_follow_their_schedules():
    parameter = torch.nn.Parameter(torch.zeros(1))

    def rates(recipe):
        optimizer = torch.optim.SGD([parameter], recipe.rate)
        schedule = training._schedule(optimizer, recipe, 2)
        found = []
        for _ in range(2 * recipe.epochs):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    cycle = rates(replace(TINY, epochs=20))
    assert max(cycle) == pytest.approx(0.25)
    assert cycle[-1] < 1e-4
    assert max(rates(replace(experiment.ARCHITECTURES["paper"]["vit aggregate"], epochs=20))) == pytest.approx(1e-4)
    assert rates(replace(training.PAPER, epochs=10)) == pytest.approx([0.1] * 12 + [0.01] * 8)


def test_effective_rates_are_those_of_the_momentum_of_each_step():
    """η/(1 − β) of a cosine up and down again, in which β goes from 0.95 to 0.85 and back, by hand."""
    epochs, steps = 20, 3
    total = epochs * steps

    def between(start, end, share):
        return end + (start - end) * (1 + np.cos(np.pi * share)) / 2

    up = 0.3 * total - 1
    expected = []
    for step in range(total):
        if step <= up:
            rate, momentum = between(0.01, 0.25, step / up), between(0.95, 0.85, step / up)
        else:
            share = (step - up) / (total - 1 - up)
            rate, momentum = between(0.25, 1e-6, share), between(0.85, 0.95, share)
        expected.append(rate / (1 - momentum))
    found = training.effective_rates(replace(TINY, epochs=epochs), steps)
    assert found == pytest.approx(np.asarray(expected).reshape(epochs, steps).mean(axis=1), rel=1e-9)
    steady = replace(TINY, epochs=5, schedule="steps", rate=0.1)
    assert training.effective_rates(steady, 2) == pytest.approx([1.0] * 3 + [0.1] * 2)
    assert training.effective_rates(replace(steady, optimizer="adamw"), 2) == pytest.approx([0.1] * 3 + [0.01] * 2)


def test_a_folder_of_results_belongs_to_its_images(data, tmp_path):
    options = {"settings": ["removal/aggregate"], "methods": ["none"]}
    run(data, tmp_path / "out", seeds=[0], **options)
    file = data / cifar.CIFAR10.folder / cifar.CIFAR10.test[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one pixel
    file.write_bytes(content)
    with pytest.raises(ipfast.InputError, match="aggregate"):
        run(data, tmp_path / "out", seeds=[0, 1], **options)
    assert len(rows(tmp_path / "out" / "vision-small")) == 1
