"""ipfast.fit: its factors give what a fit of the moment gives, from a file, after an interruption, and at no other model."""

from __future__ import annotations

import pytest
import torch
from problems import linear_problem
from sklearn.linear_model import LogisticRegression
from tolerances import SOLVE_RELATIVE, assert_relative_to_largest
from torch import Tensor, nn

import ipfast
from ipfast import Method
from ipfast.curvature import passes
from ipfast.losses import CrossEntropy

KINDS = {
    "exact": ipfast.Exact(damping=0.1, ggn=True),
    "minimum norm": ipfast.Exact(),
    "ekfac": ipfast.EKFAC(),
    "arnoldi": ipfast.Arnoldi(rank=4, ggn=True),
}


def network() -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)
    return nn.Sequential(*layers).double()


def data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator).double(), torch.randint(0, 3, (rows,), generator=generator)


TRAIN, VAL, OTHER = data(40, 0), data(9, 1), data(7, 2)


@pytest.mark.parametrize("target", ["val", "self"])
@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_factors_are_those_of_the_moment(kind, params, target, tmp_path):
    model, curvature = network(), KINDS[kind]
    fitted = ipfast.fit(model, TRAIN, method=Method(curvature=curvature), params=params, out=tmp_path / "h.safetensors")
    loaded = ipfast.Fitted.load(tmp_path / "h.safetensors")
    assert loaded.original == fitted.original == curvature
    options = {"params": params, "progress": False}
    for val in (VAL, OTHER) if target == "val" else (None,):
        truth = ipfast.score(model, TRAIN, val, method=Method(curvature=curvature, target=target), **options)
        for each in (fitted, loaded):
            got = ipfast.score(model, TRAIN, val, method=Method(curvature=each, target=target), **options)
            assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["h.safetensors"]


@pytest.mark.parametrize("params", ["last", "all"])
def test_a_query_of_kept_factors_needs_no_train(params):
    model = network()
    fitted = ipfast.fit(model, TRAIN, method="ekfac", params=params)
    query = ipfast.query(model, VAL, method=fitted, params=params)
    got = ipfast.score(model, TRAIN, query, progress=False)
    truth = ipfast.score(model, TRAIN, VAL, method="ekfac", params=params, progress=False)
    assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)
    assert got.method == truth.method == "ekfac"
    assert got.stats["curvature"][0]["of"]["damping"] == truth.stats["curvature"][0]["of"]["damping"]


def test_kept_factors_read_a_stream_once():
    """Where the training data can be read once only, a fit of the moment is refused."""

    class Once(Samples):
        def __iter__(self):
            assert self.read == 0, "read again"
            return super().__iter__()

    model = network()
    fitted = ipfast.fit(model, TRAIN, method="ekfac", params="all")
    options = {"params": "all", "check": False, "progress": False}
    got = ipfast.score(model, Once(None).batches(), VAL, method=fitted, **options)
    truth = ipfast.score(model, TRAIN, VAL, method="ekfac", **options)
    assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)


def points(kind: str, model: nn.Module):
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    other = {name: 0.9 * value for name, value in state.items()}
    if kind == "dropout":
        return ipfast.Dropout(2, 0.2), ipfast.EKFAC()
    if kind == "checkpoints":
        return ipfast.Checkpoints([other, state]), ipfast.Exact(damping=0.1, ggn=True)
    return ipfast.Segments([[other], [other, state]], [0.1, 0.2], [10, 5]), ipfast.Source()


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("kind", ["dropout", "checkpoints", "segments"])
def test_each_point_has_factors_of_its_own(kind, params, tmp_path):
    model = network()
    at, curvature = points(kind, model)
    fitted = ipfast.fit(model, TRAIN, method=Method(at, curvature), params=params, out=tmp_path / "h.safetensors")
    assert len(fitted.kept) == 2
    loaded = ipfast.Fitted.load(tmp_path / "h.safetensors")
    got = ipfast.score(model, TRAIN, VAL, method=Method(at, loaded), params=params, progress=False)
    truth = ipfast.score(model, TRAIN, VAL, method=Method(at, curvature), params=params, progress=False)
    assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)


