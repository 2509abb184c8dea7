"""The command line, as a user meets it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import ROWS, VALIDATION_ROWS, linear_problem, token_problem
from safetensors.torch import save_file
from tolerances import FLOAT64_RELATIVE, assert_relative
from typer.testing import CliRunner

import ipfast
from ipfast.cli import app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with features, labels, head and validation data in files."""
    problem = linear_problem()
    np.save(tmp_path / "H.npy", problem.x.numpy())
    np.save(tmp_path / "y.npy", problem.y.numpy())
    np.savez(tmp_path / "data.npz", features=problem.x.numpy(), labels=problem.y.numpy())
    np.savez(tmp_path / "val.npz", features=problem.x_val.numpy(), labels=problem.y_val.numpy())
    save_file({name: value.detach() for name, value in problem.head.state_dict().items()}, tmp_path / "head.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flat(text):
    """Text without the line breaks and frames of a terminal."""
    return " ".join(text.replace("│", " ").split())


def truth():
    problem = linear_problem()
    return ipfast.score(problem.model, problem.train, problem.val)


PAIR = ("score", "--features", "H.npy", "--labels", "y.npy", "--head", "head.safetensors")
ONE = ("score", "--train", "data.npz", "--head", "head.safetensors")
VAL = ("--val", "val.npz")


@pytest.mark.parametrize("data", [PAIR, ONE], ids=["pair", "one"])
@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet", ".safetensors"])
def test_score_writes_the_scores_of_the_library(ending, data, folder):
    done = run(*data, *VAL, "--out", f"scores{ending}")
    assert done.exit_code == 0, done.output
    assert f"Scores written to scores{ending}" in done.output
    assert ipfast.Scores.load(f"scores{ending}").values.tolist() == truth().values.tolist()


QUERY = ("query", "--head", "head.safetensors", *VAL)


@pytest.mark.parametrize("method", ["ip", "ip_ensemble", "exact"])
def test_a_stored_query_scores_shards_as_val_scores_the_whole(method, folder):
    """Once computed, a query needs neither val nor, of a curvature, the training data that it was fitted to."""
    fitted = ("--train", "data.npz") if method == "exact" else ()
    done = run(*QUERY, "--method", method, *fitted, "--out", "q.safetensors")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Query of {VALIDATION_ROWS} validation samples, method {method}")
    problem = linear_problem()
    whole = ipfast.score(problem.model, problem.train, problem.val, method=method)
    found = []
    for name, rows in (("one", slice(0, 7)), ("other", slice(7, None))):
        np.savez(f"{name}.npz", features=problem.x.numpy()[rows], labels=problem.y.numpy()[rows])
        shard = ("score", "--head", "head.safetensors", "--train", f"{name}.npz", "--stored-query", "q.safetensors")
        done = run(*shard, "--out", f"{name}.npy")
        assert done.exit_code == 0, done.output
        assert f"method {method}" in done.output
        found += np.load(f"{name}.npy").tolist()
    assert_relative(torch.tensor(found, dtype=torch.float64), whole.values, FLOAT64_RELATIVE)


def test_score_without_out_prints_a_summary_and_the_lowest_rows(folder):
    before = sorted(folder.iterdir())
    done = run(*PAIR, *VAL, "--rows", "3")
    scores = truth()
    assert done.exit_code == 0
    assert f"{ROWS} samples, method ip, engine head" in done.output
    assert f"{int((scores.values < 0).sum())} negative; minimum {float(scores.values.min()):.4g}" in done.output
    rows = [line.split() for line in done.output.split("most detrimental first):")[1].splitlines()[2:]]
    assert [int(row) for row, _ in rows] == scores.lowest(3).tolist()
    assert [score for _, score in rows] == [f"{float(scores.values[i]):.5g}" for i in scores.lowest(3)]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("rows", [0, 1000])
def test_rows_may_be_none_or_more_than_there_are(rows, folder):
    done = run(*ONE, *VAL, "--rows", rows)
    assert done.exit_code == 0
    assert ("lowest" in done.output) == (rows > 0)


@pytest.mark.parametrize("method", ["self_tracin", "loss", "random"])
def test_methods_without_val(method, folder):
    done = run(*ONE, "--method", method, "--out", "s.npy")
    assert done.exit_code == 0, done.output
    problem = linear_problem()
    assert np.load("s.npy").tolist() == ipfast.score(problem.model, problem.train, method=method).values.tolist()


@pytest.mark.parametrize("name", ["adversarial", "demographic_parity", "equal_opportunity", "counterfactual"])
def test_score_by_other_impacts(name, folder):
    problem = linear_problem()
    groups, positive = np.arange(len(problem.y_val)) % 2, int(problem.y_val.mode().values)
    np.save("g.npy", groups)
    np.save("pairs.npy", problem.x_val.numpy() * 2)
    np.save("y.npy", problem.y.numpy())
    made = {
        "adversarial": ipfast.Adversarial(),
        "demographic_parity": ipfast.DemographicParity(groups, positive=positive),
        "equal_opportunity": ipfast.EqualOpportunity(groups, positive=positive),
        "counterfactual": ipfast.Counterfactual(problem.x_val * 2),
    }[name]
    options = ("--groups", "g.npy", "--positive", positive) if "groups" in made.options() else ()
    options = ("--pairs", "pairs.npy") if name == "counterfactual" else options
    done = run(*ONE, *VAL, "--impact", name, *options, "--out", "s.npy")
    assert done.exit_code == 0, done.output
    assert np.load("s.npy").tolist() == ipfast.score(problem.model, problem.train, problem.val, impact=made).values.tolist()


@pytest.mark.parametrize(
    ("name", "options", "made"),
    [
        (
            "ip_ensemble",
            {"members": 3, "rate": 0.2, "rescale": False},
            ipfast.Method(points=ipfast.Dropout(3, 0.2, rescale=False)),
        ),
        ("ekfac", {"damping": 0.5}, ipfast.Method(curvature=ipfast.EKFAC(damping=0.5))),
        ("exact", {"damping": "auto", "ggn": True}, ipfast.Method(curvature=ipfast.Exact(ggn=True))),
        ("random", {"seed": 7}, ipfast.methods.Control("random", 7)),
    ],
)
def test_methods_take_their_options(name, options, made, folder):
    given = [part for option, value in options.items() for part in ("--method-option", f"{option}={value}")]
    done = run(*ONE, *(VAL if name != "random" else ()), "--method", name, *given, "--out", "s.npy")
    assert done.exit_code == 0, done.output
    problem = linear_problem()
    val = None if name == "random" else problem.val
    assert np.load("s.npy").tolist() == ipfast.score(problem.model, problem.train, val, method=made).values.tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adversarial", {"gamma": 2.5}),
        ("demographic_parity", {"signed": True}),
        ("equal_opportunity", {"signed": False, "of": "probability"}),
        ("counterfactual", {"kind": "logit_sq"}),
    ],
)
def test_impacts_take_their_options(name, options, folder):
    problem = linear_problem()
    groups = np.arange(len(problem.y_val)) % 2
    np.save("g.npy", groups)
    np.save("pairs.npy", problem.x_val.numpy() * 2)
    positive = {"positive": int(problem.y_val.mode().values)}
    data = {"counterfactual": {"pairs": problem.x_val * 2}, "adversarial": {}}.get(name, {"groups": groups} | positive)
    made = ipfast.impacts.IMPACTS.get("test", name)(**data, **options)
    given = {"counterfactual": ("--pairs", "pairs.npy"), "adversarial": ()}.get(
        name, ("--groups", "g.npy", "--positive", positive["positive"])
    )
    for option, value in options.items():
        given = (*given, "--impact-option", f"{option}={str(value).lower()}")
    done = run(*QUERY, "--impact", name, *given, "--out", "q.safetensors")
    assert done.exit_code == 0, done.output
    assert run(*ONE, *VAL, "--impact", name, *given, "--out", "s.npy").exit_code == 0
    run(*ONE, "--stored-query", "q.safetensors", "--out", "stored.npy")
    expected = ipfast.score(problem.model, problem.train, problem.val, impact=made).values.tolist()
    assert np.load("s.npy").tolist() == np.load("stored.npy").tolist() == expected


