"""What every loss must hold, by autograd in float64. A new loss needs a row in TABLE and inherits all of it."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast import ops
from ipfast.losses import LOSSES, MSE, BCEWithLogits, CrossEntropy, Loss, get_loss

ROWS, CLASSES = 13, 6
W = (0.5, 2.0, 0.0, 1.25, 3.0, 0.75)
PI = (4.0, 0.25, 1.0, 0.0, 2.5, 10.0)


def hard(g):
    return torch.randint(CLASSES, (ROWS,), generator=g)


def partly_ignored(g):
    return hard(g).masked_fill(torch.arange(ROWS) % 4 == 1, -100)


def soft(g):
    """Rows that need not sum to one, among them a one-hot and a zero row."""
    t = torch.rand(ROWS, CLASSES, generator=g, dtype=torch.float64)
    t[0], t[1] = torch.eye(CLASSES, dtype=torch.float64)[2], 0
    return t


def binary(g):
    return torch.randint(2, (ROWS, CLASSES), generator=g).double()


def real(g):
    return torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64)


def tensor(vector):
    return torch.tensor(vector, dtype=torch.float64)


def torch_entropy(**options):
    return nn.CrossEntropyLoss(reduction="none", **options)


@dataclass(frozen=True)
class Row:
    """A loss, labels it takes, and what torch calls it: a function of z [B, C] and labels, [B] or one sample at a time."""

    name: str
    loss: Loss
    labels: Callable[[torch.Generator], torch.Tensor]
    torch: Callable[..., torch.Tensor]

    def __str__(self):
        return self.name


TABLE = [
    Row("cross_entropy", CrossEntropy(), hard, torch_entropy()),
    Row("ce-weight", CrossEntropy(W), hard, torch_entropy(weight=tensor(W))),
    Row("ce-smoothing", CrossEntropy(label_smoothing=0.2), hard, torch_entropy(label_smoothing=0.2)),
    Row("ce-all-smooth", CrossEntropy(label_smoothing=1), hard, torch_entropy(label_smoothing=1.0)),
    Row("ce-both", CrossEntropy(tensor(W), 0.3), hard, torch_entropy(weight=tensor(W), label_smoothing=0.3)),
    Row("ce-ignore", CrossEntropy(ignore_index=-100), partly_ignored, torch_entropy(ignore_index=-100)),
    Row("ce-ignore-class", CrossEntropy(ignore_index=2), hard, torch_entropy(ignore_index=2)),
    Row(
        "ce-everything",
        CrossEntropy(list(W), 0.1, -100),
        partly_ignored,
        torch_entropy(weight=tensor(W), label_smoothing=0.1, ignore_index=-100),
    ),
    Row("ce-soft", CrossEntropy(), soft, torch_entropy()),
    Row("ce-soft-weight", CrossEntropy(W), soft, torch_entropy(weight=tensor(W))),
    Row("ce-soft-smoothing", CrossEntropy(label_smoothing=0.2), soft, torch_entropy(label_smoothing=0.2)),
    Row("ce-soft-both", CrossEntropy(W, 0.3), soft, torch_entropy(weight=tensor(W), label_smoothing=0.3)),
    Row("bce-sum", BCEWithLogits("sum"), binary, nn.BCEWithLogitsLoss(reduction="sum")),
    Row("bce-mean", BCEWithLogits("mean"), binary, nn.BCEWithLogitsLoss()),
    Row("bce-pos", BCEWithLogits(pos_weight=PI), binary, nn.BCEWithLogitsLoss(reduction="sum", pos_weight=tensor(PI))),
    Row("bce-weight", BCEWithLogits("mean", weight=W), binary, nn.BCEWithLogitsLoss(weight=tensor(W))),
    Row(
        "bce-both",
        BCEWithLogits("mean", tensor(PI), np.array(W)),
        lambda g: torch.rand(ROWS, CLASSES, generator=g, dtype=torch.float64),
        nn.BCEWithLogitsLoss(pos_weight=tensor(PI), weight=tensor(W)),
    ),
    Row("mse-mean", MSE("mean"), real, nn.MSELoss()),
    Row("mse-sum", MSE("sum"), real, nn.MSELoss(reduction="sum")),
    Row("mse-half", MSE("half"), real, lambda z, y: nn.functional.mse_loss(z, y, reduction="sum") / 2),
]
OBJECTS = list(dict.fromkeys(row.loss for row in TABLE))


def sample(row, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return z, row.loss.prepare("test", row.labels(generator), ROWS, CLASSES)


every_row = pytest.mark.parametrize("row", TABLE, ids=str)


def test_every_loss_is_tested():
    assert {row.loss.form for row in TABLE} == set(LOSSES)
    assert all(type(row.loss) is LOSSES.get("test", row.loss.form) for row in TABLE)


@every_row
def test_value_is_torchs_loss_of_one_sample(row):
    z, y = sample(row)
    truth = torch.stack([row.torch(z[i : i + 1], y[i : i + 1]).reshape(()) for i in range(ROWS)])
    assert_relative(row.loss.value(z, y), truth, FLOAT64_RELATIVE)


@every_row
def test_residual_is_the_gradient_of_torchs_loss(row):
    z, y = sample(row)
    z.requires_grad_()
    value = sum(row.torch(z[i : i + 1], y[i : i + 1]).reshape(()) for i in range(ROWS))
    (truth,) = torch.autograd.grad(value, z)
    assert_relative(row.loss.residual(z.detach(), y), truth, FLOAT64_RELATIVE)


@every_row
def test_value_can_be_differentiated(row):
    z, y = sample(row)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(row.loss.value(z, y).sum(), z)
    assert_relative(gradient, row.loss.residual(z.detach(), y), FLOAT64_RELATIVE)


@every_row
def test_residual_keeps_its_digits_for_confident_samples(row):
    """In float32 and in float64 alike: 1 − p must not be formed by subtraction."""
    z, y = confident(row)
    truth = row.loss.residual(z.float().double(), y)
    got = row.loss.residual(z.float(), y)
    counted = truth != 0
    assert counted.any()
    assert_relative(got[counted] / truth[counted], torch.ones_like(truth[counted]), CONFIDENT_RELATIVE)
    assert (got[~counted] == 0).all()


@pytest.mark.parametrize("row", [row for row in TABLE if not row.loss.options().get("label_smoothing")], ids=str)
def test_value_keeps_its_digits_for_confident_samples(row):
    """log(1 + 1e-17) is not zero; torch's own losses say it is, so the float32 value is compared with the float64 one."""
    z, y = confident(row)
    truth, got = row.loss.value(z.float().double(), y), row.loss.value(z.float(), y)
    counted = truth != 0
    assert counted.any()
    assert_relative(got[counted] / truth[counted], torch.ones_like(truth[counted]), CONFIDENT_RELATIVE)


