"""The head operations on any memory layout, and the rule that a score depends on its own row only."""

import warnings

import numpy as np
import pytest
import torch
from backends import BACKENDS, computing_with, skip_slow
from cases import LOSSES, HeadCase, head_data
from tolerances import assert_same_rounding
from torch import Tensor

from ipfast import dispatch, ops

CASE = HeadCase("layout", 150, 45, 7)
TILED = HeadCase("tiled", 70, 20, 613)


def dot(data, h, y, loss="cross_entropy", **options) -> Tensor:
    return ops.head_dot(h, y, data.w, data.b, data.g, data.gb, loss=loss, **options)


def norm(data, h, y, loss="cross_entropy", **options) -> Tensor:
    return ops.head_norm(h, y, data.w, data.b, loss=loss, **options)


def assert_same(name: str, got: Tensor, plain: Tensor) -> None:
    """Equal bits. Of the reference only where layouts are equal: torch's matrix product rounds by strides and by company."""
    if name == "reference":
        assert_same_rounding(got, plain)
    else:
        assert torch.equal(got, plain)


KINDS = pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float64, None),
        (torch.float32, None),
        (torch.float16, None),
        (torch.bfloat16, None),
        (torch.float32, "bf16"),
        (torch.bfloat16, "bf16"),
    ],
    ids=str,
)
OPERATIONS = pytest.mark.parametrize("operation", [dot, norm])
NAMES = pytest.mark.parametrize("name", BACKENDS)


def with_row_stride(h: Tensor) -> Tensor:
    wide = torch.full((h.shape[0], h.shape[1] + 11), torch.nan, dtype=h.dtype)
    wide[:, 5 : 5 + h.shape[1]] = h
    return wide[:, 5 : 5 + h.shape[1]]


def every_second_row(h: Tensor) -> Tensor:
    tall = torch.full((2 * h.shape[0], h.shape[1]), torch.nan, dtype=h.dtype)
    tall[::2] = h
    return tall[::2]


def transposed(h: Tensor) -> Tensor:
    return h.T.contiguous().T


def every_second_column(h: Tensor) -> Tensor:
    wide = torch.full((h.shape[0], 2 * h.shape[1]), torch.nan, dtype=h.dtype)
    wide[:, ::2] = h
    return wide[:, ::2]


@NAMES
@OPERATIONS
@pytest.mark.parametrize("layout", [with_row_stride, every_second_row, transposed, every_second_column])
@KINDS
def test_strided_features_give_the_same_bits(dtype, precision, layout, operation, name):
    """The gaps are NaN: a read outside the rows would show."""
    data = head_data(CASE, "cross_entropy", dtype)
    strided = layout(data.h)
    assert not strided.is_contiguous()
    options = {"precision": precision}
    with computing_with(name) as options["backend"]:
        assert_same(name, operation(data, strided, data.y, **options), operation(data, data.h, data.y, **options))


@NAMES
@pytest.mark.parametrize("loss", LOSSES)
def test_strided_weights_queries_and_labels_give_the_same_bits(loss, name):
    data = head_data(CASE, loss, torch.float32)
    other = [every_second_column(t) if t.dim() == 2 else every_second_row(t[:, None])[:, 0] for t in data.arguments[2:]]
    y = transposed(data.y) if data.y.dim() == 2 else torch.stack([data.y, data.y + 1], dim=1)[:, 0]
    assert not any(t.is_contiguous() for t in (y, *other))
    with computing_with(name) as backend:
        plain = ops.head_dot(*data.arguments, loss=loss, backend=backend)
        assert_same(name, ops.head_dot(data.h, y, *other, loss=loss, backend=backend), plain)
        plain = ops.head_norm(*data.norm_arguments, loss=loss, backend=backend)
        assert_same(name, ops.head_norm(data.h, y, *other[:2], loss=loss, backend=backend), plain)


def reversed_rows(h: np.ndarray) -> np.ndarray:
    return h[::-1].copy()[::-1]


def reversed_columns(h: np.ndarray) -> np.ndarray:
    return h[:, ::-1].copy()[:, ::-1]


def read_only(h: np.ndarray) -> np.ndarray:
    h = h.copy()
    h.flags.writeable = False
    return h


def foreign_byte_order(h: np.ndarray) -> np.ndarray:
    return h.astype(h.dtype.newbyteorder())