def test_curate_after_score(folder):
    run(*ONE, *VAL, "--out", "scores.npy")
    done = run("curate", "scores.npy", "--drop", "0.1", "--out", "keep.npy")
    assert done.exit_code == 0, done.output
    keep = ipfast.curate.trim(truth(), 0.1)
    assert f"Kept {len(keep)} of {ROWS} samples: keep.npy" in done.output
    assert np.load("keep.npy").tolist() == keep.tolist()
    done = run("curate", "scores.npy", "--drop", "4", "--train", "data.npz", "--out", "curated.npz")
    assert f"Kept {ROWS - 4} of {ROWS}" in done.output
    done = run("curate", "scores.npy", "--features", "H.npy", "--labels", "y.npy", "--out", "again.npz")
    assert done.exit_code == 0, done.output
    done = run("score", "--train", "curated.npz", "--head", "head.safetensors", *VAL)
    assert f"{ROWS - 4} samples" in done.output


def test_curate_relabels_and_reports(folder):
    y = (np.arange(ROWS) % 3 == 0).astype(np.int64)
    np.save("binary.npy", y)
    np.save("scores.npy", np.arange(ROWS) / ROWS)
    np.save("groups.npy", np.array(["a", "b"])[np.arange(ROWS) % 2])
    options = ("--labels", "binary.npy", "--groups", "groups.npy", "--report", "r.json")
    done = run("curate", "scores.npy", "--action", "relabel", "--drop", "3", *options, "--out", "new.npy")
    assert done.exit_code == 0, done.output
    assert np.load("new.npy").tolist() == [*(1 - y[:3]), *y[3:]]
    assert f"relabel: 3 of {ROWS} samples relabelled" in done.output
    assert f"New labels of {ROWS} samples: new.npy" in done.output
    table = [line.split() for line in done.output.splitlines()]
    ones = int(y.sum())
    assert [line[0] for line in table if line[0] in "01ab"] == ["0", "1", "a", "b"]
    assert next(line for line in table if line[0] == "1")[1::3] == [str(ones), str(ones + 1), "1"]
    assert json.loads((folder / "r.json").read_text())["changed"] == 3
    done = run("curate", "scores.npy", "--action", "relabel", "--train", "data.npz", "--how", "runner_up", "--out", "l.npy")
    assert "curate: expected --head, or --logits, with --how runner_up; got none" in done.stderr
    np.save("z.npy", np.random.default_rng(0).normal(size=(ROWS, 5)))
    more = ("--how", "runner_up", "--logits", "z.npy", "--out")
    done = run("curate", "scores.npy", "--action", "relabel", "--train", "data.npz", *more, "l.npz", "--drop", "0.5")
    assert done.exit_code == 0, done.output
    found = np.load("l.npz")["labels"]
    assert (found != np.load("y.npy")).tolist() == [i < ROWS // 2 for i in range(ROWS)]


@pytest.mark.parametrize("kind", ["soft", "tokens", "numbers", "bfloat16"])
def test_curate_trims_what_score_takes(kind, folder):
    """Training data whose labels are no classes are curated without telling of classes."""
    y = np.load("y.npy")
    labels = {"soft": np.eye(5)[y], "tokens": np.stack([y, y], axis=1), "numbers": y / 3}.get(kind, y)
    x = torch.from_numpy(np.load("H.npy"))
    save_file({"features": x.bfloat16() if kind == "bfloat16" else x, "labels": torch.from_numpy(labels)}, "t.safetensors")
    np.save("s.npy", np.arange(ROWS, dtype=np.float64))
    for action in ((), ("--action", "reweight")):
        for out in ("o.npz", "o.safetensors"):
            done = run("curate", "s.npy", "--train", "t.safetensors", *action, "--out", out)
            assert done.exit_code == 0, done.output
            assert ("class " in done.output) == (kind == "bfloat16")
    assert np.load("o.npz")["labels"].tolist() == labels.tolist()
    if kind != "bfloat16":
        done = run("curate", "s.npy", "--train", "t.safetensors", "--out", "o.npz", "--by-class")
        assert done.exit_code == (0 if kind == "numbers" else 2)


def test_curate_takes_one_query_or_combines_all(folder):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(ROWS, 2)))
    both = ipfast.Scores(values, "ip", "head", "cpp", queries=("u", "f"), layers=("fc",), by_layer=values[:, None])
    both.save("both.safetensors")
    both.only("u").save("u.npy")
    np.save("f.npy", values[:, 1].numpy())
    for given, expected in (
        (("both.safetensors", "--query", "f"), values[:, 1]),
        (("both.safetensors", "--query", "1"), values[:, 1]),
        (("both.safetensors", "--combine", "zsum"), ipfast.curate.combine(both, "zsum")),
        (("u.npy", "both.safetensors", "--query", "f", "--combine", "rank"), ipfast.curate.combine(both)),
    ):
        done = run("curate", *given, "--drop", "9", "--out", "k.npy")
        assert done.exit_code == 0, done.output
        assert np.load("k.npy").tolist() == ipfast.curate.trim(expected, 9).tolist()


