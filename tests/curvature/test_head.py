"""Every curvature at the last layer against dense linear algebra on gradients and Hessians by autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from dense import Dense, eye
from problems import linear_problem, network_problem
from tolerances import SOLVE_RELATIVE, assert_relative, assert_relative_to_largest
from torch import Tensor, nn

import ipfast
from ipfast import Method
from ipfast.groups import HeadQueryMaker, head_query
from ipfast.losses import MSE, BCEWithLogits, CrossEntropy, Loss

LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "weighted": CrossEntropy(weight=[0.5, 2.0, 1.0, 3.0, 0.25], label_smoothing=0.1),
    "bce_with_logits": BCEWithLogits(pos_weight=[0.5, 2.0, 1.0, 3.0, 0.25]),
    "mse": MSE(),
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
DAMPING = 0.03


def problem_of(loss: str):
    return linear_problem({"weighted": "cross_entropy"}.get(loss, loss))


def scores(problem, loss: str, curvature, **options) -> Tensor:
    method = Method(curvature=curvature, target=options.pop("target", "val"))
    val = problem.val if method.needs_val else None
    return ipfast.score(problem.model, problem.train, val, method=method, loss=LOSSES[loss], progress=False, **options).values


@every_loss
@pytest.mark.parametrize("include_bias", [True, False])
def test_exact_is_the_solve_of_the_hessian(loss, include_bias):
    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss], include_bias)
    got = scores(problem, loss, ipfast.Exact(damping=DAMPING), include_bias=include_bias)
    truth = dense.g @ torch.linalg.solve(dense.hessian + dense.eye(DAMPING), dense.v)
    assert_relative(got, truth, SOLVE_RELATIVE)


@every_loss
def test_exact_counts_the_penalty_of_the_sum_loss_on_weights_alone(loss):
    problem, penalty = problem_of(loss), 2.5
    dense = Dense(problem, LOSSES[loss])
    matrix = dense.hessian.clone()
    matrix[dense.parts[0], dense.parts[0]] += penalty / len(problem.x) * eye(problem.head.weight.numel())
    q = torch.linalg.pinv(matrix, hermitian=True, rtol=1e-11) @ dense.v
    assert_relative(scores(problem, loss, ipfast.Exact(l2=penalty)), dense.g @ q, SOLVE_RELATIVE)


def test_exact_of_a_softmax_head_without_penalty_is_the_solution_of_minimum_norm():
    problem = problem_of("cross_entropy")
    dense = Dense(problem, LOSSES["cross_entropy"])
    found = ipfast.score(problem.model, problem.train, problem.val, method="exact", progress=False)
    q = torch.linalg.pinv(dense.hessian, hermitian=True, rtol=1e-11) @ dense.v
    assert_relative(found.values, dense.g @ q, SOLVE_RELATIVE)
    about = found.stats["curvature"][0]["of"]
    assert about["solve"] == "minimum norm"
    assert about["rank"] == dense.size - (dense.head.in_features + 1)


def test_a_query_in_directions_without_training_data_is_told():
    problem = problem_of("cross_entropy")
    problem.x[:, 0] = 0  # training never moves this column, validation asks about it
    with pytest.warns(ipfast.IpfastWarning, match="of the query's norm lies where the training loss is flat"):
        scores(problem, "cross_entropy", ipfast.Exact())


@every_loss
@pytest.mark.parametrize("make", [ipfast.LiSSA, ipfast.CG], ids=["lissa", "cg"])
def test_iterative_solvers_converge_to_the_damped_solve(loss, make):
    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss])
    truth = dense.g @ torch.linalg.solve(dense.hessian + dense.eye(DAMPING), dense.v)
    assert_relative_to_largest(scores(problem, loss, make(damping=DAMPING, tol=1e-9)), truth, 1e-6)


@every_loss
def test_lissa_at_its_defaults_points_where_the_solve_points(loss):
    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss])
    damping = 0.1 * float(dense.hessian.trace()) / dense.size
    found = ipfast.query(problem.model, problem.val, method="lissa", loss=LOSSES[loss], train=problem.train)
    (term,) = found.terms
    got = torch.cat([term.gradient.flatten(), term.bias_gradient])
    truth = torch.linalg.solve(dense.hessian + dense.eye(damping), dense.v)
    assert found.stats["curvature"][0]["of"]["damping"] == pytest.approx(damping, rel=1e-9)
    assert float(torch.cosine_similarity(got, truth, dim=0)) > 0.9999


def test_a_lissa_that_diverges_is_an_error():
    with pytest.raises(ipfast.InputError, match="expected LiSSA to converge; after"):
        scores(problem_of("mse"), "mse", ipfast.LiSSA(scale=1e-3))


def test_a_lissa_that_is_cut_short_says_how_far_it_got():
    with pytest.warns(ipfast.IpfastWarning, match="LiSSA stopped after 2 steps"):
        scores(problem_of("mse"), "mse", ipfast.LiSSA(steps=2))


@every_loss
def test_lissa_with_the_fisher_matrix_of_each_tensor(loss):
    problem = problem_of(loss)
    problem.x.mul_(0.2)  # its largest eigenvalue is below two then
    problem.x_val.mul_(0.2)
    dense = Dense(problem, LOSSES[loss])
    truth = torch.zeros(len(dense.g), dtype=torch.float64)
    for part in dense.parts:
        g, v = dense.g[:, part], dense.v[part]
        matrix = g.T @ g / len(g) + 0.1 * g.square().mean() * eye(g.shape[1])
        r = v.clone()
        for _ in range(10):
            r = v + r - matrix @ r
        truth += g @ r
    if not bool(torch.isfinite(truth).all()) or truth.abs().max() > 1e3 * dense.v.norm() * dense.g.norm():
        pytest.fail("the test's own series diverges")
    assert_relative(scores(problem, loss, ipfast.LiSSA(operator="fisher")), truth, SOLVE_RELATIVE)


@every_loss
@pytest.mark.parametrize("include_bias", [True, False])
def test_datainf_is_its_formula(loss, include_bias):
    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss], include_bias)
    truth = torch.zeros(len(dense.g), dtype=torch.float64)
    for part in dense.parts:
        g, v = dense.g[:, part], dense.v[part]
        damping = 0.1 * g.square().mean()
        q = torch.zeros_like(v)
        for gradient in g:
            q += (v - (v @ gradient) / (damping + gradient @ gradient) * gradient) / damping
        truth += g @ (q / len(g))
    assert_relative(scores(problem, loss, ipfast.DataInf(), include_bias=include_bias), truth, SOLVE_RELATIVE)


def matrices(dense: Dense, g: Tensor) -> Tensor:
    """Gradients as matrices [N, C, d + 1], or [N, C, d]."""
    c, d = dense.head.weight.shape
    weight = g[:, : c * d].view(-1, c, d)
    return weight if len(dense.names) == 1 else torch.cat([weight, g[:, c * d :, None]], dim=2)


def fisher_gradients(dense: Dense) -> tuple[Tensor, Tensor]:
    """(gradients [N·K, C, d + 1] at every label the model may draw, their probabilities [N·K]) of a softmax head."""
    z = dense.x @ dense.head.weight.detach().T + dense.head.bias.detach()
    p = z.softmax(dim=1)
    c = z.shape[1]
    r = (p[:, None, :] - eye(c)).reshape(-1, c)
    full = torch.cat([dense.x, torch.ones(len(dense.x), 1, dtype=torch.float64)], dim=1).repeat_interleave(c, dim=0)
    return r[:, :, None] * full[:, None, :], p.reshape(-1) / len(dense.x)


@pytest.mark.parametrize("target", ["val", "self"])
@pytest.mark.parametrize("empirical", [False, True])
@pytest.mark.parametrize("damping", [None, 0.01])
def test_ekfac_is_a_loop_over_samples_and_labels(target, empirical, damping):
    problem = problem_of("cross_entropy")
    dense = Dense(problem, LOSSES["cross_entropy"])
    own = matrices(dense, dense.g)
    if empirical:
        g, weight = own, torch.full((len(own),), 1 / len(own), dtype=torch.float64)
    else:
        g, weight = fisher_gradients(dense)
    full = torch.cat([dense.x, torch.ones(len(dense.x), 1, dtype=torch.float64)], dim=1)
    inputs = full.T @ full / len(full)
    r = g[:, :, -1]  # the bias gradient is the residual
    outputs = torch.einsum("n,ni,nj->ij", weight, r, r)
    q_s, q_a = torch.linalg.eigh(outputs).eigenvectors, torch.linalg.eigh(inputs).eigenvectors
    moments = torch.zeros(outputs.shape[0], inputs.shape[0], dtype=torch.float64)
    for one, share in zip(g, weight, strict=True):
        moments += share * (q_s.T @ one @ q_a).square()
    shift = 0.1 * moments.mean() if damping is None else damping
    if target == "val":
        v = matrices(dense, dense.v[None])[0]
        q = q_s @ ((q_s.T @ v @ q_a) / (moments + shift)) @ q_a.T
        truth = torch.einsum("ij,nij->n", q, own)
    else:
        truth = -((q_s.T @ own @ q_a).square() / (moments + shift)).sum(dim=(1, 2))
    got = scores(problem, "cross_entropy", ipfast.EKFAC(damping, empirical), target=target)
    assert_relative(got, truth, SOLVE_RELATIVE)


@every_loss
def test_the_second_moments_of_the_true_fisher_are_the_diagonal_of_the_hessian(loss):
    """And of the covariances: for these losses the Fisher matrix of the logits is their Hessian, up to the labels' weights."""
    from ipfast.curvature import HeadProblem, TrainRows
    from ipfast.data import open_source
    from ipfast.engines import HeadEngine, find_last_layer

    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss])
    last = find_last_layer("test", problem.model)
    engine = HeadEngine("test", last, LOSSES[loss], backend="auto", include_bias=True, batch_size=8, device=None)
    source = open_source("test", "train", problem.train, batch_size=8)
    engine.check("train", source)
    factors = ipfast.EKFAC().fit(HeadProblem(engine, TrainRows(engine, source), (last.weight, last.bias)))
    basis, layer = factors.bases[0], factors.layers[0]
    columns = [
        layer.matrix((dense.hessian @ _basis_vector(layer, basis, j, k, dense.size))[None])[0]
        for j in range(layer.rows)
        for k in range(layer.columns)
    ]
    diagonal = [
        float(basis.output[:, j] @ column @ basis.input[:, k])
        for column, (j, k) in zip(columns, [(j, k) for j in range(layer.rows) for k in range(layer.columns)], strict=True)
    ]
    assert_relative_to_largest(factors.moments[0].flatten(), torch.tensor(diagonal, dtype=torch.float64), SOLVE_RELATIVE)


