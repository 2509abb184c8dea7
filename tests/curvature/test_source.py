"""SOURCE against gradient descent that is unrolled exactly, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import HeadCase
from problems import linear_problem, network_problem
from tolerances import SOLVE_RELATIVE, UNROLLED_RELATIVE, assert_relative_to_largest
from torch import Tensor, nn

import ipfast
from ipfast import Method
from ipfast.losses import MSE


def source_scores(problem, states, rates, steps, loss="cross_entropy", momentum=0.0, empirical=False) -> Tensor:
    method = Method(points=ipfast.Segments(states, rates, steps, momentum), curvature=ipfast.Source(empirical=empirical))
    return ipfast.score(problem.model, problem.train, problem.val, method=method, loss=loss, progress=False).values


def test_two_segments_are_the_unrolled_run():
    """A least-squares head, whose Hessian EKFAC has exactly, with two learning rates."""
    problem = linear_problem("mse")
    head, x, y = problem.head, problem.x, problem.y
    full = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    c = head.out_features
    hessian = 2 / c * full.T @ full / len(full)  # of each output
    solution = torch.linalg.solve(full.T @ full, full.T @ y)
    theta = solution + 0.02 * torch.randn(solution.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    moved = torch.zeros(len(x), *theta.shape, dtype=x.dtype)  # dθ/dε of the removal of each sample
    rates, steps = [0.02, 0.005], [40, 60]
    states = []
    for rate, count in zip(rates, steps, strict=True):
        segment = []
        for step in range(count):
            if step in (count // 4, 3 * count // 4):
                segment.append({"weight": theta[:-1].T.clone(), "bias": theta[-1].clone()})
            gradients = 2 / c * full[:, :, None] * (full @ theta - y)[:, None, :]
            moved = moved - rate * (hessian @ moved) + rate * gradients / len(x)
            theta = theta - rate * gradients.mean(dim=0)
        states.append(segment)
    states[-1].append({"weight": theta[:-1].T.clone(), "bias": theta[-1].clone()})
    with torch.no_grad():
        head.weight.copy_(theta[:-1].T)
        head.bias.copy_(theta[-1])
    full_val = torch.cat([problem.x_val, torch.ones(len(problem.x_val), 1, dtype=x.dtype)], dim=1)
    v = 2 / c * full_val.T @ (full_val @ theta - problem.y_val) / len(full_val)
    truth = (moved * v).sum(dim=(1, 2))
    got = source_scores(problem, states, rates, steps, MSE()) / len(x)
    assert_relative_to_largest(got, truth, UNROLLED_RELATIVE)


def test_a_long_segment_is_ekfac_without_damping():
    problem = linear_problem(case=HeadCase("short", 29, 4, 3))
    state = problem.model.state_dict()
    got = source_scores(problem, [[state]], [1.0], [10**9])
    truth = ipfast.score(
        problem.model, problem.train, problem.val, method=Method(curvature=ipfast.EKFAC(1e-12)), progress=False
    ).values
    assert_relative_to_largest(got, truth, 1e-6)


def test_a_short_segment_is_tracin():
    problem = linear_problem()
    state = problem.model.state_dict()
    other = {name: value + 0.1 for name, value in state.items()}
    got = source_scores(problem, [[other, state]], [1e-9], [3], momentum=0.5)
    of_any_model = replace(ipfast.query(problem.model, problem.val), model=None)
    # TracIn takes the validation gradient at each checkpoint, SOURCE that at the end of the run.
    by_hand = sum(
        ipfast.score(moved(problem, point), problem.train, of_any_model, progress=False).values for point in (other, state)
    )
    assert_relative_to_largest(got, 3e-9 * by_hand, 1e-6)


def moved(problem, state) -> nn.Linear:
    head = nn.Linear(problem.head.in_features, problem.head.out_features, dtype=problem.head.weight.dtype)
    head.load_state_dict(state)
    return head


def test_a_network_has_its_own_features_at_each_checkpoint():
    problem = network_problem()
    last = {name: value.clone() for name, value in problem.model.state_dict().items()}
    first = {name: value * 1.1 if value.is_floating_point() else value for name, value in last.items()}
    got = source_scores(problem, [[first], [last]], [0.1, 0.05], [20, 30])
    # The same by hand, from features: the head of each state on what its backbone gives.
    from ipfast.engines import find_last_layer

    parts = []
    for state in (first, last):
        problem.model.load_state_dict(state)
        layer = find_last_layer("test", problem.model, head="fc")
        parts.append((nn.Linear(48, 4, dtype=torch.float64), layer.features("test", problem.x).clone()))
        parts[-1][0].load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    val = find_last_layer("test", problem.model, head="fc").features("test", problem.x_val).clone(), problem.y_val
    query = ipfast.query(parts[1][0], val).terms[0]
    v = torch.cat([query.gradient, query.bias_gradient[:, None]], dim=1)
    truth = torch.zeros_like(got)
    for (head, h), time in zip(reversed(parts), (1.5, 2.0), strict=True):
        q_s, q_a, values = ekfac(head, h)
        rotated = q_s.T @ v @ q_a
        solved = q_s @ (rotated * (1 - torch.exp(-time * values)) / values) @ q_a.T
        r = head(h).softmax(dim=1).detach() - nn.functional.one_hot(problem.y, 4)
        full = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], dim=1)
        truth += torch.einsum("nc,cd,nd->n", r, solved, full)
        v = q_s @ (rotated * torch.exp(-time * values)) @ q_a.T
    assert_relative_to_largest(got, truth, SOLVE_RELATIVE)


def ekfac(head: nn.Linear, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_S, Q_A, Λ) of a softmax head, from a loop over samples and labels."""
    full = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], dim=1)
    p = head(h).softmax(dim=1).detach()
    outputs = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(dim=0)
    q_s, q_a = torch.linalg.eigh(outputs).eigenvectors, torch.linalg.eigh(full.T @ full / len(full)).eigenvectors
    values = torch.zeros(p.shape[1], full.shape[1], dtype=h.dtype)
    for row, probability in zip(full, p, strict=True):
        for label in range(p.shape[1]):
            r = probability - nn.functional.one_hot(torch.tensor(label), p.shape[1])
            values += probability[label] * (q_s.T @ torch.outer(r, row) @ q_a).square() / len(full)
    return q_s, q_a, values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ipfast.Segments({"weight": torch.zeros(1)}), "states to be a list of lists"),
        (lambda: ipfast.Segments([{"weight": torch.zeros(1)}], [0.1], [1]), "each segment of states to be a list"),
        (lambda: ipfast.Segments([[{"weight": torch.zeros(1)}]], [], [1]), "learning_rates to be one number above 0 for each"),
        (lambda: ipfast.Segments([[{"weight": torch.zeros(1)}]], [0.1], [0]), "steps to be one whole number above 0 for each"),
        (lambda: ipfast.Segments([[{"weight": torch.zeros(1)}]], [0.1], [1], 1.0), "momentum to be at least 0 and below 1"),
        (lambda: ipfast.Segments([[{"weight": "w"}]], [0.1], [1]), "states to hold state dicts"),
    ],
)
def test_segments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ipfast.IpfastError, match=message):
        make()