@pytest.mark.parametrize("data", [("--train", "data.npz"), ("--features", "H.npy", "--labels", "y.npy")], ids=["one", "pair"])
@pytest.mark.parametrize("how", ["runner_up", "rdia_soft", "ip_relabel"])
def test_curate_relabels_at_a_head(how, data, folder):
    """From files alone: the logits are those of the head, the scores of other labels those of scoring with each label."""
    problem, scores = linear_problem(), truth()
    scores.save("scores.npy")
    val = VAL if how == "ip_relabel" else ()
    options = ("--action", "relabel", "--how", how, "--drop", "0.3", *data, "--head", "head.safetensors", *val)
    done = run("curate", "scores.npy", *options, "--out", "new.npy")
    assert done.exit_code == 0, done.output
    found, rows = torch.from_numpy(np.load("new.npy")), scores.lowest(0.3)
    if how == "rdia_soft":
        expected = ipfast.curate.relabel(scores, 0.3, problem.y, how=how, logits=problem.model(problem.x).detach())
        assert_relative(found, expected, FLOAT64_RELATIVE)
        return
    kept = torch.ones(ROWS, dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(found[kept], problem.y[kept])
    values = problem.model(problem.x).detach()
    if how == "ip_relabel":
        under = [ipfast.score(problem.model, (problem.x, torch.full_like(problem.y, c)), problem.val).values for c in range(5)]
        values = torch.stack(under, dim=1)
    for row in rows.tolist():
        others = [c for c in range(5) if c != int(problem.y[row])]
        assert int(found[row]) == max(others, key=lambda c: float(values[row, c]))


def test_curate_relabels_by_a_stored_query_and_at_a_head_of_one_output(folder):
    problem, scores = linear_problem(), truth()
    scores.save("scores.npy")
    ipfast.query(problem.model, problem.val).save("query.safetensors")
    relabel = ("curate", "scores.npy", "--action", "relabel", "--how", "ip_relabel", "--drop", "0.3")
    done = run(*relabel, "--train", "data.npz", "--stored-query", "query.safetensors", "--out", "stored.npy")
    assert done.exit_code == 0, done.output
    run(*relabel, "--train", "data.npz", "--head", "head.safetensors", *VAL, "--out", "made.npy")
    assert np.load("stored.npy").tolist() == np.load("made.npy").tolist()
    y = (problem.y > 2).long()
    np.save("y.npy", y.numpy())
    np.savez("val.npz", features=problem.x_val.numpy(), labels=(problem.y_val > 2).numpy().astype(np.int64))
    save_file({"weight": torch.ones(1, 12, dtype=torch.float64)}, "one.safetensors")
    at = ("--features", "H.npy", "--labels", "y.npy", "--head", "one.safetensors", *VAL, "--loss", "bce_with_logits")
    done = run(*relabel, *at, "--out", "binary.npy")
    assert done.exit_code == 0, done.output
    assert np.load("binary.npy").tolist() == ipfast.curate.relabel(scores, 0.3, y).tolist()


WRITES_OVER = {
    "scores": (("curate", "s.npy", "--out", "s.npy"), "--out to be another file than scores"),
    "scores_by_another_name": (("curate", "s.npy", "--out", "sub/../s.npy"), "--out to be another file than scores"),
    "scores_by_a_link": (("curate", "s.npy", "--out", "link.npy"), "--out to be another file than scores"),
    "one_of_several": (("curate", "s.npy", "y.npy", "--out", "y.npy"), "--out to be another file than scores"),
    "train": (("curate", "s.npy", "--train", "data.npz", "--out", "data.npz"), "--out to be another file than --train"),
    "labels": (
        ("curate", "s.npy", "--labels", "y.npy", "--action", "relabel", "--out", "y.npy"),
        "--out to be another file than --labels",
    ),
    "features": (
        ("curate", "s.npy", "--features", "H.npy", "--labels", "y.npy", "--out", "H.npy"),
        "--out to be another file than --features",
    ),
    "label_scores": (("curate", "s.npy", "--label-scores", "y.npy", "--out", "y.npy"), "another file than --label-scores"),
    "report": (("curate", "s.npy", "--report", "s.npy", "--out", "k.npy"), "--report to be another file than scores"),
    "each_other": (("curate", "s.npy", "--report", "k.npy", "--out", "k.npy"), "--report to be another file than --out"),
    "score_labels": ((*PAIR, *VAL, "--out", "y.npy"), "--out to be another file than --labels"),
    "score_head": ((*ONE, *VAL, "--out", "head.safetensors"), "--out to be another file than --head"),
    "score_groups": ((*ONE, *VAL, "--groups", "y.npy", "--out", "y.npy"), "--out to be another file than --groups"),
}


@pytest.mark.parametrize("case", WRITES_OVER)
def test_no_command_writes_over_what_it_reads(case, folder):
    np.save("s.npy", np.arange(ROWS) / ROWS)
    (folder / "sub").mkdir()
    (folder / "link.npy").symlink_to("s.npy")
    before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    arguments, message = WRITES_OVER[case]
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"ipfast: {arguments[0]}: expected ")
    assert message in done.stderr
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_curate_by_class_and_of_several_objectives(folder):
    one, other = np.arange(ROWS) / ROWS, np.random.default_rng(0).normal(size=ROWS)
    np.save("utility.npy", one)
    np.save("fairness.npy", other)
    y = np.load("y.npy")
    done = run("curate", "utility.npy", "--by-class", "--labels", "y.npy", "--drop", "0.2", "--out", "keep.npy")
    assert done.exit_code == 0, done.output
    assert np.load("keep.npy").tolist() == ipfast.curate.trim(one, 0.2, within=y).tolist()
    again = run("curate", "utility.npy", "--by-class", "--train", "data.npz", "--drop", "0.2", "--out", "keep.npz")
    assert again.exit_code == 0, again.output
    assert np.load("keep.npz")["index"].tolist() == np.load("keep.npy").tolist()
    for how in ("rank", "union", "zsum"):
        done = run("curate", "utility.npy", "fairness.npy", "--combine", how, "--drop", "0.2", "--out", "keep.npy")
        assert done.exit_code == 0, done.output
        assert np.load("keep.npy").tolist() == ipfast.curate.trim(ipfast.curate.combine([one, other], how), 0.2).tolist()
    several = ("curate", "utility.npy", "fairness.npy", "--combine", "rank")
    done = run(*several, "--action", "reweight", "--clip", "2", "--out", "w.npy")
    assert done.exit_code == 0, done.output
    assert np.load("w.npy").tolist() == ipfast.curate.reweight(ipfast.curate.combine([one, other]), clip=2.0).tolist()


