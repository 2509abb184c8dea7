"""Errors: what they inherit, and that they speak of arguments that exist."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ipfast
from ipfast import cli, errors
from ipfast.points.masking import Masked

PACKAGE = Path(ipfast.__file__).parent
TREE = {
    "InputError": ValueError,
    "InputTypeError": TypeError,
    "MissingFileError": FileNotFoundError,
    "UnavailableError": RuntimeError,
    "NonFiniteError": ValueError,
}


@pytest.mark.parametrize("name", TREE)
def test_every_error_is_also_the_built_in_one(name):
    error = getattr(errors, name)
    assert issubclass(error, errors.IpfastError)
    assert issubclass(error, TREE[name])
    assert getattr(ipfast, name) is error


def test_every_error_is_in_the_table():
    found = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, errors.IpfastError)}
    assert found == {*TREE, "IpfastError"}


CALLABLES = [
    ipfast.score,
    ipfast.query,
    ipfast.Scorer,
    ipfast.Method,
    ipfast.Control,
    ipfast.Dropout,
    ipfast.Checkpoints,
    ipfast.ExtraSGD,
    ipfast.select_backend,
    ipfast.Query.save,
    ipfast.Scores,
    ipfast.Scores.save,
    ipfast.Scores.topk,
    ipfast.Scores.by_sequence,
    ipfast.Scores.of_layer,
    ipfast.ops.head_dot,
    ipfast.ops.head_norm,
    ipfast.ops.token_norm,
    ipfast.ops.layer_dot,
    ipfast.ops.layer_norm_sq,
    ipfast.ops.dropout_mask,
    Masked,
    ipfast.curate.trim,
    ipfast.curate.relabel,
    ipfast.curate.head_logits,
    ipfast.curate.label_scores,
    ipfast.curate.reweight,
    ipfast.curate.combine,
    ipfast.curate.report,
    ipfast.curate.apply,
    ipfast.curate.subset,
    ipfast.curate.sampler,
    ipfast.losses.BCEWithLogits,
    ipfast.Adversarial,
    ipfast.Counterfactual,
    ipfast.DemographicParity,
    ipfast.EqualOpportunity,
    cli.score,
    cli.curate,
    cli.query,
    cli.demo,
    torch.utils.data.DataLoader,
    checkpoint,
    torch.nn.BatchNorm1d,
    torch.optim.SGD,
    *(getattr(ipfast, name) for name in ("CG", "EKFAC", "Arnoldi", "DataInf", "Exact", "LiSSA", "Source", "Segments")),
]
ARGUMENTS = {name for item in CALLABLES for name in inspect.signature(item).parameters}
# Parts of data that messages name as arguments are named: features and labels of a pair, a batch that a Scorer is called with.
ARGUMENTS |= {"batch", "train features", "val features", "CIFAR-10_human.pt"}
# `ipfast experiment` tells of its arguments as they are typed.
ARGUMENTS |= {"NAME", *(f"--{name}" for name in inspect.signature(cli.experiment).parameters)}
CHECKS = {
    # functions that put one of their own arguments, a name, into a message: its position
    "check_choice": 1,
    "positive_integer": 1,
    "existing_file": 1,
    "check_output": 1,
    "open_source": 1,
    "read_npy": 1,
    "read_named": 1,
    "read_pair": 1,
    "read_scores": 1,
    "matrix": 1,
    "vector": 1,
    "tensor": 1,
}


def sources():
    for file in sorted(PACKAGE.rglob("*.py")):
        if "demo" not in file.parts:  # its messages speak of files in a folder
            yield file, ast.parse(file.read_text(encoding="utf-8"))


def raised_text(node):
    """The literal text of a raised message, with {} where values are filled in."""
    if not isinstance(node.exc, ast.Call) or not node.exc.args:
        return ""
    parts = [part for part in ast.walk(node.exc.args[0]) if isinstance(part, ast.JoinedStr | ast.Constant)]
    first = parts[0]
    pieces = first.values if isinstance(first, ast.JoinedStr) else [first]
    return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{}" for piece in pieces)


RAISED = [
    (file.relative_to(PACKAGE).as_posix(), node.lineno, raised_text(node), ast.unparse(node.exc.func))
    for file, tree in sources()
    for node in ast.walk(tree)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
]


def test_the_walk_finds_the_messages():
    assert len(RAISED) > 60
    assert any("shuffle=False" in text for _, _, text, _ in RAISED)


@pytest.mark.parametrize(("file", "line", "text", "error"), RAISED, ids=[f"{file}:{line}" for file, line, _, _ in RAISED])
def test_keywords_in_messages_are_arguments(file, line, text, error):
    """`head='fc'` or `shuffle=False` in a message is advice to pass it, so it must be possible."""
    words = set(re.findall(r"\b([a-z_]+)=(?=['\"A-Z{0-9.]|$)", text))
    assert words <= ARGUMENTS, f"{file}:{line} speaks of {sorted(words - ARGUMENTS)}"


@pytest.mark.parametrize(("file", "line", "text", "error"), RAISED, ids=[f"{file}:{line}" for file, line, _, _ in RAISED])
def test_every_message_says_what_was_expected(file, line, text, error):
    if error.removeprefix("ipfast.") in TREE:
        assert re.match(r"[\w{}.:= ',-]*: expected ", text), f"{file}:{line}: {text}"
    else:
        allowed = ("typer.Exit", "ImportError")
        inner = ("ValueError",)  # caught and told as an InputError by the function that raised it
        assert error in allowed + inner, f"{file}:{line} raises {error}"


def named_arguments():
    for file, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            position = CHECKS.get(name)
            if position is not None and len(node.args) > position and isinstance(node.args[position], ast.Constant):
                yield pytest.param(node.args[position].value, id=f"{file.name}:{node.lineno}")


@pytest.mark.parametrize("argument", list(named_arguments()))
def test_names_given_to_checks_are_arguments(argument):
    assert argument in ARGUMENTS | {"path", "bias", "weight", "the images"}


SUBJECTS = [
    (f"{file}:{line}", word)
    for file, line, text, _ in RAISED
    for word in re.findall(r"expected (?:no |a finite )?([a-z_]+) (?:to be|to name|to hold|of shape|features of shape)", text)
]


@pytest.mark.parametrize(("place", "word"), SUBJECTS, ids=[f"{place}-{word}" for place, word in SUBJECTS])
def test_the_subject_of_a_message_is_an_argument(place, word):
    nouns = {"bias", "weight", "head", "features", "labels", "values", "batches"}
    assert word in ARGUMENTS | nouns, place