def _basis_vector(layer, basis, j: int, k: int, size: int) -> Tensor:
    out = torch.zeros(1, size, dtype=torch.float64)
    layer.write(torch.outer(basis.output[:, j], basis.input[:, k])[None], out)
    return out[0]


@every_loss
def test_arnoldi_keeps_the_largest_eigenvalues(loss):
    problem, rank = problem_of(loss), 10  # of the squared error every eigenvalue is there five times
    dense = Dense(problem, LOSSES[loss])
    values, vectors = torch.linalg.eigh(dense.hessian)
    top, kept = vectors[:, -rank:], values[-rank:]
    q = top @ ((top.T @ dense.v) / (kept + DAMPING))
    assert_relative_to_largest(scores(problem, loss, ipfast.Arnoldi(rank, DAMPING)), dense.g @ q, 1e-6)
    truth = -((dense.g @ top).square() / (kept + DAMPING)).sum(dim=1)
    assert_relative_to_largest(scores(problem, loss, ipfast.Arnoldi(rank, DAMPING), target="self"), truth, 1e-6)


@every_loss
@pytest.mark.parametrize(
    "curvature",
    [ipfast.Exact(damping=DAMPING), ipfast.LiSSA(DAMPING, tol=1e-9), ipfast.CG(DAMPING, tol=1e-10)],
    ids=["exact", "lissa", "cg"],
)
def test_self_influence_is_the_quadratic_form(loss, curvature):
    problem = problem_of(loss)
    dense = Dense(problem, LOSSES[loss])
    solved = torch.linalg.solve(dense.hessian + dense.eye(DAMPING), dense.g.T).T
    assert_relative_to_largest(scores(problem, loss, curvature, target="self"), -(dense.g * solved).sum(dim=1), 1e-6)