def test_curate_joins_shards(folder):
    whole = truth()
    for number, rows in enumerate((slice(None, 11), slice(11, 20), slice(20, None))):
        problem = linear_problem()
        np.savez(f"shard{number}.npz", features=problem.x.numpy()[rows], labels=problem.y.numpy()[rows])
        np.save("ids.npy", np.arange(ROWS)[rows])
        given = ("--train", f"shard{number}.npz", "--head", "head.safetensors", *VAL, "--ids", "ids.npy")
        assert run("score", *given, "--out", f"s{number}.safetensors").exit_code == 0
    shards = [f"s{number}.safetensors" for number in range(3)]
    done = run("curate", *shards, "--concat", "--drop", "4", "--train", "data.npz", "--out", "k.npz")
    assert done.exit_code == 0, done.output
    assert np.load("k.npz")["index"].tolist() == ipfast.curate.trim(whole, 4).tolist()
    done = run("curate", shards[0], shards[1], shards[0], "--concat", "--out", "k.npy")
    assert (done.exit_code, "expected each file of scores once" in done.stderr) == (2, True)


def test_queries_in_shards_are_joined_and_then_combined(folder):
    parts = [ipfast.Scores(torch.randn(n, 2), "ip", "head", "cpp", queries=("u", "f")) for n in (5, 9)]
    for number, each in enumerate(parts):
        each.save(f"s{number}.parquet")
    whole = ipfast.Scores.concat(parts)
    for options, expected in (
        (("--combine", "union"), ipfast.curate.combine(whole, "union")),
        (("--query", "f"), whole.only("f")),
    ):
        done = run("curate", "s0.parquet", "s1.parquet", "--concat", *options, "--drop", "3", "--out", "k.npy")
        assert done.exit_code == 0, done.output
        assert np.load("k.npy").tolist() == ipfast.curate.trim(expected, 3).tolist()


