"""query: the gradient of the validation loss, and its way through a file."""

import oracles
import pytest
import torch
from cases import LOSSES
from problems import VALIDATION_ROWS, linear_problem, network_problem
from safetensors import safe_open
from safetensors.torch import save_file
from tolerances import FLOAT64_RELATIVE, assert_relative

import ipfast


def flat(term):
    return torch.cat([part.flatten() for part in (term.gradient, term.bias_gradient) if part is not None])


def truth(problem, loss, bias=True):
    samples = list(zip(*problem.val, strict=True))
    return oracles.model_gradients(problem.model, problem.head, samples, loss, bias).mean(dim=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_ip_is_the_mean_gradient_of_the_validation_loss(loss, bias):
    problem = linear_problem(loss)
    (term,) = ipfast.query(problem.model, problem.val, loss=loss, include_bias=bias).terms
    assert_relative(flat(term), truth(problem, loss, bias), FLOAT64_RELATIVE)
    assert (term.bias_gradient is not None) == bias


def test_through_a_network():
    problem = network_problem()
    query = ipfast.query(problem.model, problem.val)
    assert_relative(flat(query.terms[0]), truth(problem, "cross_entropy"), FLOAT64_RELATIVE)
    assert query.head == "fc"
    assert query.stats["M"] == VALIDATION_ROWS


def test_the_dtype_is_that_of_the_computation():
    problem = linear_problem(dtype=torch.float32)
    assert ipfast.query(problem.model, problem.val).terms[0].gradient.dtype == torch.float32
    half = (problem.x_val.half(), problem.y_val)
    assert ipfast.query(problem.model, half).terms[0].gradient.dtype == torch.float32


LOSS_OBJECTS = [
    ipfast.losses.CrossEntropy(),
    ipfast.losses.BCEWithLogits("mean"),
    ipfast.losses.MSE("half"),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSS_OBJECTS, ids=lambda loss: loss.form)
def test_a_file_brings_the_query_back(loss, bias, tmp_path):
    problem = linear_problem(loss.form)
    before = ipfast.query(problem.model, problem.val, loss=loss, include_bias=bias)
    before.save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(str(tmp_path / "q.safetensors"))
    assert torch.equal(flat(after.terms[0]), flat(before.terms[0]))
    assert (after.loss, after.method, after.head) == (before.loss, before.method, before.head)
    assert (after.include_bias, dict(after.stats)) == (bias, dict(before.stats))
    one, other = (ipfast.score(problem.model, problem.train, query).values for query in (before, after))
    assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


def test_the_query_of_a_method_of_ones_own_comes_back_too(tmp_path):
    problem = linear_problem()
    ipfast.query(problem.model, problem.val, method=ipfast.Method()).save(tmp_path / "q.safetensors")
    after = ipfast.Query.load(tmp_path / "q.safetensors")
    got = ipfast.score(problem.model, problem.train, after)
    assert got.method == "custom"
    assert torch.equal(got.values, ipfast.score(problem.model, problem.train, problem.val).values)


@pytest.mark.parametrize("method", ["self_tracin", "loss"])
def test_a_query_without_validation_data_has_nothing_to_store(method, tmp_path):
    query = ipfast.query(linear_problem().model, method=method)
    with pytest.raises(ipfast.InputError, match=f"expected a query made from validation data; '{method}' has nothing to store"):
        query.save(tmp_path / "q.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_out_is_checked_before_any_work_and_gets_the_query(tmp_path):
    problem = linear_problem()
    made = ipfast.query(problem.model, problem.val, out=tmp_path / "q.safetensors")
    assert torch.equal(flat(ipfast.Query.load(tmp_path / "q.safetensors").terms[0]), flat(made.terms[0]))
    bad = (torch.full_like(problem.x_val, torch.nan), problem.y_val)  # would be an error, later
    for arguments, message in (
        ({"out": tmp_path / "q.npz"}, r"query: expected out to end in one of \.safetensors; got 'q\.npz'"),
        ({"out": tmp_path / "no" / "q.safetensors"}, "query: expected the folder of out to exist"),
        ({"out": tmp_path / "a.safetensors", "method": "self_tracin"}, "query: expected .* 'self_tracin'"),
    ):
        with pytest.raises((ipfast.InputError, ipfast.MissingFileError), match=message):
            ipfast.query(problem.model, None if "method" in arguments else bad, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


def test_a_file_that_is_not_a_query_is_refused(tmp_path):
    scores = tmp_path / "s.safetensors"
    ipfast.Scores(torch.zeros(2), "ip", "head", "cpp").save(scores)
    (tmp_path / "text.safetensors").write_text("no header")
    for file in (scores, tmp_path / "text.safetensors"):
        with pytest.raises(ipfast.InputError, match=r"Query\.load: expected a file written by ipfast query .* cannot be read"):
            ipfast.Query.load(file)
    with pytest.raises(ipfast.MissingFileError, match=r"Query\.load: expected path to be a file"):
        ipfast.Query.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    "lost", ["method", "loss", "loss_options", "head", "include_bias", "terms", "combine", "queries", "stats"]
)
def test_a_file_that_lost_an_entry_is_refused(lost, tmp_path):
    """Nothing of a query has a default that could be wrong in silence; what came later, tokens and params, has one."""
    file = tmp_path / "q.safetensors"
    problem = linear_problem()
    ipfast.query(problem.model, problem.val).save(file)
    with safe_open(file, framework="pt") as archive:
        about, tensors = archive.metadata(), {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    del about[lost]
    save_file(tensors, file, about)
    with pytest.raises(ipfast.InputError, match=rf"ipfast query or Query\.save; .* cannot be read .it has no '{lost}'"):
        ipfast.Query.load(file)


def test_the_head_is_found_with_training_data_where_there_is_no_val():
    problem = network_problem()
    query = ipfast.query(problem.model, method="self_tracin", train=problem.train)
    assert query.head == "fc"
    with pytest.raises(ipfast.InputError, match="expected head to name the model's last linear layer"):
        ipfast.query(problem.model, method="self_tracin")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "pi"}, ipfast.InputError, "expected method .* 'ip'"),
        ({"backend": "cp"}, ipfast.InputError, "expected backend .* Did you mean 'cpp'"),
        ({"params": "most"}, ipfast.InputTypeError, "expected params"),
        ({"loss": "mae"}, ipfast.InputError, "expected loss .* Did you mean 'mse'"),
        ({"device": "gpu"}, ipfast.InputError, "expected device"),
        ({"batch_size": -1}, ipfast.InputError, "expected batch_size to be a positive integer; got -1"),
        ({"method": "self_tracin"}, ipfast.InputError, "expected no val"),
    ],
)
def test_bad_input_is_refused(options, error, message):
    problem = linear_problem()
    with pytest.raises(error, match=f"query: {message}"):
        ipfast.query(problem.model, problem.val, **options)


