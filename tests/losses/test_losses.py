"""What every loss must hold, by autograd in float64. A new loss needs a row in LABELS and inherits all of it."""

import pickle

import numpy as np
import pytest
import torch
from problems import linear_problem
from tolerances import CONFIDENT_RELATIVE, FLOAT64_RELATIVE, assert_relative
from torch import nn

import ipfast
from ipfast import ops
from ipfast.losses import LOSSES, MSE, BCEWithLogits, CrossEntropy, get_loss

ROWS, CLASSES = 13, 6
OBJECTS = [CrossEntropy(), *(BCEWithLogits(r) for r in ("sum", "mean")), *(MSE(r) for r in ("mean", "sum", "half"))]
LABELS = {
    "cross_entropy": lambda g: torch.randint(CLASSES, (ROWS,), generator=g),
    "bce_with_logits": lambda g: torch.randint(2, (ROWS, CLASSES), generator=g).double(),
    "mse": lambda g: torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64),
}
TORCH = {
    # what torch calls the loss of one sample
    ("cross_entropy", None): nn.CrossEntropyLoss(),
    ("bce_with_logits", "sum"): nn.BCEWithLogitsLoss(reduction="sum"),
    ("bce_with_logits", "mean"): nn.BCEWithLogitsLoss(),
    ("mse", "mean"): nn.MSELoss(),
    ("mse", "sum"): nn.MSELoss(reduction="sum"),
    ("mse", "half"): lambda z, y: nn.functional.mse_loss(z, y, reduction="sum") / 2,
}


def name(loss):
    return f"{loss.form}-{loss.options().get('reduction', '')}"


def sample(loss, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return z, loss.prepare("test", LABELS[loss.form](generator), ROWS, CLASSES)


every_loss = pytest.mark.parametrize("loss", OBJECTS, ids=name)


def test_every_loss_is_tested():
    assert {loss.form for loss in OBJECTS} == set(LOSSES) == set(LABELS)
    assert {(loss.form, loss.options().get("reduction")) for loss in OBJECTS} == set(TORCH)
    assert all(type(loss) is LOSSES.get("test", loss.form) for loss in OBJECTS)


@every_loss
def test_value_is_torchs_loss_of_one_sample(loss):
    z, y = sample(loss)
    function = TORCH[loss.form, loss.options().get("reduction")]
    assert_relative(loss.value(z, y), torch.stack([function(z[i], y[i]) for i in range(ROWS)]), FLOAT64_RELATIVE)


@every_loss
def test_residual_is_the_gradient_of_the_value(loss):
    z, y = sample(loss)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.value(z, y).sum(), z)
    assert_relative(loss.residual(z.detach(), y), gradient, FLOAT64_RELATIVE)


@every_loss
def test_residual_keeps_its_digits_for_confident_samples(loss):
    """In float32 and in float64 alike: 1 − p must not be formed by subtraction."""
    z, y = sample(loss)
    if loss.form == "mse":
        y = z + 1e-3 * y
    elif loss.form == "cross_entropy":
        z = z.scatter(1, y[:, None], 40)
    else:
        z = 40 * (2 * y - 1) + z
    truth = loss.residual(z, y if loss.form == "cross_entropy" else y.double())
    labels = y if loss.form == "cross_entropy" else y.float()
    if loss.form == "mse":
        truth = loss.residual(z.float().double(), labels.double())
    got = loss.residual(z.float(), labels)
    assert_relative(got / truth, torch.ones_like(truth), CONFIDENT_RELATIVE)
    assert (truth != 0).all()


@every_loss
def test_the_operation_computes_form_times_scale(loss):
    z, y = sample(loss)
    eye, g = torch.eye(CLASSES, dtype=torch.float64), torch.randn(CLASSES, CLASSES, dtype=torch.float64)
    got = ops.head_dot(z, y, eye, None, g, None, loss=loss.form, scale=loss.scale(CLASSES))
    assert_relative(got, (loss.residual(z, y) * (z @ g.T)).sum(dim=1), FLOAT64_RELATIVE)


@every_loss
def test_no_batch_reduction(loss):
    z, y = sample(loss)
    assert torch.equal(loss.value(z, y)[3:4], loss.value(z[3:4], y[3:4]))
    assert torch.equal(loss.residual(z, y)[3:4], loss.residual(z[3:4], y[3:4]))


@every_loss
def test_a_loss_is_a_value(loss):
    again = type(loss)(**loss.options())
    assert again == loss
    assert hash(again) == hash(loss)
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert sum(other == loss for other in OBJECTS) == 1


@every_loss
def test_a_loss_is_found_by_name_or_given(loss):
    assert get_loss("test", loss) is loss
    assert type(get_loss("test", loss.form)) is type(loss)
    assert get_loss("test", loss.form) == type(loss)()


@every_loss
def test_labels_of_another_shape_are_refused(loss):
    generator = torch.Generator().manual_seed(0)
    labels = LABELS[loss.form](generator)
    for wrong in (labels[:-1], labels[None], labels[..., None]):
        with pytest.raises(ipfast.InputError, match="test: expected labels of shape"):
            loss.prepare("test", wrong, ROWS, CLASSES)


@pytest.mark.parametrize("kind", [BCEWithLogits, MSE])
def test_an_unknown_reduction_is_refused(kind):
    with pytest.raises(ipfast.InputError, match=rf"{kind.__name__}: expected reduction to be one of .*; got 'average'"):
        kind("average")


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_class_labels_of_any_integer_dtype(kind):
    labels = torch.from_numpy(np.arange(CLASSES).astype(kind))
    assert CrossEntropy().prepare("test", labels, CLASSES, CLASSES).dtype == torch.int64


@every_loss
def test_score_takes_the_object(loss):
    problem = linear_problem(loss.form)
    got = ipfast.score(problem.model, problem.train, problem.val, loss=loss)
    z, z_val = problem.model(problem.x), problem.model(problem.x_val)
    query = torch.autograd.grad(loss.value(z_val, problem.y_val).mean(), [problem.head.weight, problem.head.bias])
    rows = []
    for i in range(len(z)):
        gradient = torch.autograd.grad(
            loss.value(z[i : i + 1], problem.y[i : i + 1]).sum(), [problem.head.weight, problem.head.bias], retain_graph=True
        )
        rows.append(sum((g * q).sum() for g, q in zip(gradient, query, strict=True)))
    assert_relative(got.values, torch.stack(rows), FLOAT64_RELATIVE)