@pytest.mark.parametrize("form", ["npy", "txt", "numbers"])
def test_score_takes_ids(form, folder):
    names = [f"größe {i}" for i in range(ROWS)] if form != "numbers" else list(range(3, ROWS + 3))
    file = folder / ("ids.npy" if form == "npy" else "ids.txt")
    if form == "npy":
        np.save(file, np.array(names))
    else:
        file.write_text("\n".join(map(str, names)) + "\n", encoding="utf-8")
    done = run(*ONE, *VAL, "--ids", file, "--out", "s.safetensors")
    assert done.exit_code == 0, done.output
    assert ipfast.Scores.load("s.safetensors").ids.tolist() == names
    problem = linear_problem()
    assert ipfast.score(problem.model, problem.train, problem.val, ids=file).ids.tolist() == names


def test_curate_one_of_several_queries(folder):
    problem = linear_problem()
    half = len(problem.x_val) // 2
    sets = {"a": (problem.x_val[:half], problem.y_val[:half]), "b": (problem.x_val[half:], problem.y_val[half:])}
    scores = ipfast.score(problem.model, problem.train, sets, out=folder / "s.safetensors")
    for name, given in (("a", "a"), ("b", "1")):
        done = run("curate", "s.safetensors", "--query", given, "--drop", "5", "--out", "keep.npy")
        assert done.exit_code == 0, done.output
        assert np.load("keep.npy").tolist() == ipfast.curate.trim(scores, 5, query=name).tolist()


