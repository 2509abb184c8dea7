"""Every curvature through ipfast.score over whole networks, against dense linear algebra in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from dense_networks import Dense, small
from networks import assert_unchanged, snapshot
from tolerances import (
    AUTOCAST_RELATIVE,
    BATCH_RELATIVE,
    FLOAT64_RELATIVE,
    SOLVE_RELATIVE,
    assert_relative,
    assert_relative_to_largest,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import ipfast
from ipfast import CG, EKFAC, Arnoldi, Checkpoints, DataInf, Dropout, Exact, LiSSA, Method
from ipfast.errors import InputError

KINDS = ["mlp", "conv", "tokens"]
TIGHT = 1e-10


def split(kind):
    """(model, train, val)"""
    model, x, y = small(kind)
    return model, (x[:17], y[:17]), (x[17:], y[17:])


def scored(model, train, val=None, *, params="all", **options):
    return ipfast.score(model, train, val, params=params, batch_size=7, progress=False, **options)


def expected(dense, matrix, train, val):
    """⟨g_i, H⁻¹ v⟩"""
    v = dense.gradients(*val).mean(dim=0)
    return dense.gradients(*train) @ torch.linalg.solve(matrix, v)


def damped(matrix, damping):
    return matrix + damping * torch.eye(len(matrix), dtype=torch.float64)


def enough(matrix):
    """A damping that makes it well conditioned."""
    return float(0.1 - 2 * torch.linalg.eigvalsh(matrix)[0].clamp(max=0))


SOLVERS = {
    "exact": lambda damping, ggn, size: Exact(damping=damping, ggn=ggn),
    "cg": lambda damping, ggn, size: CG(damping=damping, ggn=ggn, tol=TIGHT),
    "lissa": lambda damping, ggn, size: LiSSA(damping=damping, operator="ggn" if ggn else "hessian", tol=TIGHT, steps=4000),
    "arnoldi": lambda damping, ggn, size: Arnoldi(damping=damping, ggn=ggn, rank=size - 1),
}


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("ggn", [False, True], ids=["hessian", "ggn"])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_dense_solves(name, ggn, kind):
    model, train, val = split(kind)
    before, dense = snapshot(model), Dense(model)
    matrix = dense.gauss_newton(*train) if ggn else dense.hessian(*train)
    damping = enough(matrix)
    scores = scored(model, train, val, method=Method(curvature=SOLVERS[name](damping, ggn, len(matrix))))
    assert_unchanged(model, before)
    truth = damped(matrix, damping)
    if name == "arnoldi":  # all but the eigenvalue that is smallest in size, whose direction is left out
        values, vectors = torch.linalg.eigh(matrix)
        kept = values.abs() > max(1e-12 * float(values.abs().max()), float(values.abs().min()))
        inverse = vectors[:, kept] @ torch.diag(1 / (values[kept] + damping)) @ vectors[:, kept].T
        g, v = dense.gradients(*train), dense.gradients(*val).mean(dim=0)
        assert_relative_to_largest(scores.values, g @ (inverse @ v), BATCH_RELATIVE)
        return
    assert_relative(scores.values, expected(dense, truth, train, val), SOLVE_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_datainf_is_the_mean_of_inverses(kind):
    model, train, val = split(kind)
    dense = Dense(model)
    query = dense.datainf(*train, dense.gradients(*val).mean(dim=0))
    scores = scored(model, train, val, method="datainf")
    assert_relative(scores.values, dense.gradients(*train) @ query, SOLVE_RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [None, 0.02])
def test_empirical_ekfac_is_its_matrix(kind, damping):
    model, train, val = split(kind)
    dense = Dense(model)
    matrix = dense.empirical_ekfac(*train, damping)
    curvature = EKFAC(empirical=True, damping=damping)
    scores = scored(model, train, val, method=Method(curvature=curvature))
    assert_relative(scores.values, expected(dense, matrix, train, val), SOLVE_RELATIVE)
    g = dense.gradients(*train)
    selves = scored(model, train, method=Method(curvature=curvature, target="self"))
    assert_relative(selves.values, -(g * torch.linalg.solve(matrix, g.T).T).sum(dim=1), SOLVE_RELATIVE)


def test_ekfac_of_a_linear_network_is_the_heads():
    model, train, val = split("linear")
    for method in (Method(curvature=EKFAC(empirical=True)), Method(curvature=EKFAC(empirical=True), target="self")):
        data = (train, val) if method.target == "val" else (train,)
        whole, head = scored(model, *data, method=method), ipfast.score(model, *data, method=method, progress=False)
        assert_relative(whole.values, head.values, SOLVE_RELATIVE)
    for method in ("exact", "datainf", "cg"):
        whole, head = scored(model, train, val, method=method), ipfast.score(model, train, val, method=method, progress=False)
        assert_relative(whole.values, head.values, SOLVE_RELATIVE)


@pytest.mark.parametrize("name", ["exact", "cg", "lissa"])
def test_self_influence_through_the_gauss_newton_matrix(name):
    model, train, _ = split("mlp")
    dense = Dense(model)
    matrix = damped(dense.gauss_newton(*train), 0.1)
    method = Method(curvature=SOLVERS[name](0.1, True, len(matrix)), target="self")
    g = dense.gradients(*train)
    scores = scored(model, train, method=method)
    assert_relative(scores.values, -(g * torch.linalg.solve(matrix, g.T).T).sum(dim=1), SOLVE_RELATIVE)
    with pytest.raises(InputError, match=r"engine='auto' with self-influence through a curvature"):
        scored(model, train, method=method, engine="explicit")


def test_an_indefinite_hessian_gives_a_stated_damping_or_a_clear_error():
    model, train, val = split("conv")
    dense = Dense(model)
    matrix = dense.hessian(*train)
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] < -1e-3 * values[-1], "the problem must be indefinite, or this test says nothing"
    scores = scored(model, train, val, method="exact")
    (about,) = scores.stats["curvature"]
    stated = float(-values[0] + 1e-3 * values.abs().mean())
    assert about["of"]["damping"] == pytest.approx(stated, rel=SOLVE_RELATIVE)
    # As well conditioned as that damping makes it.
    assert_relative_to_largest(scores.values, expected(dense, damped(matrix, stated), train, val), BATCH_RELATIVE)
    with pytest.raises(InputError, match=r"positive definite Hessian with damping=1e-06.*ggn=True"):
        scored(model, train, val, method=Method(curvature=Exact(damping=1e-6)))
    with pytest.raises(InputError, match=r"positive definite Hessian for CG.*ggn=True"):
        scored(model, train, val, method=Method(curvature=CG(damping=1e-6, tol=TIGHT)))
    with pytest.raises(InputError, match=r"LiSSA to converge.*operator='ggn'"):
        scored(model, train, val, method=Method(curvature=LiSSA(damping=1e-6, tol=TIGHT, steps=100_000)))


def test_several_queries_are_solved_together():
    model, train, val = split("mlp")
    groups = torch.arange(len(val[1])) % 2
    curvature = CG(ggn=True, damping=0.1, tol=TIGHT)
    scores = scored(model, train, val, method=Method(curvature=curvature), val_groups=groups)
    dense = Dense(model)
    matrix = damped(dense.gauss_newton(*train), 0.1)
    for q in range(2):
        rows = groups == q
        truth = expected(dense, matrix, train, (val[0][rows], val[1][rows]))
        assert_relative(scores.values[:, q], truth, SOLVE_RELATIVE)


def test_patterns_take_the_curvature_of_the_parameters_they_name():
    model, train, val = split("mlp")
    dense, parts = Dense(model), Dense(model).parts()
    order = torch.arange(len(dense.theta))
    kept = torch.cat([order[parts["first.bias"]], order[parts["last.weight"]]])
    matrix = dense.gauss_newton(*train)[kept][:, kept]
    scores = scored(model, train, val, params=["first.bias", r"last\.weight"], method=Method(curvature=Exact(0.0, 0.1, True)))
    g, v = dense.gradients(*train)[:, kept], dense.gradients(*val).mean(dim=0)[kept]
    assert_relative(scores.values, g @ torch.linalg.solve(damped(matrix, 0.1), v), SOLVE_RELATIVE)
    for method in (Method(curvature=EKFAC(empirical=True)), "datainf"):  # a weight without its bias, a bias without its weight
        assert torch.isfinite(scored(model, train, val, params=["first.bias", r"last\.weight"], method=method).values).all()


def test_adapters_of_a_frozen_model():
    """LoRA as patterns see it: two linear layers whose product is added, of a model that is frozen."""

    class Adapted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner.requires_grad_(False)
            self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

        def forward(self, x):
            return self.inner(x) + self.lora_B(self.lora_A(x))

    model, train, val = split("mlp")
    torch.manual_seed(0)
    model = Adapted(model).double().eval()
    dense = Dense(model)
    names = ("lora_A.weight", "lora_B.weight")
    order = torch.arange(len(dense.theta))
    kept = torch.cat([order[dense.parts()[name]] for name in names])
    v = dense.gradients(*val).mean(dim=0)
    by_patterns = scored(model, train, val, params=["lora_"], method="datainf")
    truth = dense.gradients(*train)[:, kept] @ dense.datainf(*train, v)[kept]
    assert_relative(by_patterns.values, truth, SOLVE_RELATIVE)
    matrix = dense.empirical_ekfac(*train)[kept][:, kept]
    found = scored(model, train, val, params="trainable", method=Method(curvature=EKFAC(empirical=True)))
    assert_relative(found.values, dense.gradients(*train)[:, kept] @ torch.linalg.solve(matrix, v[kept]), SOLVE_RELATIVE)


def test_dropout_members_have_factors_of_their_own():
    model, train, val = split("mlp")
    method = Method(points=Dropout(2, 0.2), curvature=EKFAC(empirical=True))
    scores = scored(model, train, val, method=method, keep_members=True)
    for member in range(2):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if parameter.dim() >= 2:
                    dropped = ipfast.dropout_mask(name, tuple(parameter.shape), 0.2, 0, member)
                    parameter.mul_(1 / 0.8).view(-1)[dropped] = 0
        dense = Dense(other)
        truth = expected(dense, dense.empirical_ekfac(*train), train, val)
        assert_relative(scores.members[:, member], truth, SOLVE_RELATIVE)


def test_checkpoints_have_factors_of_their_own():
    model, train, val = split("conv")
    other, _, _ = small("conv", seed=3)
    method = Method(points=Checkpoints([model.state_dict(), other.state_dict()], weights=[0.5, 2.0]), curvature=DataInf())
    scores = scored(model, train, val, method=method)
    truth = 0
    for state, weight in ((model, 0.5), (other, 2.0)):
        dense = Dense(state)
        truth = truth + weight * dense.gradients(*train) @ dense.datainf(*train, dense.gradients(*val).mean(dim=0))
    assert_relative(scores.values, truth, SOLVE_RELATIVE)


def test_bf16_is_of_the_query_and_the_scores_and_not_of_the_curvature():
    model, train, val = split("mlp")
    train, val, model = (train[0].float(), train[1]), (val[0].float(), val[1]), model.float()
    method = Method(curvature=EKFAC(empirical=True))
    full, narrow = (scored(model, train, val, method=method, precision=precision) for precision in (None, "bf16"))
    assert narrow.stats["curvature"] == full.stats["curvature"]
    assert_relative_to_largest(narrow.values, full.values, AUTOCAST_RELATIVE)
    assert not torch.equal(narrow.values, full.values)


def test_a_query_holds_what_was_solved(tmp_path):
    model, train, val = split("mlp")
    direct = scored(model, train, val, method="datainf")
    query = ipfast.query(model, val, method="datainf", params="all", train=train)
    query.save(tmp_path / "query.safetensors")
    loaded = ipfast.Query.load(tmp_path / "query.safetensors")
    assert_relative(scored_by(model, train, loaded), direct.values, FLOAT64_RELATIVE)
    selves = ipfast.query(model, method="self_ekfac", params="all", train=train)
    found = ipfast.Scorer(model, selves)(train)
    assert_relative(found, scored(model, train, method="self_ekfac").values, SOLVE_RELATIVE)
    with pytest.raises(InputError, match=r"expected train, the training data to which the curvature of method 'datainf'"):
        ipfast.query(model, val, method="datainf", params="all")


def scored_by(model, train, query):
    return ipfast.score(model, train, query, progress=False).values


def test_losses_of_the_callers_own():
    model, train, val = split("mlp")

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    dense = Dense(model)
    matrix = dense.hessian(*train)
    damping = enough(matrix)
    scores = scored(model, train, val, loss=loss, method=Method(curvature=Exact(damping=damping)))
    assert_relative(scores.values, expected(dense, damped(matrix, damping), train, val), SOLVE_RELATIVE)
    with pytest.raises(InputError, match=r"EKFAC\(empirical=True\)"):
        scored(model, train, val, loss=loss, method="ekfac")


def test_training_data_that_can_be_read_once_is_refused():
    model, train, val = split("mlp")

    class Once(IterableDataset):
        def __init__(self):
            self.left = iter(zip(*train, strict=True))

        def __iter__(self):
            return self.left

    with pytest.raises(InputError, match=r"the same samples each time it is read|read only once"):
        scored(model, DataLoader(Once(), batch_size=4), val, method="datainf", check=False)


def test_samples_of_nan_are_told_and_leave_no_scores():
    model, train, val = split("mlp")
    train[0][5, 1] = torch.nan
    for method in ("datainf", "ekfac", "exact", "cg", "lissa"):
        with pytest.raises(ValueError, match=r"finite|above zero"):
            scored(model, train, val, method=method)