def confident(row):
    """Logits that are sure of the label; soft targets become one-hot, since others cannot be met."""
    z, y = sample(row)
    if row.loss.form == "mse":
        return z, (z + 1e-3 * y).float().double()
    if row.loss.form == "bce_with_logits":
        y = y.round()
        return 40 * (2 * y - 1) + z, y
    label = y.argmax(dim=1) if y.dim() == 2 else y.clamp(min=0)
    if y.dim() == 2:
        y = torch.eye(CLASSES, dtype=torch.float64)[label]
    return z.scatter(1, label[:, None], 40), y


@every_row
def test_the_operation_computes_form_times_scale(row):
    z, y = sample(row)
    loss = row.loss
    eye = torch.eye(CLASSES, dtype=torch.float64)
    g = torch.randn(CLASSES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = ops.head_dot(z, y, eye, None, g, None, loss=loss.form, scale=loss.scale(CLASSES), **loss.form_options())
    assert_relative(got, (loss.residual(z, y) * (z @ g.T)).sum(dim=1), FLOAT64_RELATIVE)
    norm = ops.head_norm(z, y, eye, None, loss=loss.form, scale=loss.scale(CLASSES) ** 2, **loss.form_options())
    assert_relative(norm, loss.residual(z, y).square().sum(dim=1) * z.square().sum(dim=1), FLOAT64_RELATIVE)


@every_row
def test_no_batch_reduction(row):
    z, y = sample(row)
    loss = row.loss
    assert torch.equal(loss.value(z, y)[3:4], loss.value(z[3:4], y[3:4]))
    assert torch.equal(loss.residual(z, y)[3:4], loss.residual(z[3:4], y[3:4]))


@every_row
def test_a_loss_is_a_value(row):
    loss = row.loss
    again = type(loss)(**json.loads(json.dumps(loss.options())))
    assert again == loss
    assert hash(again) == hash(loss)
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert sum(other == loss for other in OBJECTS) == 1


@every_row
def test_a_loss_is_found_by_name_or_given(row):
    loss = row.loss
    assert get_loss("test", loss) is loss
    assert type(get_loss("test", loss.form)) is type(loss)
    assert get_loss("test", loss.form) == type(loss)()


@every_row
def test_labels_of_another_shape_are_refused(row):
    labels = row.labels(torch.Generator().manual_seed(0))
    for wrong in (labels[:-1], labels[None], labels[..., None]):
        with pytest.raises(ipfast.IpfastError, match=r"test: expected (labels of shape|integer labels \[13\])"):
            row.loss.prepare("test", wrong, ROWS, CLASSES)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_ignored_sample_is_zero_whatever_its_logits(seed):
    row = next(row for row in TABLE if row.name == "ce-everything")
    z, y = sample(row, seed)
    z[y == -100] = torch.nan
    assert (row.loss.value(z, y)[y == -100] == 0).all()
    assert (row.loss.residual(z, y)[y == -100] == 0).all()
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(row.loss.value(z, y).sum(), z)
    assert (gradient[y == -100] == 0).all()


def test_ignored_labels_stay_what_they_are_and_others_are_checked():
    loss = CrossEntropy(ignore_index=-100)
    labels = torch.tensor([0, -100, 5])
    assert torch.equal(loss.prepare("test", labels, 3, CLASSES), labels)
    with pytest.raises(ipfast.InputError, match=r"test: expected labels in 0\.\.5 .*; got -1 at row 1"):
        loss.prepare("test", torch.tensor([0, -1, -100]), 3, CLASSES)
    with pytest.raises(ipfast.InputError, match="expected integer labels for a loss with ignore_index; got soft targets"):
        loss.prepare("test", torch.rand(3, CLASSES), 3, CLASSES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy([1, -1]), "CrossEntropy: expected weight to be finite and not negative; got -1 for class 1"),
        (lambda: CrossEntropy([1, float("nan")]), "CrossEntropy: expected weight to be finite .* got nan for class 1"),
        (lambda: CrossEntropy([[1.0]]), r"CrossEntropy: expected weight of shape \[C\]"),
        (lambda: CrossEntropy("balanced"), "CrossEntropy: expected weight to be numbers, one a class; got str"),
        (lambda: CrossEntropy(label_smoothing=1.5), "CrossEntropy: expected label_smoothing between 0 and 1.*got 1.5"),
        (lambda: CrossEntropy(label_smoothing="0.1"), "CrossEntropy: expected label_smoothing to be a number"),
        (lambda: CrossEntropy(ignore_index=-0.5), "CrossEntropy: expected ignore_index to be an integer label"),
        (lambda: BCEWithLogits(pos_weight=[-2]), "BCEWithLogits: expected pos_weight to be finite and not negative"),
        (lambda: BCEWithLogits(weight=3.0), r"BCEWithLogits: expected weight of shape \[C\].*got \[\]"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ipfast.IpfastError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "argument"),
    [
        (CrossEntropy([1, 2]), "weight"),
        (BCEWithLogits(weight=[1, 2]), "weight"),
        (BCEWithLogits(pos_weight=[1, 2]), "pos_weight"),
    ],
)
def test_factors_for_another_number_of_classes_are_refused(loss, argument):
    labels = torch.zeros(3, dtype=torch.int64) if loss.form == "cross_entropy" else torch.zeros(3, CLASSES)
    with pytest.raises(ipfast.InputError, match=f"test: expected {argument} of the loss to hold 6 numbers.*got 2"):
        loss.prepare("test", labels, 3, CLASSES)