@pytest.mark.parametrize(
    "layout", [np.asarray, np.asfortranarray, reversed_rows, reversed_columns, read_only, foreign_byte_order]
)
@pytest.mark.parametrize("name", BACKENDS[:2])
@OPERATIONS
def test_numpy_arrays_of_any_layout_give_the_same_bits(operation, name, layout):
    data = head_data(CASE, "cross_entropy", torch.float32)
    with computing_with(name) as backend, warnings.catch_warnings():
        warnings.simplefilter("error")
        got = operation(data, layout(data.h.numpy()), data.y.numpy(), backend=backend)
        assert_same(name, got, operation(data, data.h, data.y, backend=backend))


@NAMES
@OPERATIONS
@pytest.mark.parametrize("case", [CASE, TILED], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_out_is_filled_whatever_it_held(dtype, case, operation, name):
    skip_slow(name, case, dtype, launches=2)
    data = head_data(case, "cross_entropy", dtype)
    out = torch.full((case.rows,), torch.nan, dtype=dtype)
    with computing_with(name) as backend:
        returned = operation(data, data.h, data.y, backend=backend, out=out)
        assert returned is out
        assert torch.equal(out, operation(data, data.h, data.y, backend=backend))
        assert torch.isfinite(out).all()


@NAMES
@OPERATIONS
@pytest.mark.parametrize("loss", LOSSES)
@KINDS
@pytest.mark.parametrize("classes", [3, 7, 613])
def test_scores_do_not_depend_on_neighbours(classes, dtype, precision, loss, operation, name):
    """Permuted, cut in pieces of any size, or alone: a row keeps its bits."""
    case = HeadCase("neighbours", 40 if dispatch.interpreting() else 150, 45, classes)
    skip_slow(name, case, dtype, launches=case.rows * 2, rows=1)
    data = head_data(case, loss, dtype)
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(3))
    with computing_with(name) as backend:

        def of(rows):
            return operation(data, data.h[rows], data.y[rows], loss=loss, precision=precision, backend=backend)

        whole = of(slice(None))
        assert_same(name, of(order), whole[order])
        for size in (1, 2, 3, 64, 65):
            pieces = [of(slice(i, i + size)) for i in range(0, case.rows, size)]
            assert_same(name, torch.cat(pieces), whole)


@NAMES
@OPERATIONS
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_threads_do_not_change_bits(precision, loss, operation, name):
    if name == "triton":
        pytest.skip("a GPU kernel does not use torch's threads")
    data = head_data(HeadCase("threads", 5000, 33, 5), loss, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        with computing_with(name) as backend:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(operation(data, data.h, data.y, loss=loss, precision=precision, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@NAMES
@OPERATIONS
@pytest.mark.parametrize("loss", LOSSES)
@KINDS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("classes", [2, 7, 613])
def test_a_bad_row_is_seen_and_harms_no_other(classes, bad, dtype, precision, loss, operation, name):
    case = HeadCase("bad", 70, 21, classes)
    skip_slow(name, case, dtype, launches=2)
    data = head_data(case, loss, dtype)
    clean = [0, 1, 2, 4, 63, 65, 68, 69]
    with computing_with(name) as backend:
        before = operation(data, data.h, data.y, loss=loss, precision=precision, backend=backend)
        h = data.h.clone()
        h[3, 20] = h[64, 0] = h[66, 10] = bad
        after = operation(data, h, data.y, loss=loss, precision=precision, backend=backend)
    assert not torch.isfinite(after[[3, 64, 66]]).any()
    assert_same(name, after[clean], before[clean])


@NAMES
@OPERATIONS
@pytest.mark.parametrize("loss", LOSSES)
def test_no_rows_give_no_scores(loss, operation, name):
    if name.startswith("cpp"):
        name = "cpp"  # nothing to compute, so no instruction set is called
    data = head_data(CASE, loss, torch.float32)
    with computing_with(name) as backend:
        got = operation(data, data.h[:0], data.y[:0], loss=loss, backend=backend)
    assert got.shape == (0,)
    assert got.dtype == torch.float32


@NAMES
@OPERATIONS
def test_two_runs_give_the_same_bits(operation, name):
    data = head_data(HeadCase("repeat", 4000, 33, 11), "cross_entropy", torch.float32)
    with computing_with(name) as backend:
        assert torch.equal(
            operation(data, data.h, data.y, backend=backend), operation(data, data.h.clone(), data.y, backend=backend)
        )