def test_tda_without_its_segments_says_what_to_pass():
    problem = linear_problem()
    with pytest.raises(ipfast.InputError, match="expected the segments of the training run for method 'tda'"):
        ipfast.score(problem.model, problem.train, problem.val, method="tda", progress=False)


def test_a_network_of_one_layer_is_a_head():
    problem = linear_problem()
    state = problem.model.state_dict()
    states = [[{name: 0.9 * value for name, value in state.items()}], [state]]
    method = Method(ipfast.Segments(states, [0.02, 0.01], [30, 50], 0.5), ipfast.Source(empirical=True))
    last, every = (
        ipfast.score(problem.model, problem.train, problem.val, method=method, params=params, progress=False).values
        for params in ("last", "all")
    )
    assert_relative_to_largest(every, last, SOLVE_RELATIVE)


def test_a_short_segment_of_a_network_is_tracin():
    problem = network_problem()
    state = problem.model.state_dict()
    method = Method(ipfast.Segments([[state]], [1e-9], [3]), ipfast.Source())
    got = ipfast.score(problem.model, problem.train, problem.val, method=method, params="all", progress=False).values
    ip = ipfast.score(problem.model, problem.train, problem.val, params="all", progress=False).values
    assert_relative_to_largest(got, 3e-9 * ip, 1e-6)