@pytest.mark.parametrize("kind", [BCEWithLogits, MSE])
def test_an_unknown_reduction_is_refused(kind):
    with pytest.raises(ipfast.InputError, match=rf"{kind.__name__}: expected reduction to be one of .*; got 'average'"):
        kind("average")


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_class_labels_of_any_integer_dtype(kind):
    labels = torch.from_numpy(np.arange(CLASSES).astype(kind))
    assert CrossEntropy().prepare("test", labels, CLASSES, CLASSES).dtype == torch.int64


@every_row
def test_score_takes_the_object(row):
    """Scores and self-influence against autograd through torch's own loss; queries survive being written."""
    generator = torch.Generator().manual_seed(4)
    x, x_val = (torch.randn(ROWS, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y, y_val = row.labels(generator), row.labels(generator)
    head = nn.Linear(4, CLASSES, dtype=torch.float64)

    def gradients(features, labels):
        rows = []
        for i in range(ROWS):
            value = row.torch(head(features[i : i + 1]), labels[i : i + 1]).reshape(())
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(head.parameters()))]))
        return torch.stack(rows)

    each = gradients(x, y)
    got = ipfast.score(head, (x, y), (x_val, y_val), loss=row.loss, progress=False)
    assert_relative(got.values, each @ gradients(x_val, y_val).mean(dim=0), FLOAT64_RELATIVE)
    own = ipfast.score(head, (x, y), method="self_tracin", loss=row.loss, progress=False)
    assert_relative(own.values, -each.square().sum(dim=1), FLOAT64_RELATIVE)


@every_row
def test_a_stored_query_keeps_its_loss(row, tmp_path):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    query = ipfast.query(nn.Linear(4, CLASSES, dtype=torch.float64), (x, row.labels(generator)), loss=row.loss)
    query.save(tmp_path / "query.safetensors")
    assert ipfast.Query.load(tmp_path / "query.safetensors").loss == row.loss