RUNNER_UP = ("--how", "runner_up", "--head", "no.npz")
RELABEL = ("curate", "s.npy", "--out", "k.npy", "--action", "relabel", "--labels", "three.npy")
BAD = {
    "no_data": (("score", "--head", "head.safetensors", *VAL), "score: expected either --train data.npz .* or both --features"),
    "half_a_pair": (("score", "--features", "H.npy", "--head", "head.safetensors", *VAL), "expected either --train"),
    "both": ((*PAIR, *VAL, "--train", "data.npz"), "expected either --train"),
    "no_val": (ONE, "score: expected val, .*; got None"),
    "superfluous_val": ((*ONE, *VAL, "--method", "self_tracin"), "expected no val for method 'self_tracin'"),
    "no_head": (
        ("score", "--train", "data.npz", "--head", "none.npz", *VAL),
        "expected head to be a file; 'none.npz' does not exist",
    ),
    "method": ((*ONE, *VAL, "--method", "selftracin"), "Did you mean 'self_tracin'"),
    "loss": ((*ONE, *VAL, "--loss", "ce"), "expected loss to be one of .*; got 'ce'"),
    "backend": ((*ONE, *VAL, "--backend", "cp"), "Did you mean 'cpp'"),
    "device": ((*ONE, *VAL, "--device", "gpu"), "expected device to be one of torch"),
    "impact": ((*ONE, *VAL, "--impact", "parity"), "expected impact to be one of"),
    "impact_groups": ((*ONE, *VAL, "--impact", "equal_opportunity"), "expected --groups with --impact equal_opportunity"),
    "impact_pairs": (
        (*ONE, *VAL, "--impact", "adversarial", "--pairs", "H.npy"),
        "expected --pairs with --impact counterfactual only; got 'adversarial'",
    ),
    "impact_option": (
        (*ONE, *VAL, "--impact", "adversarial", "--impact-option", "gama=2"),
        "expected --impact-option NAME=VALUE, each name once; adversarial has gamma=1.3; got 'gama=2'",
    ),
    "impact_no_value": ((*ONE, *VAL, "--impact", "adversarial", "--impact-option", "gamma"), "NAME=VALUE.*; got 'gamma'"),
    "impact_twice": (
        (*ONE, *VAL, "--impact", "adversarial", "--impact-option", "gamma=2", "--impact-option", "gamma=3"),
        "each name once; .*; got 'gamma=3'",
    ),
    "impact_number": (
        (*ONE, *VAL, "--impact", "adversarial", "--impact-option", "gamma=two"),
        "expected gamma to be a number above 1; got str",
    ),
    "impact_bound": ((*ONE, *VAL, "--impact", "adversarial", "--impact-option", "gamma=0.5"), "expected gamma to be above 1"),
    "impact_switch": (
        (*ONE, *VAL, "--impact", "demographic_parity", "--groups", "y.npy", "--impact-option", "signed=1"),
        "expected signed to be True or False; got int",
    ),
    "method_option": (
        (*ONE, *VAL, "--method", "ip_ensemble", "--method-option", "p=0.1"),
        "expected --method-option NAME=VALUE, each name once; ip_ensemble has members=5, rate=0.01, .*; got 'p=0.1'",
    ),
    "method_without": ((*ONE, *VAL, "--method-option", "seed=1"), "ip has .*none; got 'seed=1'"),
    "method_bound": ((*ONE, *VAL, "--method", "ip_ensemble", "--method-option", "rate=2"), "expected rate"),
    "method_name": ((*ONE, *VAL, "--method", "ensemble", "--method-option", "rate=0.2"), "Did you mean 'ip_ensemble'"),
    "loss_option": ((*ONE, "--method", "loss", "--method-option", "seed=1"), "loss has none; got 'seed=1'"),
    "impact_without": ((*ONE, *VAL, "--impact-option", "gamma=2"), "utility has none; got 'gamma=2'"),
    "impact_rows": (
        (*ONE, *VAL, "--impact", "counterfactual", "--pairs", "H.npy"),
        "expected pairs of the 11 samples of val; got 29",
    ),
    "ending": ((*ONE, *VAL, "--out", "s.txt"), r"expected out to end in one of .*; got 's\.txt'"),
    "query_train": (
        (*QUERY, "--out", "q.safetensors", "--method", "exact"),
        "query: expected train, the training data",
    ),
    "query_ending": ((*QUERY, "--out", "q.npz"), "query: expected out to end in one of .safetensors; got 'q.npz'"),
    "query_over_val": ((*QUERY, "--out", "val.npz"), "query: expected --out to be another file than --val"),
    "query_groups": (
        (*QUERY, "--out", "q.safetensors", "--groups", "y.npy"),
        "query: expected --groups with --impact",
    ),
    "query_nothing": (
        (*QUERY, "--out", "q.safetensors", "--method", "random"),
        "query: expected no val for method 'random'",
    ),
    "stored_and_val": ((*ONE, *VAL, "--stored-query", "q.safetensors"), "expected --val or --stored-query; got both"),
    "stored_and_method": ((*ONE, "--stored-query", "head.safetensors"), "expected a file written by ipfast query"),
    "curate_infinite": (("curate", "s.npy", "--out", "k.npy", "--drop", "inf"), "expected a share between 0 and 1; got inf"),
    "curate_nan": (("curate", "s.npy", "--out", "k.npy", "--drop", "nan"), "expected a share between 0 and 1; got nan"),
    "curate_by_class": (
        ("curate", "s.npy", "--out", "k.npy", "--by-class", "--labels", "y.npy"),
        "curate: expected labels to be 3 numbers",
    ),
    "curate_reweight_by_class": (
        ("curate", "s.npy", "--out", "k.npy", "--action", "reweight", "--by-class", "--labels", "y.npy"),
        "expected no --by-class with reweight",
    ),
    "curate_groups": (("curate", "s.npy", "--out", "k.npy", "--groups", "y.npy"), "curate: expected groups to be 3 numbers"),
    "curate_no_head": ((*RELABEL, "--how", "rdia_soft"), "expected --head, or --logits, with --how rdia_soft; got none"),
    "curate_no_val": (
        (*RELABEL[:-2], "--how", "ip_relabel", "--head", "head.safetensors", "--train", "data.npz"),
        "expected --head and --val, or --stored-query, or --label-scores, with --how ip_relabel; got --head",
    ),
    "curate_two_ways": ((*RELABEL, "--how", "runner_up", "--head", "h.npz", "--logits", "z.npy"), "got --head and --logits"),
    "curate_loss": (
        (*RELABEL, "--how", "ip_relabel", "--loss", "mse", "--stored-query", "q.safetensors"),
        "got --stored-query and --loss|got --loss and --stored-query",
    ),
    "curate_no_features": (
        (*RELABEL, "--how", "runner_up", "--head", "head.safetensors"),
        "expected --train data.npz, .* with --head, which is applied to them; got none",
    ),
    "curate_superfluous_head": (
        ("curate", "s.npy", "--out", "k.npy", "--head", "head.safetensors"),
        "expected --head with --action relabel --how runner_up or rdia_soft or ip_relabel only; got 'trim'",
    ),
    "curate_superfluous_val": (
        (*RELABEL, "--how", "runner_up", *VAL),
        "expected --val with --action relabel --how ip_relabel only; got 'runner_up'",
    ),
    "curate_how": ((*RELABEL, "--how", "runnerup"), "Did you mean 'runner_up'"),
    "curate_out_before_logits": (
        ("curate", "s.npy", "--out", "k.txt", "--action", "relabel", *RUNNER_UP, "--train", "no.npz"),
        "expected out to end in one of .*; got 'k.txt'",
    ),
    "curate_labels_before_logits": (
        ("curate", "s.npy", "--out", "k.npy", "--action", "relabel", *RUNNER_UP, "--train", "data.npz"),
        r"expected labels of shape \[3\], one class for each scored sample",
    ),
    "curate_features_before_logits": (
        (*RELABEL, *RUNNER_UP, "--features", "H.npy"),
        f"expected features of the 3 scored samples; got {ROWS}",
    ),
    "curate_count": (("curate", "s.npy", "--out", "k.npy", "--drop", "4"), "expected a count between 0 and 3; got 4"),
    "curate_share": (("curate", "s.npy", "--out", "k.npy", "--drop", "1.5"), "expected a share between 0 and 1; got 1.5"),
    "curate_all": (("curate", "s.npy", "--out", "k.npy", "--drop", "1.0"), "expected a share between 0 and 1; got 1"),
    "curate_drop": (("curate", "s.npy", "--out", "k.npy", "--drop", "5%"), "expected --drop to be a share .*; got '5%'"),
    "curate_no_query": (("curate", "s.npy", "--out", "k.npy", "--query", "a"), "expected no query for scores of a single one"),
    "curate_data": (("curate", "s.npy", "--out", "k.npz"), "expected the training data to write 'k.npz'"),
    "curate_action": (("curate", "s.npy", "--out", "k.npy", "--action", "relable"), "Did you mean 'relabel'"),
    "curate_no_labels": (("curate", "s.npy", "--out", "k.npy", "--action", "relabel"), "expected labels with 'relabel'"),
    "curate_no_classes": (("curate", "s.npy", "--out", "k.npy", "--by-class"), "expected --labels or --train with --by-class"),
    "curate_reweight_drop": (
        ("curate", "s.npy", "--out", "k.npy", "--action", "reweight", "--drop", "0.1"),
        "expected no --drop with reweight",
    ),
    "curate_one_objective": (("curate", "s.npy", "--out", "k.npy", "--combine", "zsum"), "expected several files of scores"),
    "curate_several": (
        ("curate", "s.npy", "three.npy", "--out", "k.npy"),
        "expected --combine rank, union or zsum, if .* or --concat, if .* in this order; got 2 files and neither",
    ),
    "curate_unlike_shards": (
        ("curate", "s.npy", "wide.csv", "--concat", "--out", "k.npy"),
        r"Scores.concat: .*; queries of part 0 \(s.npy\): none, of part 1 \(wide.csv\): a, b",
    ),
    "ids_rows": ((*ONE, *VAL, "--ids", "three.npy"), f"expected ids to be {ROWS} numbers or strings, .*; got shape .3."),
    "ids_missing": ((*ONE, *VAL, "--ids", "no.txt"), "expected ids to be a file; 'no.txt' does not exist"),
    "ids_over": ((*ONE, *VAL, "--ids", "s.npy", "--out", "s.npy"), "expected --out to be another file than --ids"),
    "curate_twice": (("curate", "s.npy", "s.npy", "--out", "k.npy"), "expected each file of scores once"),
    "curate_query": (("curate", "s.npy", "--out", "k.npy", "--query", "cats"), "expected no query for scores of a single one"),
    "curate_report": (("curate", "s.npy", "--out", "k.npy", "--report", "r.txt"), "expected report to end in one of .json"),
    "curate_labels": (("curate", "s.npy", "--out", "k.npy", "--labels", "y.npy"), "expected labels to be 3 numbers or strings"),
    "curate_missing": (("curate", "none.npy", "--out", "k.npy"), "expected path to be a file; 'none.npy' does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case, folder):
    np.save("s.npy", np.arange(3.0))
    np.save("three.npy", [0, 1, 1])
    (folder / "wide.csv").write_text("index,score a,score b\n0,1.0,2.0\n")
    before = sorted(folder.iterdir())
    arguments, message = BAD[case]
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ipfast: ")
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_row_that_is_not_finite_is_named_and_nothing_is_written(folder):
    h = np.load("H.npy")
    h[7, 2] = np.nan
    np.save("H.npy", h)
    done = run(*PAIR, *VAL, "--out", "s.npy")
    assert done.exit_code == 2
    assert "got nan at row 7, column 2" in done.stderr
    assert not (folder / "s.npy").exists()


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(folder):
    done = run(*ONE, "--val", "data.npz")
    assert done.exit_code == 0
    assert done.stderr.startswith("ipfast: warning: score: val is the training data itself")
    assert len(done.stderr.splitlines()) == 1


def test_a_defect_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(ipfast, "score", lambda *_, **__: 1 / 0)
    assert isinstance(run(*ONE, *VAL).exception, ZeroDivisionError)


@pytest.mark.parametrize("command", ["score", "query", "curate", "doctor", "demo"])
def test_help_says_what_a_command_does(command):
    assert command in run("--help").output
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_help_names_every_option_and_an_example():
    text = flat(run("score", "--help").output)
    assert "Example: ipfast score --features H.npy --labels y.npy --head head.safetensors --val val.npz" in text
    for option in (
        "--features",
        "--labels",
        "--head",
        "--val",
        "--train",
        "--method",
        "--loss",
        "--backend",
        "--out",
        "--rows",
    ):
        assert option in text


def test_an_unknown_command_offers_the_nearest():
    done = run("scor")
    assert done.exit_code == 2
    assert "score" in done.stderr


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    assert run("--version").output.strip() == ipfast.__version__ == version("ipfast")


def test_the_example_of_the_help_in_a_real_process(folder):
    """python -m ipfast and the installed command are the same program."""
    arguments = [*PAIR, *VAL, "--out", "scores.npy"]
    done = subprocess.run([sys.executable, "-m", "ipfast", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load("scores.npy").tolist() == truth().values.tolist()
    done = subprocess.run([sys.executable, "-m", "ipfast", *ONE], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ipfast: score: expected val")


def test_tokens_are_scored_and_the_lowest_are_shown(tmp_path, monkeypatch):
    problem = token_problem()
    monkeypatch.chdir(tmp_path)
    for name, (x, y) in (("data", problem.train), ("val", problem.val)):
        np.savez(f"{name}.npz", features=x.numpy(), labels=y.numpy())
    save_file({name: value.detach() for name, value in problem.head.state_dict().items()}, "head.safetensors")
    for tokens in ("mean", "sum", "each"):
        done = run(*ONE, *VAL, "--tokens", tokens, "--rows", 3, "--out", "scores.safetensors")
        assert done.exit_code == 0, done.output
        scores = ipfast.score(problem.head, problem.train, problem.val, tokens=tokens)
        assert torch.equal(ipfast.Scores.load("scores.safetensors").values, scores.values)
    values, places = scores.values[scores.counted], scores.counted.nonzero()
    rows = [line.split() for line in done.output.split("most detrimental first):")[1].splitlines()[2:5]]
    lowest = values.argsort()[:3]
    assert [[int(row), int(token)] for row, token, _ in rows] == places[lowest].tolist()
    assert [score for _, _, score in rows] == [f"{float(value):.5g}" for value in values[lowest]]


def test_scores_of_several_queries_are_summed_up_one_by_one(folder):
    problem = linear_problem()
    several = {"cats": problem.val, "dogs": (problem.x_val + 1, problem.y_val)}
    ipfast.query(problem.model, several, out="query.safetensors")
    done = run(*ONE, "--stored-query", "query.safetensors", "--rows", 1, "--out", "scores.csv")
    assert done.exit_code == 0, done.output
    scores = ipfast.Scores.load("scores.csv")
    for number, name in enumerate(("cats", "dogs")):
        part = done.output.split(f"Query {name}:")[1]
        assert part.splitlines()[1].startswith(f"{int((scores.values[:, number] < 0).sum())} negative;")
        assert int(part.splitlines()[4].split()[0]) == int(scores.values[:, number].argmin())


def test_tokens_of_which_none_counts(tmp_path, monkeypatch):
    problem = token_problem()
    monkeypatch.chdir(tmp_path)
    np.savez("val.npz", features=problem.val[0].numpy(), labels=problem.val[1].numpy())
    np.savez("data.npz", features=problem.train[0].numpy(), labels=np.full(problem.y.shape, -100))
    save_file({name: value.detach() for name, value in problem.head.state_dict().items()}, "head.safetensors")
    done = run(*ONE, *VAL, "--tokens", "each")
    assert done.exit_code == 0, done.output
    assert "No token counts" in done.output


@pytest.mark.parametrize("command", ["score", "query"])
def test_help_names_every_method_that_files_can_tell(command):
    """All but those whose points are a training run's, which need Python; a query is of methods with val."""
    told = re.findall(r"\w+", flat(run(command, "--help").output).split("--method ")[1].split("[default: ip]")[0])
    for name in ipfast.methods.METHODS:
        method = ipfast.methods.METHODS.get("test", name)
        by_files = name not in ("tracin", "gex", "tda")
        wanted = by_files and (command == "score" or (method.needs_val and not isinstance(method, ipfast.methods.Control)))
        assert (name in told) == wanted, name