def test_self_lissa_is_the_limit_of_its_series():
    problem = linear_problem()
    limit, series = (
        scores(problem, "cross_entropy", ipfast.LiSSA(damping=DAMPING, tol=1e-9, steps=steps), target="self")
        for steps in (None, 5000)
    )
    assert_relative_to_largest(series, limit, 1e-6)


def test_self_lissa_of_an_indefinite_hessian_is_refused():
    problem = network_problem()
    method = Method(curvature=ipfast.LiSSA(damping=1e-6), target="self")
    with pytest.raises(ipfast.InputError, match="expected LiSSA to converge; the Hessian has an eigenvalue below zero"):
        ipfast.score(problem.model, problem.train, method=method, params="all", progress=False)


def test_self_lissa_of_samples_alone_is_the_series_of_one_sample():
    problem = problem_of("cross_entropy")
    problem.x.mul_(0.2)
    dense = Dense(problem, LOSSES["cross_entropy"])
    truth = torch.zeros(len(dense.g), dtype=torch.float64)
    for part in dense.parts:
        for i, g in enumerate(dense.g[:, part]):
            matrix = torch.outer(g, g) + 0.1 * g.square().mean() * eye(len(g))
            r = g.clone()
            for _ in range(10):
                r = g + r - matrix @ r
            truth[i] -= g @ r
    assert_relative(scores(problem, "cross_entropy", ipfast.LiSSA(mode="single"), target="self"), truth, SOLVE_RELATIVE)


