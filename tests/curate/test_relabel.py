"""Relabel: the same samples that trim drops, under another label."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from problems import linear_problem, network_problem
from tolerances import FLOAT64_RELATIVE, assert_relative, assert_relative_to_largest
from torch import nn

import ipfast
from ipfast.curate import head_logits, label_scores, relabel, trim

S = torch.tensor([0.3, -1.0, 0.2, -0.5, 0.1])
Y = torch.tensor([2, 0, 1, 1, 0])
Z = torch.tensor([[0.1, 0.2, 0.3], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [2.0, 9.0, 1.0], [1.0, 2.0, 3.0]], dtype=torch.float64)


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1)), min_size=1, max_size=30), st.data())
def test_flipping_twice_is_the_identity(samples, data):
    scores = torch.tensor([float(s) for s, _ in samples])
    labels = torch.tensor([y for _, y in samples])
    k = data.draw(st.integers(0, len(samples)))
    once = relabel(scores, k, labels)
    assert relabel(scores, k, once).tolist() == labels.tolist()
    changed = (once != labels).nonzero()[:, 0].tolist()
    assert changed == sorted(set(range(len(samples))) - set(trim(scores, k).tolist()))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, 1, 0, 1]),
        torch.tensor([0.0, 1, 1, 0, 1]),
        torch.tensor([[0.0], [1], [1], [0], [1]]),
        torch.tensor([False, True, True, False, True]),
        torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8),
    ],
)
def test_labels_keep_their_shape_and_dtype_and_are_not_changed(labels):
    before = labels.clone()
    got = relabel(S, 2, labels)
    assert torch.equal(labels, before)
    assert (got.dtype, got.shape) == (labels.dtype, labels.shape)
    assert got.flatten().tolist() == [0, 0, 1, 1, 1]


def test_labels_come_from_arrays_and_files(tmp_path):
    y = np.array([0, 1, 1, 0, 1])
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "data.npz", features=np.zeros((5, 1)), labels=y)
    for labels in (y, y.tolist(), tmp_path / "y.npy", str(tmp_path / "data.npz")):
        assert relabel(S, 2, labels).tolist() == [0, 0, 1, 1, 1]
    assert y.tolist() == [0, 1, 1, 0, 1]


def test_the_runner_up_is_never_the_label():
    # row 1: label 0 is predicted, so the second; row 3: label 1 is predicted, so the second
    assert relabel(S, 2, Y, how="runner_up", logits=Z).tolist() == [2, 2, 1, 0, 0]
    # row 4: label 0 is not predicted, so the prediction; ties to the first class
    assert relabel(S, 5, Y, how="runner_up", logits=Z.softmax(dim=1)).tolist() == [1, 2, 0, 0, 2]
    binary = torch.tensor([0, 1, 1, 0, 1])
    for logits in (torch.randn(5), torch.randn(5, 1), torch.randn(5, 2)):
        assert relabel(S, 3, binary, how="runner_up", logits=logits).tolist() == relabel(S, 3, binary).tolist()


def test_soft_labels_are_those_of_the_formula():
    got = relabel(S, 2, Y, how="rdia_soft", logits=Z)
    p = Z.softmax(dim=1)
    for row in (1, 3):
        m = int(Y[row])
        expected = torch.log((1 - p[row, m]) ** (1 / 2)) / torch.log(p[row])
        expected[m] = 0
        assert_relative(got[row], expected, FLOAT64_RELATIVE)
        value = F.cross_entropy(Z[row : row + 1], got[row : row + 1])
        assert_relative(value, -torch.log(1 - p[row, m]), FLOAT64_RELATIVE)
        assert_relative(ipfast.losses.CrossEntropy().value(Z[row : row + 1], got[row : row + 1])[0], value, FLOAT64_RELATIVE)
    for row in (0, 2, 4):
        assert got[row].tolist() == F.one_hot(Y, 3)[row].tolist()


def test_soft_labels_of_two_classes_are_the_flip():
    torch.manual_seed(0)
    z, y = 8 * torch.randn(40, 2, dtype=torch.float64), torch.randint(2, (40,))
    got = relabel(torch.randn(40), 40, y, how="rdia_soft", logits=z)
    assert_relative(got + 1, F.one_hot(1 - y, 2).double() + 1, FLOAT64_RELATIVE)


@pytest.mark.parametrize("far", [30.0, 800.0, 1e6])
def test_soft_labels_of_confident_samples_are_precise(far):
    """Where 1 − p is no longer seen in float64, its logarithm still is: −far."""
    z = torch.tensor([[far, 0.0, 0.0]], dtype=torch.float64)
    right = relabel([0.0], 1, [0], how="rdia_soft", logits=z)  # p_y near 1: ln(1 − p_y) = ln 2 − far, ln p_c = −far
    assert_relative(
        right, torch.tensor([[0.0, (far - np.log(2)) / (2 * far), (far - np.log(2)) / (2 * far)]]), FLOAT64_RELATIVE
    )
    wrong = relabel([0.0], 1, [1], how="rdia_soft", logits=z)  # p_y near 0: ln(1 − p_y) = −e^−far, ln p_0 = −2e^−far
    assert_relative(wrong[0, 0], torch.tensor(0.25 if far < 700 else 0.5), FLOAT64_RELATIVE)
    assert wrong[0, 2] < FLOAT64_RELATIVE


@pytest.mark.parametrize("labels", [[-1, 1, 1, -1, 1], [3.0, 7.0, 7.0, 3.0, 3.0]])
def test_two_classes_of_any_number_are_flipped(labels):
    low, high = sorted(set(labels))
    new = relabel(S, 2, torch.tensor(labels))
    assert new.tolist() == [{low: high, high: low}[y] if row in (1, 3) else y for row, y in enumerate(labels)]


@pytest.mark.parametrize(
    ("dtype", "predicted", "classes"),
    [(torch.int8, 200, 300), (torch.float16, 2049, 2100), (torch.bool, 2, 3), (torch.uint8, 256, 300)],
)
def test_a_class_that_the_labels_cannot_hold_is_refused(dtype, predicted, classes):
    logits = torch.zeros(5, classes)
    logits[1, predicted] = 1
    with pytest.raises(ipfast.InputError, match=f"expected labels of a dtype that holds class {predicted}; got {dtype}"):
        relabel(S, 1, torch.tensor([0, 1, 1, 0, 1]).to(dtype), how="runner_up", logits=logits)
    logits[1, 0] = 2
    assert relabel(S, 1, torch.tensor([0, 1, 1, 0, 1]).to(dtype), how="runner_up", logits=logits).dtype == dtype


def test_one_output_stands_for_two_classes():
    z, y = torch.randn(5, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    got = relabel(S, 5, y, how="rdia_soft", logits=z)
    two = relabel(S, 5, y, how="rdia_soft", logits=torch.stack([torch.zeros_like(z), z], dim=1))
    assert torch.equal(got, two)


# By the scores of other labels


@pytest.mark.parametrize("method", ["ip", "ip_ensemble"])
@pytest.mark.parametrize("bias", [True, False])
def test_label_scores_are_scores_under_other_labels(method, bias):
    """Scoring the same features with each label in turn gives the same differences, and the best label."""
    problem = linear_problem()
    method = ipfast.Method(points=ipfast.Dropout(3, 0.2)) if method == "ip_ensemble" else method
    query = ipfast.query(problem.model, problem.val, method=method, include_bias=bias)
    got = label_scores(query, problem.x)
    each = torch.stack(
        [ipfast.score(problem.model, (problem.x, torch.full_like(problem.y, c)), query).values for c in range(5)], dim=1
    )
    assert_relative(got - got[:, :1] + 1, each - each[:, :1] + 1, FLOAT64_RELATIVE)
    scores = ipfast.score(problem.model, problem.train, query)
    new = relabel(scores, 0.3, problem.y, how="ip_relabel", label_scores=got)
    rows = scores.lowest(0.3)
    assert (new[rows] != problem.y[rows]).all()
    for row in rows.tolist():
        others = [(float(each[row, c]), -c) for c in range(5) if c != int(problem.y[row])]
        assert int(new[row]) == -max(others)[1]


def test_label_scores_of_one_output():
    torch.manual_seed(0)
    head, x = nn.Linear(4, 1, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    query = ipfast.query(head, (x, torch.ones(9)), loss="bce_with_logits")
    got = label_scores(query, x)
    each = [ipfast.score(head, (x, torch.full((9,), float(c))), query).values for c in (0, 1)]
    assert_relative(got[:, 1] - got[:, 0], each[1] - each[0], FLOAT64_RELATIVE)


@pytest.mark.parametrize("rows", [1, 4, 29])
def test_blocks_of_rows_are_the_rows(rows, monkeypatch, tmp_path):
    """Features are read a block at a time, of a file too; the number of the row in an error is that of the file."""
    problem = linear_problem()
    query = ipfast.query(problem.model, problem.val)
    x = problem.x.numpy().copy()
    whole = head_logits(problem.model, x), label_scores(query, x)
    monkeypatch.setattr("ipfast.curate.head_outputs.BLOCK_BYTES", 4 * x.shape[1] * rows)
    np.save(tmp_path / "h.npy", x)
    for got, expected in zip(
        (head_logits(problem.model, tmp_path / "h.npy"), label_scores(query, tmp_path / "h.npy")), whole, strict=True
    ):
        assert_relative(got, expected, FLOAT64_RELATIVE)
    x[27, 0] = np.nan
    with pytest.raises(ipfast.NonFiniteError, match="head_logits: expected finite features; row 27 has NaN or infinity"):
        head_logits(problem.model, x)
    assert head_logits(problem.model, x[:0]).shape == (0, problem.model.out_features)


def test_label_scores_from_files(tmp_path):
    problem = linear_problem()
    query = ipfast.query(problem.model, problem.val)
    query.save(tmp_path / "q.safetensors")
    np.save(tmp_path / "h.npy", problem.x.numpy())
    assert torch.equal(label_scores(tmp_path / "q.safetensors", tmp_path / "h.npy"), label_scores(query, problem.x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_of_a_head_are_its_output(bias, tmp_path):
    head, x = nn.Linear(4, 3, bias=bias, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    expected = torch.stack([sum(x[:, j] * w[j] for j in range(4)) for w in head.weight.detach()], dim=1)
    expected = expected + head.bias.detach() if bias else expected
    parameters = {name: value.detach().numpy() for name, value in head.state_dict().items()}
    np.savez(tmp_path / "head.npz", **parameters)
    np.save(tmp_path / "h.npy", x.numpy())
    np.savez(tmp_path / "data.npz", features=x.numpy(), labels=np.zeros(9, np.int64))
    for model, features in ((head, x), (tmp_path / "head.npz", tmp_path / "h.npy"), (head, str(tmp_path / "data.npz"))):
        got = head_logits(model, features)
        assert_relative(got, expected, FLOAT64_RELATIVE)
        assert not got.requires_grad
    assert head_logits(head, x.float()).dtype == head_logits(head, x.numpy().astype(np.float16)).dtype == torch.float32


def test_what_has_no_logits():
    head, x = nn.Linear(4, 3), torch.ones(9, 4)
    ones = nn.Linear(4, 3)
    nn.init.ones_(ones.weight)
    with pytest.raises(
        ipfast.InputTypeError, match=r"head_logits: expected head to be an nn\.Linear, or the path of one; got ReLU"
    ):
        head_logits(nn.ReLU(), x)
    with pytest.raises(ipfast.InputError, match=r"head_logits: expected features of shape \[N, 4\].*; got \[9, 3\]"):
        head_logits(head, x[:, :3])
    with pytest.raises(ipfast.NonFiniteError, match="head_logits: expected finite features; row 0 is too large"):
        head_logits(ones, torch.full((1, 4), 3e38))
    x[2, 1] = torch.nan
    with pytest.raises(ipfast.NonFiniteError, match="head_logits: expected finite features; row 2 has NaN or infinity"):
        head_logits(head, x)
    with torch.no_grad():
        head.bias[0] = torch.inf
    with pytest.raises(ipfast.InputError, match="head_logits: expected a finite bias of the head"):
        head_logits(head, x[:2])


def test_queries_without_label_scores():
    problem, network = linear_problem(), network_problem()
    groups = torch.arange(11) % 2
    weighted = ipfast.losses.CrossEntropy(weight=torch.rand(5))
    for query, message in (
        (ipfast.query(problem.model, problem.val, val_groups=groups), "expected a query of one validation set"),
        (ipfast.query(network.model, network.val, params="all"), "expected a query of one validation set at the last layer"),
        (ipfast.query(problem.model, problem.val, loss=weighted), "got cross_entropy of 5 with weights"),
        (ipfast.query(problem.model, method="self_tracin", train=problem.train), "expected a query of one validation set"),
    ):
        with pytest.raises(ipfast.InputError, match=message):
            label_scores(query, problem.x)
    with pytest.raises(ipfast.InputTypeError, match=r"expected query to be made by ipfast\.query; got Tensor"):
        label_scores(problem.x, problem.x)
    with pytest.raises(ipfast.InputError, match=r"expected features of shape \[N, 12\], the inputs of the head; got \[29, 3\]"):
        label_scores(ipfast.query(problem.model, problem.val), problem.x[:, :3])
    for features, got in ((None, "NoneType"), ([["a"] * 12], "<U1")):
        with pytest.raises(ipfast.InputTypeError, match=f"expected features to be numbers .*; got {got}"):
            label_scores(ipfast.query(problem.model, problem.val), features)
    for wrong in (torch.nan, torch.inf):
        x = problem.x.clone()
        x[3, 1] = wrong
        with pytest.raises(ipfast.NonFiniteError, match="label_scores: expected finite features; row 3 has NaN or infinity"):
            label_scores(ipfast.query(problem.model, problem.val), x)


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (
            Y,
            {},
            ipfast.InputError,
            "expected labels of two classes, as 0 and 1, with how='flip'; got 3, as 2 at row 0.*runner_up",
        ),
        (torch.full((5,), -1), {}, ipfast.InputError, "expected labels of two classes, .*; got 1, as -1 at row 0"),
        (Y[1:], {}, ipfast.InputError, r"expected labels of shape \[5\].*; got \[4\]"),
        (Y.double() / 3, {}, ipfast.InputError, "expected labels as whole numbers.*; got 0.666667 at row 0"),
        (Y - 1, {"how": "runner_up", "logits": Z}, ipfast.InputError, r"expected labels in 0\.\.C-1; got -1 at row 1"),
        (torch.full((5,), torch.nan), {}, ipfast.InputError, "expected labels as whole numbers.*; got nan"),
        (list("abcde"), {}, ipfast.InputTypeError, "expected labels to be whole numbers, .*; got <U1"),
        (Y, {"how": "flop"}, ipfast.InputError, "expected how .* Did you mean 'flip'"),
        (Y, {"how": "runner_up"}, ipfast.InputError, "expected logits with how='runner_up'; got None"),
        (Y, {"how": "ip_relabel"}, ipfast.InputError, "expected label_scores with how='ip_relabel'; got None"),
        (Y, {"logits": Z}, ipfast.InputError, "expected no logits with how='flip'"),
        (Y, {"how": "runner_up", "logits": Z[:4]}, ipfast.InputError, r"expected logits of shape \[5, C\].*; got \[4, 3\]"),
        (
            Y,
            {"how": "runner_up", "logits": Z[:, :2]},
            ipfast.InputError,
            r"expected labels in 0\.\.1, the classes of logits; got 2 at row 0",
        ),
        (Y, {"how": "rdia_soft", "logits": Z / 0}, ipfast.InputError, "expected finite logits; row 0 has NaN"),
    ],
)
def test_what_cannot_be_relabelled(labels, options, error, message):
    with pytest.raises(error, match=f"relabel: {message}"):
        relabel(S, 2, labels, **options)


def test_smoothing_makes_less_of_the_differences_between_labels():
    problem = linear_problem()
    loss = ipfast.losses.CrossEntropy(label_smoothing=0.2)
    query = ipfast.query(problem.model, problem.val, loss=loss)
    found = ipfast.curate.label_scores(query, problem.x)
    real = [
        ipfast.score(problem.model, (problem.x, torch.full_like(problem.y, c)), query, progress=False).values
        for c in range(found.shape[1])
    ]
    real = torch.stack(real, dim=1)
    assert_relative_to_largest(found - found[:, :1], real - real[:, :1], FLOAT64_RELATIVE)