@pytest.mark.parametrize("name", ["auto", "reference", "cpp"])
def test_the_options_of_score_can_be_passed_on(name):
    problem = linear_problem()
    assert ipfast.query(problem.model, problem.val, backend=name).terms


@pytest.mark.parametrize("params", ["last", "all"])
def test_a_query_of_other_parameters_is_refused(params, tmp_path):
    """Of the same shapes, as after another epoch of training; what has the same values is the same model."""
    problem = network_problem()
    file = tmp_path / "query.safetensors"
    query = ipfast.query(problem.model, problem.val, params=params, out=file)
    expected = ipfast.score(problem.model, problem.train, query).values
    same = network_problem().model
    assert torch.equal(ipfast.score(same, problem.train, ipfast.Query.load(file)).values, expected)
    with torch.no_grad():
        same.fc.bias[0] += 1e-9
    for known in (query, ipfast.Query.load(file)):
        with pytest.raises(ipfast.InputError, match="expected the model that the query was made with"):
            ipfast.score(same, problem.train, known)
        with pytest.raises(ipfast.InputError, match="expected the model that the query was made with"):
            ipfast.Scorer(same, known)


def test_a_query_of_checkpoints_takes_any_model_of_their_shapes():
    """Their parameters are those of the states, whatever the model has."""
    problem = network_problem()
    method = ipfast.Method(points=ipfast.Checkpoints([network_problem().model.state_dict()]))
    query = ipfast.query(problem.model, problem.val, method=method)
    expected = ipfast.score(problem.model, problem.train, query).values
    with torch.no_grad():
        problem.model.fc.weight.zero_()
    assert torch.equal(ipfast.score(problem.model, problem.train, query).values, expected)