SHARED = {
    "cg": (lambda _: Method(curvature=ipfast.CG(damping=DAMPING)), 1, 1),
    "ekfac": (lambda _: "ekfac", 1, 1),
    "exact": (lambda _: Method(curvature=ipfast.Exact(damping=DAMPING)), 1, 1),
    "datainf": (lambda _: "datainf", 1, 1),
    "self_ekfac": (lambda _: "self_ekfac", 1, 0),
    "members": (lambda _: Method(ipfast.Dropout(3, 0.2), ipfast.EKFAC()), 1, 1),
    "checkpoints": (lambda state: Method(ipfast.Checkpoints([state, state]), ipfast.EKFAC()), 2, 2),
    "segments": (lambda state: Method(ipfast.Segments([[state], [state] * 2], [0.1] * 2, [5] * 2), ipfast.Source()), 3, 1),
}
"""Method, and how often train and val must go through the network: once for each state."""


def through_the_network(model, *data, **options) -> tuple[Tensor, int]:
    """The scores, and how many samples have gone through the network for them."""
    seen: list[int] = []
    first = next(iter(model.children()))
    handle = first.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    try:
        found = ipfast.score(model, *data, progress=False, batch_size=8, check=False, **options).values
    finally:
        handle.remove()
    return found, sum(seen)


@pytest.mark.parametrize("name", SHARED)
def test_the_fit_and_the_scores_share_features(name, monkeypatch):
    problem = network_problem()
    make, train_passes, val_passes = SHARED[name]
    method = make(problem.model.state_dict())
    data = (problem.train, problem.val if val_passes else None)
    got, seen = through_the_network(problem.model, *data, method=method, head="fc")
    assert seen == train_passes * len(problem.x) + val_passes * len(problem.x_val)
    monkeypatch.setattr(HeadQueryMaker, "kept", lambda *_: None)
    anew, more = through_the_network(problem.model, *data, method=method, head="fc")
    assert more == seen + train_passes * len(problem.x)
    assert torch.equal(got, anew)


