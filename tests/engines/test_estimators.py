"""scikit-learn classifiers: their own loss and labels, against autograd."""

import numpy as np
import oracles
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tolerances import FLOAT64_RELATIVE, assert_relative

import ipfast


def data(classes):
    return make_classification(
        n_samples=60, n_features=8, n_informative=6, n_classes=classes, n_clusters_per_class=1, random_state=0
    )


def targets(y, classes, form):
    """What the estimator's loss compares with, from class numbers."""
    if form == "index":
        return y
    hot = y[:, None].double() if classes == 2 else torch.nn.functional.one_hot(y, classes).double()
    return 2 * hot - 1 if form == "signs" else hot


FORMS = {
    # estimator, number of classes: its loss, the form of its targets
    "logistic_binary": (LogisticRegression(), 2, "bce_with_logits", "hot"),
    "logistic_multiclass": (LogisticRegression(), 4, "cross_entropy", "index"),
    "logistic_no_intercept": (LogisticRegression(fit_intercept=False), 4, "cross_entropy", "index"),
    "sgd_binary": (SGDClassifier(loss="log_loss", random_state=0), 2, "bce_with_logits", "hot"),
    "sgd_multiclass": (SGDClassifier(loss="log_loss", random_state=0), 4, "bce_with_logits", "hot"),
    "ridge_binary": (RidgeClassifier(), 2, "mse", "signs"),
    "ridge_multiclass": (RidgeClassifier(), 4, "mse", "signs"),
}
NAMES = {
    "numbers": np.arange(4),
    "gaps": np.array([-3, 2, 7, 100]),
    "strings": np.array(["ape", "bee", "cat", "dog"]),
    "objects": np.array(["ape", "bee", "cat", "dog"], dtype=object),
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("method", ["ip", "self_tracin"])
@pytest.mark.parametrize("case", FORMS)
def test_scores_equal_per_sample_autograd(case, method, names):
    estimator, classes, loss, form = FORMS[case]
    x, y = data(classes)
    labels = NAMES[names][y]
    estimator.fit(x, labels)
    val = (x[40:], labels[40:])
    got = ipfast.score(estimator, (x[:40], labels[:40]), val if method == "ip" else None, method=method)
    assert got.stats["loss"] == loss

    h, t = torch.from_numpy(x), targets(torch.from_numpy(y), classes, form)
    w = torch.from_numpy(np.atleast_2d(estimator.coef_))
    b = torch.from_numpy(np.atleast_1d(estimator.intercept_)).double() if estimator.fit_intercept else None
    gradients = oracles.per_sample_gradients(h, t, w, b, loss)
    truth = gradients[:40] @ gradients[40:].mean(dim=0) if method == "ip" else -gradients[:40].square().sum(dim=1)
    assert_relative(got.values, truth, FLOAT64_RELATIVE)


def test_one_model_a_class_is_scored_as_such():
    """Where releases of scikit-learn fit one binary model a class, softmax is not the loss that was minimised."""
    x, y = data(4)
    estimator = LogisticRegression().fit(x, y)
    estimator.multi_class = "ovr"
    assert ipfast.score(estimator, (x[:40], y[:40]), (x[40:], y[40:])).stats["loss"] == "bce_with_logits"


def test_labels_may_be_pandas_strings():
    import pandas

    x, y = data(2)
    labels = pandas.Series(NAMES["strings"][y])
    estimator = LogisticRegression().fit(x, labels)
    frame = pandas.DataFrame(x)
    got = ipfast.score(estimator, (frame[:40], labels[:40]), (frame[40:], labels[40:]))
    plain = ipfast.score(estimator, (x[:40], labels[:40].tolist()), (x[40:], labels[40:].to_numpy()))
    assert torch.equal(got.values, plain.values)


@pytest.mark.parametrize(("name", "unknown"), [("numbers", 9), ("gaps", 0), ("strings", "eel"), ("strings", 3)])
def test_a_label_that_the_estimator_does_not_know_is_named(name, unknown):
    x, y = data(4)
    labels = NAMES[name][y]
    estimator = LogisticRegression().fit(x, labels)
    wrong = labels.tolist()
    wrong[5] = unknown
    if name == "strings" and unknown == 3:
        wrong, row = [3] * len(y), 0
    else:
        row = 5
    with pytest.raises(ipfast.InputError, match=rf"expected labels among the classes .*; got {unknown!r} at row {row}\. Drop"):
        ipfast.score(estimator, (x, np.array(wrong)), (x, labels), check=False)


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (
            LogisticRegression(),
            ipfast.InputError,
            r"expected a fitted estimator; this LogisticRegression has no coef_\. Call its fit",
        ),
        (SGDClassifier(), ipfast.InputTypeError, r"expected LogisticRegression.*; got SGDClassifier\(loss='hinge'\)"),
        (StandardScaler(), ipfast.InputTypeError, "expected LogisticRegression.*; got StandardScaler"),
        (make_pipeline(StandardScaler(), LogisticRegression()), ipfast.InputTypeError, r"got a Pipeline.*score\(pipe\[-1\]"),
    ],
)
def test_estimators_without_a_known_loss_are_refused(estimator, error, message):
    x, y = data(2)
    with pytest.raises(error, match=message):
        ipfast.score(estimator, (x, y), (x, y), check=False)


def test_the_way_out_that_the_message_names_for_a_pipeline():
    x, y = data(2)
    pipe = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    got = ipfast.score(pipe[-1], (pipe[:-1].transform(x), y), (pipe[:-1].transform(x[:9]), y[:9]))
    assert len(got) == len(x)


def test_columns_are_those_that_the_estimator_was_fitted_to():
    import pandas

    x, y = data(3)
    names = [f"column {place}" for place in range(x.shape[1])]
    table = pandas.DataFrame(x, columns=names)
    other = table[[names[0], *names[:0:-1]]]
    estimator = LogisticRegression().fit(table, y)
    train, val = (table[:40], y[:40]), (table[40:], y[40:])
    expected = ipfast.score(LogisticRegression().fit(x, y), train, val, progress=False).values  # which knows no names
    assert torch.equal(ipfast.score(estimator, train, val, progress=False).values, expected)
    assert torch.equal(ipfast.score(estimator, (x[:40], y[:40]), val, progress=False).values, expected)
    numbered = (pandas.DataFrame(x[:40]), y[:40])  # whose names are no strings
    assert torch.equal(ipfast.score(estimator, numbered, val, progress=False).values, expected)
    words = f"features with the columns .* column 1 is '{names[-1]}' where it was '{names[1]}'"
    for call in (
        lambda: ipfast.score(estimator, (other[:40], y[:40]), val),
        lambda: ipfast.score(estimator, train, (other[40:], y[40:])),
        lambda: ipfast.query(estimator, (other[40:], y[40:])),
        lambda: ipfast.fit(estimator, (other[:40], y[:40]), method="ekfac"),
    ):
        with pytest.raises(ipfast.InputError, match=words):
            call()