class StruckError(Exception):
    pass


class Samples(torch.utils.data.IterableDataset):
    """The training data, with an interruption before a batch of 8, counted over all passes.

    Attributes:
        read: batches so far.
    """

    def __init__(self, strike: int | None) -> None:
        self.strike, self.read = strike, 0

    def __iter__(self):
        for row in range(40):
            if row % 8 == 0:
                if self.read == self.strike:
                    raise StruckError
                self.read += 1
            yield TRAIN[0][row], TRAIN[1][row]

    def batches(self, size: int = 8) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self, batch_size=size)


@pytest.mark.parametrize("params", ["last", "all"])
@pytest.mark.parametrize("kind", ["exact", "ekfac", "segments"])
def test_an_interrupted_fit_goes_on(kind, params, tmp_path, monkeypatch):
    """Wherever it was struck, with labels that are sampled, and with a model that is of two segments."""
    monkeypatch.setattr(passes, "KEPT_EVERY", 0.0)
    monkeypatch.setattr("ipfast.curvature.features.ROWS", 16)
    monkeypatch.setattr("ipfast.curvature.network_problem.DENSE_ROWS", 20)
    blocks, strike = 0, None
    original = passes.Passes.over

    def over(self, *args, **options):
        nonlocal blocks
        for block in original(self, *args, **options):
            if blocks == strike:
                raise StruckError
            blocks += 1
            yield block

    monkeypatch.setattr(passes.Passes, "over", over)
    model = network()
    method = Method(*points(kind, model)) if kind == "segments" else Method(curvature=KINDS[kind])
    options = {"method": method, "params": params, "check": False, "progress": False, "batch_size": 16}

    def scores(fitted) -> Tensor:
        at = Method(method.points, fitted)
        return ipfast.score(model, TRAIN, VAL, method=at, params=params, progress=False).values

    expected = scores(ipfast.fit(model, TRAIN, **options))
    assert blocks > 2
    every = blocks
    for strike in range(1, every):
        blocks, out = 0, tmp_path / f"{strike}.safetensors"
        with pytest.raises(StruckError):
            ipfast.fit(model, TRAIN, out=out, **options)
        assert not out.exists()
        assert out.with_suffix(".part").exists()
        met, blocks, strike = blocks, 0, None
        assert_relative_to_largest(scores(ipfast.fit(model, TRAIN, out=out, **options)), expected, SOLVE_RELATIVE)
        assert met + blocks <= every, "a block was summed again"
        assert not out.with_suffix(".part").exists()


def test_a_fit_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "KEPT_EVERY", 0.0)
    model, out = network(), tmp_path / "h.safetensors"
    with pytest.raises(StruckError):
        ipfast.fit(model, Samples(3).batches(), params="all", check=False, out=out)
    with pytest.raises(ipfast.InputError, match=r"h\.part' to be what this fit has left; it is of .*EKFAC.*Exact"):
        ipfast.fit(model, Samples(None).batches(), method="exact", params="all", check=False, out=out)
    whole = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*TRAIN), batch_size=7)
    with pytest.raises(ipfast.InputError, match="it is of"):  # it knows how many samples it has
        ipfast.fit(model, whole, params="all", check=False, out=out)
    with pytest.raises(ipfast.InputError, match=r"batches as in the interrupted fit.*batch_size=8"):
        ipfast.fit(model, Samples(None).batches(7), params="all", check=False, out=out)
    out.with_suffix(".part").write_bytes(b"torn")
    with pytest.raises(ipfast.InputError, match=r"what an interrupted fit has left; it cannot be read"):
        ipfast.fit(model, Samples(None).batches(), params="all", check=False, out=out)