def test_the_fit_and_the_scores_share_features_of_tokens(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(21, 5, 3, generator=generator), torch.randint(4, (21, 5), generator=generator)
    y[torch.rand(21, 5, generator=generator) < 0.3] = -100
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    method = Method(curvature=ipfast.CG(damping=DAMPING))
    for tokens in ("mean", "sum", "each"):
        got, seen = through_the_network(model, (x, y), (x[:8], y[:8]), method=method, tokens=tokens, head="2")
        assert seen == len(x) + 8
        with monkeypatch.context() as patch:
            patch.setattr(HeadQueryMaker, "kept", lambda *_: None)
            anew, _ = through_the_network(model, (x, y), (x[:8], y[:8]), method=method, tokens=tokens, head="2")
        assert torch.equal(got.nan_to_num(), anew.nan_to_num())


def test_features_without_room_are_made_again(monkeypatch):
    """Those of the segments of a run, which are otherwise kept beside each other."""
    problem = network_problem()
    method = SHARED["segments"][0](problem.model.state_dict())
    got, seen = through_the_network(problem.model, problem.train, problem.val, method=method, head="fc")
    monkeypatch.setattr(head_query, "HELD_BYTES", 0)
    anew, more = through_the_network(problem.model, problem.train, problem.val, method=method, head="fc")
    assert more > seen
    assert torch.equal(got, anew)


def test_the_curvature_is_that_of_each_member_of_an_ensemble():
    problem = problem_of("cross_entropy")
    points = ipfast.Dropout(2, 0.2)
    got = ipfast.score(
        problem.model, problem.train, problem.val, method=Method(points, ipfast.Exact(damping=DAMPING)), progress=False
    ).values
    truth = torch.zeros_like(got)
    for member in range(2):
        head = nn.Linear(problem.head.in_features, problem.head.out_features, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(problem.head.weight / 0.8)
            head.weight.view(-1)[ipfast.dropout_mask("weight", tuple(head.weight.shape), 0.2, 0, member)] = 0
            head.bias.copy_(problem.head.bias)
        moved = type(problem)(head, head, problem.x, problem.y, problem.x_val, problem.y_val)
        truth += scores(moved, "cross_entropy", ipfast.Exact(damping=DAMPING)) / 2
    assert_relative(got, truth, SOLVE_RELATIVE)


def test_several_queries_are_those_one_by_one():
    problem = problem_of("cross_entropy")
    halves = {"first": (problem.x_val[:5], problem.y_val[:5]), "second": (problem.x_val[5:], problem.y_val[5:])}
    for curvature in (ipfast.Exact(damping=DAMPING), ipfast.DataInf(), ipfast.EKFAC(), ipfast.LiSSA(DAMPING, tol=1e-9)):
        method = Method(curvature=curvature)
        both = ipfast.score(problem.model, problem.train, halves, method=method, progress=False).values
        for index, half in enumerate(halves.values()):
            alone = ipfast.score(problem.model, problem.train, half, method=method, progress=False).values
            assert_relative_to_largest(both[:, index], alone, SOLVE_RELATIVE)


def test_a_stored_query_scores_the_same(tmp_path):
    problem = problem_of("cross_entropy")
    made = ipfast.query(problem.model, problem.val, method="ekfac", train=problem.train)
    made.save(tmp_path / "query.safetensors")
    again = ipfast.Query.load(tmp_path / "query.safetensors")
    direct = ipfast.score(problem.model, problem.train, problem.val, method="ekfac", progress=False)
    assert torch.equal(ipfast.score(problem.model, problem.train, again, progress=False).values, direct.values)


def test_float32_features_come_close():
    problem32, problem = linear_problem(dtype=torch.float32), linear_problem()
    for method in ("exact", "lissa", "datainf", "ekfac", "cg", "self_ekfac"):
        val32, val = (None, None) if method.startswith("self") else (problem32.val, problem.val)
        got = ipfast.score(problem32.model, problem32.train, val32, method=method, progress=False).values
        assert got.dtype == torch.float32
        truth = ipfast.score(problem.model, problem.train, val, method=method, progress=False).values
        assert float(torch.corrcoef(torch.stack([got.double(), truth]))[0, 1]) > 0.999


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: Method(curvature=ipfast.DataInf(), target="self"), "a curvature that gives self-influence"),
        (lambda: Method(curvature=ipfast.Source()), "together, since both describe a training run"),
        (lambda: Method(points=ipfast.Segments()), "together, since both describe a training run"),
        (lambda: ipfast.LiSSA(damping=-1.0), "damping to be a finite number of at least 0, or 'auto'; got -1.0"),
        (lambda: ipfast.LiSSA(scale=0.0), "scale to be a finite number above 0"),
        (lambda: ipfast.LiSSA(steps=0), "steps to be a whole number above 0"),
        (lambda: ipfast.Exact(l2="big"), "l2 to be a number; got 'big'"),
        (lambda: ipfast.DataInf(damping=0.0), "damping to be a finite number above 0"),
        (lambda: ipfast.Arnoldi(rank=0), "rank to be a whole number above 0"),
        (lambda: ipfast.CG(steps=1.5), "steps to be a whole number above 0"),
    ],
)
def test_what_has_no_meaning_is_refused(method, message):
    with pytest.raises(ipfast.IpfastError, match=message):
        method()


def test_a_query_with_curvature_needs_the_training_data():
    problem = problem_of("cross_entropy")
    with pytest.raises(
        ipfast.InputError, match="query: expected train, the training data to which the curvature of method 'ekfac'"
    ):
        ipfast.query(problem.model, problem.val, method="ekfac")


def test_zero_damping_of_a_singular_ekfac_is_refused():
    problem = problem_of("cross_entropy")
    problem.x[:, 0] = 0
    problem.head.bias.requires_grad_(False)
    with pytest.raises(ipfast.InputError, match="directions without any curvature"):
        scores(problem, "cross_entropy", ipfast.EKFAC(damping=0.0), include_bias=False)


def test_too_many_parameters_for_the_exact_hessian_are_refused_before_any_work():
    head = nn.Linear(3000, 10)
    data = torch.randn(4, 3000), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ipfast.InputError, match=r"at most 20,000 scored parameters .* would take 7 GiB"):
        ipfast.score(head, data, (data[0] + 1, data[1]), method="exact", progress=False)
