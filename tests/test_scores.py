"""Scores: selection, and what comes back from a file."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ipfast
from ipfast import Scores


def scores(values, ids=None):
    return Scores(torch.tensor(values, dtype=torch.float32), "ip", "head", "cpp", {"M": 3, "why": "…"}, ids)


VALUES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)  # few values, so that ties are common


@given(VALUES, st.data())
def test_lowest_and_highest_are_stable_orders(values, data):
    k = data.draw(st.integers(0, len(values)))
    made = scores(values)
    assert made.lowest(k).tolist() == sorted(range(len(values)), key=lambda i: (values[i], i))[:k]
    assert made.highest(k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


@given(st.integers(1, 999), st.integers(1, 10**8))
def test_a_share_counts_as_exact_arithmetic_does(thousandths, rows):
    """floor(share·N) as a person computes it: 0.29 of 100 is 29, although 0.29·100 is below 29 in floating point."""
    many = Scores(torch.zeros(1).expand(rows), "ip", "head", "cpp")
    assert many.count(thousandths / 1000) == thousandths * rows // 1000


@given(st.integers(1, 10**6), st.integers(2, 10**6))
def test_a_ratio_of_counts_gives_the_count_back(k, rows):
    if k < rows:
        many = Scores(torch.zeros(1).expand(rows), "ip", "head", "cpp")
        assert many.count(k / rows) == k == Fraction(k, rows) * rows


@pytest.mark.parametrize("amount", [2, np.int64(2), 0.5, np.float32(0.5), np.float64(0.5)])
def test_an_amount_is_a_count_or_a_share(amount):
    assert scores([3, 1, 2, 0]).lowest(amount).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        (0.0, ipfast.InputError, "expected a share between 0 and 1; got 0. Pass an int for a count"),
        (1.0, ipfast.InputError, "expected a share between 0 and 1; got 1"),
        (-0.1, ipfast.InputError, "got -0.1"),
        (float("nan"), ipfast.InputError, "got nan"),
        (5, ipfast.InputError, "expected a count between 0 and 4; got 5"),
        (-1, ipfast.InputError, "expected a count between 0 and 4; got -1"),
        (True, ipfast.InputTypeError, "got bool"),
        ("5%", ipfast.InputTypeError, "got str"),
        (None, ipfast.InputTypeError, "got NoneType"),
    ],
)
def test_an_amount_without_meaning_is_refused(amount, error, message):
    with pytest.raises(error, match=message):
        scores([3, 1, 2, 0]).lowest(amount)


def test_topk():
    values, indices = scores([3, 1, 2, 0]).topk(2)
    assert (values.tolist(), indices.tolist()) == ([3, 2], [0, 2])
    values, indices = scores([3, 1, 2, 0]).topk(2, largest=False)
    assert (values.tolist(), indices.tolist()) == ([0, 1], [3, 1])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("k", "error"), [(0, ipfast.InputError), (5, ipfast.InputError), (0.5, ipfast.InputTypeError)])
def test_topk_takes_counts_only(k, error, largest):
    with pytest.raises(error):
        scores([3, 1, 2, 0]).topk(k, largest=largest)


def test_repr_tells_the_essentials():
    text = repr(scores([3, -1, 2]))
    assert all(part in text for part in ("3 samples", "'ip'", "'head'", "'cpp'", "-1..3", "1 negative"))
    assert "0 samples" in repr(scores([]))


@pytest.mark.parametrize("values", [[1.0, 2.0], torch.zeros(2, 2, 2), torch.zeros(3, dtype=torch.int64)])
def test_values_are_a_floating_point_vector(values):
    with pytest.raises(ipfast.InputError, match=r"expected values to be a floating-point tensor \[N\] or \[N, Q\]; got"):
        Scores(values, "ip", "head", "cpp")


def test_ids_are_one_a_value():
    with pytest.raises(ipfast.InputError, match="expected one of ids a value; got 2 for 3 values"):
        scores([1, 2, 3], np.array(["a", "b"]))


IDS = [None, np.array([7, 8, 9]), np.array(["a,b", 'quoted "c"', "größe"])]
FLOATS = [0.1, -1e-30, 3.4028234663852886e38]


@pytest.mark.parametrize("ids", IDS, ids=["none", "numbers", "strings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_safetensors_brings_everything_back(dtype, ids, tmp_path):
    before = Scores(torch.tensor(FLOATS, dtype=dtype), "ip", "head", "cpp", {"M": 3, "why": "é"}, ids)
    before.save(tmp_path / "s.safetensors")
    after = Scores.load(str(tmp_path / "s.safetensors"))
    assert torch.equal(after.values, before.values)
    assert after.values.dtype == dtype
    assert (after.method, after.engine, after.backend, dict(after.stats)) == ("ip", "head", "cpp", {"M": 3, "why": "é"})
    assert (after.ids is None) == (ids is None)
    assert ids is None or after.ids.tolist() == ids.tolist()


@pytest.mark.parametrize("ids", IDS, ids=["none", "numbers", "strings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_tables_bring_scores_and_ids_back(ending, dtype, ids, tmp_path):
    before = Scores(torch.tensor(FLOATS, dtype=dtype), "ip", "head", "cpp", {}, ids)
    before.save(tmp_path / f"s{ending}")
    after = Scores.load(tmp_path / f"s{ending}")
    assert torch.equal(after.values.double(), before.values.double())  # every digit
    assert after.method == "unknown"
    if ending == ".npy" or ids is None:
        assert after.ids is None
    else:  # a .csv file does not tell numbers from names
        assert list(map(str, after.ids.tolist())) == list(map(str, ids.tolist()))


def test_a_csv_file_can_be_read_by_eye(tmp_path):
    scores([0.5, -1]).save(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "index,score\n0,0.5\n1,-1.0\n"


def test_saving_replaces_a_file_as_a_whole(tmp_path):
    file = tmp_path / "s.npy"
    scores([1, 2, 3]).save(file)
    scores([4]).save(file)
    assert np.load(file).tolist() == [4]
    assert list(tmp_path.iterdir()) == [file]


def write(path, content):
    path.write_bytes(content)
    return path


BROKEN = {
    "text.safetensors": b"no header",
    "empty.safetensors": b"",
    "short.npy": b"\x93NUMPY",
    "wrong_column.csv": b"index,value\n0,1\n",
    "no_rows_or_names.csv": b"",
    "words.csv": b"index,score\n0,high\n",
    "ragged.csv": b"index,score\n0,1\n2\n",
    "binary.csv": b"index,score\n\xff\xfe,1\n",
    "not.parquet": b"PAR",
    "scores.txt": b"1\n2\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_scores_is_refused(name, tmp_path):
    file = write(tmp_path / name, BROKEN[name])
    with pytest.raises(ipfast.InputError, match=rf"Scores\.load: expected .*{name}"):
        Scores.load(file)


@pytest.mark.parametrize("array", [np.array([1, 2]), np.zeros((2, 2)), np.array(["a"])], ids=["integers", "matrix", "words"])
def test_an_array_that_is_not_scores_is_refused(array, tmp_path):
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(ipfast.InputError, match=r"expected path to hold floating-point numbers \[N\]"):
        Scores.load(tmp_path / "s.npy")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("layers", [None, ("fc", "")])
def test_scores_of_several_queries_come_back(suffix, layers, tmp_path):
    values = torch.randn(3, 2, dtype=torch.float64)
    by_layer = None if layers is None else torch.randn(3, 2, 2, dtype=torch.float64)
    made = Scores(values, "ip", "head", "cpp", queries=("a, or b", "c"), layers=layers, by_layer=by_layer)
    made.save(tmp_path / f"s{suffix}")
    found = Scores.load(tmp_path / f"s{suffix}")
    assert torch.equal(found.values, values)
    assert found.queries == made.queries


def test_only_one_of_several_queries():
    made = Scores(
        torch.arange(6.0).reshape(3, 2),
        *("ip", "head", "cpp"),
        ids=np.array(["x", "y", "z"]),
        queries=("a", "b"),
        members=torch.arange(12.0).reshape(3, 2, 2),
        layers=("fc",),
        by_layer=torch.arange(6.0).reshape(3, 1, 2),
        by_token=torch.arange(12.0).reshape(3, 2, 2),
    )
    one = made.only("b")
    assert one.values.tolist() == made.only(1).values.tolist() == [1, 3, 5]
    assert one.queries is None
    assert one.ids.tolist() == ["x", "y", "z"]
    assert one.members.tolist() == one.by_token.tolist() == [[1, 3], [5, 7], [9, 11]]
    assert one.of_layer("fc").tolist() == [1, 3, 5]
    with pytest.raises(ipfast.InputError, match="expected query to be one of a, b; got 'c'"):
        made.only("c")
    with pytest.raises(ipfast.InputError, match="expected no query for scores of a single one"):
        one.only(0)


def part(rows, *, tokens=None, ids=None, **other):
    """Scores of a shard, with everything beside that is asked for."""
    draw = np.random.default_rng(rows + (tokens or 0))
    number = lambda *shape: torch.from_numpy(draw.normal(size=shape))  # noqa: E731
    if tokens is not None:
        counted = torch.arange(tokens) < torch.randint(0, tokens + 1, (rows, 1))
        other |= {"values": number(rows, tokens) * counted, "counted": counted}
    given = {"values": number(rows), "method": "ip", "engine": "head", "backend": "cpp", "stats": {"M": 3, "rows": rows}}
    return Scores(**{**given, "ids": None if ids is None else np.array(ids), **other})


def test_shards_are_joined_in_order(tmp_path):
    beside = [{"members": torch.randn(n, 4, 2), "by_layer": torch.randn(n, 3, 2), "values": torch.randn(n, 2)} for n in (2, 3)]
    names = {"queries": ("a", "b"), "layers": ("x", "y", "z")}
    one, two = (
        part(2, ids=["i", "j"], **beside[0], **names),
        part(3, ids=["k", "l", "m"], **beside[1], **names, backend="triton"),
    )
    one.save(tmp_path / "one.safetensors")
    whole = Scores.concat([tmp_path / "one.safetensors", two])
    for name in ("values", "members", "by_layer"):
        assert getattr(whole, name).tolist() == getattr(one, name).tolist() + getattr(two, name).tolist()
    assert whole.ids.tolist() == ["i", "j", "k", "l", "m"]
    assert (whole.queries, whole.layers) == (("a", "b"), ("x", "y", "z"))
    assert (whole.method, whole.engine, whole.backend) == ("ip", "head", "cpp, triton")
    assert whole.stats == {"M": 3, "parts": [2, 3]}  # rows are not those of the whole
    assert Scores.concat([one]).values.tolist() == one.values.tolist()


def test_shards_of_shorter_sequences_are_filled_up():
    one, two = part(2, tokens=3, by_token=torch.ones(2, 3, 3)), part(3, tokens=5, by_token=torch.ones(3, 5, 5))
    with pytest.raises(ipfast.InputError, match=r"parts by token of part 0: each \[3\], of part 1: each \[5\]"):
        Scores.concat([one, two])
    one, two = part(2, tokens=3), part(3, tokens=5)
    whole = Scores.concat([one, two])
    assert whole.values[:2, :3].tolist() == one.values.tolist()
    assert whole.values[2:].tolist() == two.values.tolist()
    assert not whole.counted[:2, 3:].any()
    assert not whole.values[:2, 3:].any()
    for how in ("mean", "sum", "min"):
        apart = [each.by_sequence(how).values.tolist() for each in (one, two)]
        assert whole.by_sequence(how).values.tolist() == apart[0] + apart[1]
    one, two = part(2, by_token=torch.ones(2, 5)), part(1, by_token=torch.ones(1, 2))
    assert Scores.concat([one, two]).by_token.tolist() == [[1.0] * 5, [1.0] * 5, [1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"method": "cg"}, "method of part 0: ip, of part 1: cg"),
        ({"values": torch.zeros(3, 2)}, r"columns of part 0: \[\], of part 1: \[2\]"),
        ({"values": torch.zeros(3, 1), "queries": ("a",)}, "queries of part 0: none, of part 1: a"),
        ({"layers": ("a",), "by_layer": torch.zeros(3, 1)}, r"layers of part 0: none none, of part 1: a \[1\]"),
        ({"members": torch.zeros(3, 4)}, r"members of part 0: none, of part 1: \[4\]"),
        ({"tokens": 4}, "tokens of part 0: none, of part 1: some"),
        ({"by_token": torch.zeros(3, 4)}, r"parts by token of part 0: none, of part 1: each \[\]"),
        ({"ids": ["x", "y", "z"]}, "ids of part 0: none, of part 1: some"),
    ],
)
def test_a_part_that_is_unlike_the_first_is_named(other, message):
    with pytest.raises(ipfast.InputError, match=rf"Scores\.concat: expected parts of the same data set.*; {message}"):
        Scores.concat([part(2), part(3, **other)])


def test_what_are_no_parts():
    with pytest.raises(ipfast.InputError, match="expected at least one part; got none"):
        Scores.concat([])
    for parts, got in ((part(2), "got one, a Scores"), ([part(2), np.zeros(3)], "part 1 is a ndarray")):
        with pytest.raises(ipfast.InputTypeError, match=got):
            Scores.concat(parts)
    for again in (["c", "a"], [7, 2]):  # as text, as a table without types has them
        with pytest.raises(ipfast.InputError, match=r"expected each id in one part; '(a|2)' is in part 0 and in part 1"):
            Scores.concat([part(2, ids=["a", "2"]), part(2, ids=again)])
    assert Scores.concat([part(2, ids=["a", "2"]), part(2, ids=[7, 10])]).ids.tolist() == ["a", "2", "7", "10"]
    assert Scores.concat([part(2, ids=[1, 2]), part(2, ids=[7, 10])]).ids.tolist() == [1, 2, 7, 10]


@pytest.mark.parametrize(
    "ids",
    [
        np.array([0.5, 1.0, 1e300]),
        np.array([0.1, 2.0, 3.0], dtype=np.float32),
        np.array([True, False, True]),
        np.array([1, 2, 2**64 - 1], dtype=np.uint64),
        np.array(["1.50", "2.5", "3.5"]),
        np.array(["nan", "inf", "1.0"]),
        np.array(["True", "False", "true"]),
    ],
    ids=["float", "float32", "bool", "uint64", "decimals", "not_finite", "words"],
)
def test_ids_of_every_kind_come_back_from_a_csv(ids, tmp_path):
    before = scores([1, 2, 3], ids)
    before.save(tmp_path / "s.csv")
    after = Scores.load(tmp_path / "s.csv")
    assert after.ids.tolist() == ids.tolist()
    assert after.ids.dtype.kind == ids.dtype.kind
    assert ipfast.curate.combine([before, after]).ids.tolist() == ids.tolist()


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ipfast.MissingFileError, match=r"Scores\.load: expected path to be a file; .* does not exist"):
        Scores.load(tmp_path / "missing.npy")
    with pytest.raises(ipfast.MissingFileError, match=r"Scores\.save: expected the folder of path to exist"):
        scores([1]).save(tmp_path / "missing" / "s.npy")
    with pytest.raises(ipfast.InputError, match=r"Scores\.save: expected path to end in one of \.safetensors, \.npy"):
        scores([1]).save(tmp_path / "s.pkl")


def test_scores_of_a_query_file_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"0.weight": torch.zeros(1)}, tmp_path / "q.safetensors", metadata={"ipfast": json.dumps("query 1")})
    with pytest.raises(ipfast.InputError, match=r"expected a file written by Scores\.save; .*it has no 'ids'"):
        Scores.load(tmp_path / "q.safetensors")