def test_factors_of_another_model_are_refused():
    model = network()
    fitted = ipfast.fit(model, TRAIN, method="ekfac", params="all")
    with torch.no_grad():
        model[0].bias[0] += 1e-12
    with pytest.raises(ipfast.InputError, match="the model, params, loss, tokens and points that the curvature was fitted for"):
        ipfast.score(model, TRAIN, VAL, method=fitted, params="all", progress=False)
    with pytest.raises(ipfast.InputError, match="was fitted for"):
        ipfast.score(network(), TRAIN, VAL, method=Method(ipfast.Dropout(2), fitted), params="all", progress=False)


@pytest.mark.parametrize("method", ["ip", "lissa", "datainf", "cg", "loss"])
def test_methods_without_factors_are_refused(method):
    with pytest.raises(ipfast.InputError, match=r"expected a method whose curvature is Exact, EKFAC, Arnoldi or Source; got "):
        ipfast.fit(network(), TRAIN, method=method)


def test_files_are_checked(tmp_path):
    with pytest.raises(ipfast.InputError, match=r"out to end in one of \.safetensors"):
        ipfast.fit(network(), TRAIN, out=tmp_path / "h.pt")
    with pytest.raises(ipfast.MissingFileError):
        ipfast.Fitted.load(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ipfast.InputError, match=r"expected a file written by Fitted\.save"):
        ipfast.Fitted.load(tmp_path / "torn.safetensors")
    ipfast.query(network(), VAL).save(tmp_path / "query.safetensors")
    with pytest.raises(ipfast.InputError, match=r"expected a file written by Fitted\.save"):
        ipfast.Fitted.load(tmp_path / "query.safetensors")


def test_kept_factors_serve_other_impacts():
    problem = linear_problem()
    groups = torch.arange(len(problem.x_val)) % 2
    impact = ipfast.Adversarial(1.3) if problem.head.out_features == 1 else "utility"
    fitted = ipfast.fit(problem.model, problem.train, method=Method(curvature=ipfast.EKFAC()))
    for options in ({"impact": impact}, {"val_groups": groups}):
        got = ipfast.score(problem.model, problem.train, problem.val, method=fitted, progress=False, **options)
        truth = ipfast.score(problem.model, problem.train, problem.val, method="ekfac", progress=False, **options)
        assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)


def test_the_loss_is_that_of_the_fit():
    """A fit with class weights, and a score with them."""
    loss = CrossEntropy(weight=torch.tensor([1.0, 2.0, 0.5]))
    model = network()
    fitted = ipfast.fit(model, TRAIN, method="ekfac", loss=loss)
    got = ipfast.score(model, TRAIN, VAL, method=fitted, loss=loss, progress=False)
    truth = ipfast.score(model, TRAIN, VAL, method="ekfac", loss=loss, progress=False)
    assert_relative_to_largest(got.values, truth.values, SOLVE_RELATIVE)


def test_a_fit_shows_progress(capsys, monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm.monitor_interval", 0)
    shown: list[str] = []
    original = passes.tqdm

    def bar(*args, **options):
        shown.append(options["desc"])
        return original(*args, **{**options, "delay": 0})

    monkeypatch.setattr(passes, "tqdm", bar)
    ipfast.fit(network(), TRAIN, params="all")
    assert "ekfac covariances" in shown
    assert "ekfac second moments" in shown
    assert "40.0/40.0" in capsys.readouterr().err or "ekfac" in shown[0]


def test_the_factors_of_a_head_of_one_output_are_kept():
    """Whose bias is a single number, of any stride."""
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long().numpy()
    model = LogisticRegression().fit(x.numpy(), y)
    fitted = ipfast.fit(model, (x.numpy(), y), method="exact", progress=False)
    data = (x.numpy(), y), (x[:9].numpy(), y[:9])
    got, expected = (ipfast.score(model, *data, method=method, progress=False).values for method in (fitted, "exact"))
    assert torch.equal(got, expected)
