"""Every combination of points, curvature and target against dense linear algebra at each point, in float64."""

from __future__ import annotations

import pytest
import torch
from dense import Dense
from problems import linear_problem
from tolerances import assert_relative_to_largest
from torch import Tensor, nn

import ipfast
from ipfast import Method
from ipfast.losses import CrossEntropy
from ipfast.methods import combinations

DAMPING, LOSS, RANK = 0.03, CrossEntropy(), 6
CURVATURES = {
    ipfast.Identity: ipfast.Identity(),
    ipfast.Exact: ipfast.Exact(damping=DAMPING),
    ipfast.LiSSA: ipfast.LiSSA(damping=DAMPING, tol=1e-9),
    ipfast.DataInf: ipfast.DataInf(),
    ipfast.EKFAC: ipfast.EKFAC(damping=DAMPING, empirical=True),
    ipfast.CG: ipfast.CG(damping=DAMPING, tol=1e-10),
    ipfast.Arnoldi: ipfast.Arnoldi(rank=RANK, damping=DAMPING),
    ipfast.Source: ipfast.Source(empirical=True),
}


def points_of(kind, problem) -> tuple[ipfast.methods.Points, list[dict[str, Tensor]], list[float]]:
    """(points, the head's parameters at each of them, their weights)"""
    state = {name: value.detach().clone() for name, value in problem.head.state_dict().items()}
    other = {name: 0.9 * value for name, value in state.items()}
    if kind is ipfast.Final:
        return kind(), [state], [1.0]
    if kind is ipfast.Checkpoints:
        return kind([other, state], weights=[0.5, 2.0]), [other, state], [0.5, 2.0]
    if kind is ipfast.Dropout:
        heads = []
        for member in range(2):
            weight = state["weight"] / 0.8
            weight.view(-1)[ipfast.dropout_mask("weight", tuple(weight.shape), 0.2, 0, member)] = 0
            heads.append({"weight": weight, "bias": state["bias"]})
        return kind(2, 0.2), heads, [0.5, 0.5]
    if kind is ipfast.Segments:
        return kind([[other], [state]], [0.1, 0.2], [10, 5]), [other, state], [1.0, 1.0]
    made = ipfast.ExtraSGD(
        train=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(problem.x, problem.y), batch_size=10),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        members=2,
        seed=3,
    )
    query = ipfast.query(problem.model, problem.val, method=Method(points=made))
    heads = [dict(term.point.state.load("test")) for term in query.terms]
    return made, heads, [term.weight for term in query.terms]


def solved(kind, dense: Dense, v: Tensor) -> Tensor:
    """H⁻¹ v for v [Q, P], by the definition."""
    if kind is ipfast.Identity:
        return v
    if kind in (ipfast.Exact, ipfast.LiSSA, ipfast.CG):
        return torch.linalg.solve(dense.hessian + dense.eye(DAMPING), v.T).T
    if kind is ipfast.Arnoldi:
        values, vectors = torch.linalg.eigh(dense.hessian)
        return (v @ vectors[:, -RANK:] / (values[-RANK:] + DAMPING)) @ vectors[:, -RANK:].T
    if kind is ipfast.DataInf:
        parts = []
        for part in dense.parts:
            g = dense.g[:, part]
            damping = 0.1 * g.square().mean()
            terms = [(v[:, part] - torch.outer(v[:, part] @ one, one) / (damping + one @ one)) / damping for one in g]
            parts.append(torch.stack(terms).mean(dim=0))
        return torch.cat(parts, dim=1)
    return by_factors(dense, v, lambda values: 1 / (values + DAMPING))


def by_factors(dense: Dense, v: Tensor, function) -> Tensor:
    """f(H) v with the empirical EKFAC factors, from a loop over samples."""
    c, d = dense.head.weight.shape
    matrices = torch.cat([dense.g[:, : c * d].view(-1, c, d), dense.g[:, c * d :, None]], dim=2)
    full = torch.cat([dense.x, torch.ones(len(dense.x), 1, dtype=dense.x.dtype)], dim=1)
    r = matrices[:, :, -1]
    q_s, q_a = torch.linalg.eigh(r.T @ r / len(r)).eigenvectors, torch.linalg.eigh(full.T @ full / len(full)).eigenvectors
    values = sum((q_s.T @ one @ q_a).square() for one in matrices) / len(matrices)
    query = torch.cat([v[:, : c * d].view(-1, c, d), v[:, c * d :, None]], dim=2)
    out = q_s @ ((q_s.T @ query @ q_a) * function(values)) @ q_a.T
    return torch.cat([out[:, :, :d].reshape(len(v), -1), out[:, :, d]], dim=1)


def at(problem, parameters: dict[str, Tensor]) -> Dense:
    head = nn.Linear(problem.head.in_features, problem.head.out_features, dtype=torch.float64)
    head.load_state_dict(parameters)
    return Dense(type(problem)(head, head, problem.x, problem.y, problem.x_val, problem.y_val), LOSS)


@pytest.mark.parametrize(
    ("points", "curvature", "target"), combinations(), ids=lambda value: value if isinstance(value, str) else value.__name__
)
def test_every_combination_is_its_definition(points, curvature, target):
    problem = linear_problem()
    made, heads, weights = points_of(points, problem)
    method = Method(points=made, curvature=CURVATURES[curvature], target=target)
    got = ipfast.score(
        problem.model, problem.train, problem.val if target == "val" else None, method=method, progress=False
    ).values
    denses = [at(problem, head) for head in heads]
    truth = torch.zeros_like(got)
    if points is ipfast.Segments:
        v = denses[-1].v[None]
        for dense, time in zip(reversed(denses), (1.0, 1.0), strict=True):
            truth += dense.g @ by_factors(dense, v, lambda values, t=time: -torch.expm1(-t * values) / values)[0]
            v = by_factors(dense, v, lambda values, t=time: torch.exp(-t * values))
    else:
        for dense, weight in zip(denses, weights, strict=True):
            if target == "val":
                truth += weight * dense.g @ solved(curvature, dense, dense.v[None])[0]
            else:
                truth -= weight * (dense.g * solved(curvature, dense, dense.g)).sum(dim=1)
    assert_relative_to_largest(got, truth, 1e-6)


def test_the_list_has_every_method_of_the_table():
    known = set(combinations())
    for name in ipfast.methods.METHODS:
        method = ipfast.methods.METHODS.get("test", name)
        if isinstance(method, Method):
            assert (type(method.points), type(method.curvature), method.target) in known
