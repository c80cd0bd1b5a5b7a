"""Categories in tables: probabilities, there and back with every type, the detector, and clear errors."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from ncml.densities import MADE, MarginalMADE
from ncml.errors import ArgumentError
from ncml.estimator import FeatureShift, NCMLDensityEstimator, NCMLOutlierDetector
from ncml.estimator.form import TableForm
from tests.statistics import assert_frequencies

COLOURS = ["blue", "green", "red"]
SHARES = np.array([0.2, 0.7, 0.1])


def small(shape, process):
    return MADE(shape, process, hidden=(16,), components=3)


def small_with_gaps(shape, process):
    return MarginalMADE(shape, process, hidden=(16,), components=3)


def colours(n, seed=0):
    return np.array(COLOURS, dtype=object)[np.random.default_rng(seed).choice(3, p=SHARES, size=n)]


def mixed(n=240):
    rng = np.random.default_rng(1)
    size = rng.lognormal(size=n)
    size[::7] = np.nan
    kind = colours(n)
    kind[::5] = None
    return pd.DataFrame(
        {
            "size": size,
            "count": rng.poisson(3.0, n),
            "kind": kind,
            "grade": pd.Categorical(rng.choice(["low", "high"], n), categories=["low", "high", "top"], ordered=True),
            "flag": rng.random(n) < 0.4,
            "zip": rng.choice([1010, 2020, 9090], n),
        }
    )


def fitted(X, density=small, **settings):
    return NCMLDensityEstimator(density, max_steps=2, random_state=0, **settings).fit(X)


def test_probabilities():
    """They sum to one whatever the weights, and training finds the shares; samples have them too."""
    X = colours(2000)[:, None]
    untrained = fitted(X, categories=[0], dequantisations=1024)
    each = np.array(COLOURS, dtype=object)[:, None]
    assert np.exp(untrained.score_samples(each)).sum() == pytest.approx(1.0, abs=2e-3)
    trained = NCMLDensityEstimator(
        small, categories=[0], max_steps=300, learning_rate=1e-2, random_state=0, dequantisations=64
    ).fit(X)
    np.testing.assert_allclose(np.exp(trained.score_samples(each)), SHARES, atol=0.05)
    drawn = trained.sample(4000, random_state=0)[:, 0]
    counts = torch.tensor([(drawn == colour).sum() for colour in COLOURS])
    assert_frequencies(counts, torch.from_numpy(np.exp(trained.score_samples(each))), bias=0.02)


def test_frames_there_and_back():
    frame = mixed()
    model = fitted(frame, small_with_gaps, categories=["kind", "zip"])
    assert np.isfinite(model.score_samples(frame)).all()
    drawn = model.sample(60, random_state=0)
    assert drawn.dtypes.equals(frame.dtypes)
    assert drawn.notna().all(axis=None)
    assert set(drawn["kind"]) <= set(COLOURS)
    assert set(drawn["grade"]) <= {"low", "high", "top"}
    assert set(drawn["zip"]) <= {1010, 2020, 9090}
    assert drawn.equals(model.sample(60, random_state=0))
    assert np.isfinite(model.score_samples(drawn)).all()
    assert np.isfinite(model.score_samples(frame.assign(grade="top"))).all()  # declared by the dtype


def test_codes_follow_the_values_or_what_is_given():
    frame = mixed()
    form = TableForm.of(frame, ["kind", "zip"])
    assert form.categories == {2: COLOURS, 3: ["low", "high", "top"], 5: [1010, 2020, 9090]}
    given = TableForm.of(frame, {"kind": ["red", "blue", "green"], 5: [9090, 2020, 1010]})
    codes = given.encode(frame)
    assert codes["kind"].tolist()[1:5] == [["red", "blue", "green"].index(k) for k in frame["kind"][1:5]]
    assert np.isnan(codes["kind"][0])
    assert codes["zip"].tolist() == [[9090, 2020, 1010].index(z) for z in frame["zip"]]
    assert TableForm.of(frame, form.declared).categories == form.categories


ARRAYS = {
    "objects": (np.array([[1, "a", 0.5], [2, "b", 1.5], [3, "a", None], [4, "b", 2.5]] * 10, dtype=object), [1]),
    "strings": (np.array([["a", "x"], ["b", "y"], ["a", "y"]] * 10), [0, 1]),
    "integers": (np.array([[5, 1], [9, 2], [7, 2], [5, 3]] * 10), [0]),
    "reals": (np.array([[0.5, 1.0], [0.25, 2.0], [0.5, 2.5], [0.25, 3.7]] * 10), [0]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_there_and_back(kind):
    X, categories = ARRAYS[kind]
    model = fitted(X, small_with_gaps if kind == "objects" else small, categories=categories)
    assert np.isfinite(model.score_samples(X)).all()
    drawn = model.sample(30, random_state=0)
    assert drawn.dtype == X.dtype
    for j in categories:
        assert set(drawn[:, j]) <= set(X[:, j])
    assert np.isfinite(model.score_samples(drawn)).all()
    if kind == "objects":
        assert {type(v) for v in drawn[:, 0]} == {int}


TYPES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "UInt8": (0, 255),
    "Int8": (-128, 127),
    "uint64": (0, 2**64),
    "Int64": (-(2**63), 2**63),
    "bool": (0, 1),
    "boolean": (0, 1),
    "Sparse[uint8]": (0, 255),
}


@pytest.mark.parametrize("dtype", TYPES)
def test_draws_beyond_a_type_are_its_ends(dtype):
    """The density has mass outside of what a type can hold, and between its numbers."""
    frame = pd.DataFrame({"a": pd.Series([0, 1, 1] * 20, dtype=dtype), "kind": pd.Categorical(["x", "y", "y"] * 20)})
    form = TableForm.of(frame, None)
    drawn = form.decode(np.array([[-1e30, 0.0], [-0.2, 1.0], [0.9999999, 1.0], [1e30, 0.0]]))
    assert drawn.dtypes.equals(frame.dtypes)
    low, high = TYPES[dtype]
    assert [int(v) for v in drawn["a"][:3]] == [low, 0, 1]
    assert int(drawn["a"][3]) == pytest.approx(high, rel=1e-15)


def test_draws_beyond_an_array_are_its_ends():
    X = np.array([[0, 1], [5, 2]] * 10, dtype=np.uint8)
    drawn = TableForm.of(X, [1]).decode(np.array([[-3.0, 0.0], [4.0, 1.0], [300.0, 1.0]]))
    assert drawn.dtype == np.uint8
    assert drawn.tolist() == [[0, 1], [4, 2], [255, 2]]


def test_lists_keep_numbers_beside_strings():
    rows = [[1.5, "a"], [2.5, "b"], [0.5, "b"]] * 5
    assert np.isfinite(fitted(rows, categories=[1]).score_samples(rows)).all()


@pytest.mark.filterwarnings("ignore:calibration")
def test_the_detector_takes_what_the_estimator_takes():
    """A category that only the calibration rows have is known; a rare one is odd; gaps and strings are fine."""
    frame = mixed()
    frame.loc[3, "kind"] = "mauve"
    for seed in range(3):
        estimator = NCMLDensityEstimator(max_steps=1, categories=["kind", "zip"])
        detector = NCMLOutlierDetector(estimator, calibration=0.6, random_state=seed).fit(frame)
        assert np.isfinite(detector.score_samples(frame)).all()
        assert np.isfinite(detector.explain(frame[:5])).all()
        assert len(detector.p_values(frame)) == len(frame)


def test_a_rare_category_is_odd():
    n = 1500
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=n), "kind": rng.choice(["a", "b", "c"], n, p=[0.5, 0.49, 0.01])})
    estimator = NCMLDensityEstimator(small, categories=["kind"], max_steps=200, learning_rate=1e-2)
    detector = NCMLOutlierDetector(estimator, random_state=0).fit(frame)
    rows = pd.DataFrame({"x": [0.0, 0.0], "kind": ["a", "c"]})
    usual, odd = detector.p_values(rows)
    assert odd < 0.03 < usual


def test_shift_of_a_category():
    X = pd.DataFrame({"x": np.random.default_rng(0).normal(size=300), "kind": colours(300)})
    Y = X.assign(kind=np.random.default_rng(1).choice(COLOURS, 300))
    shift = FeatureShift(
        NCMLDensityEstimator(small, categories=["kind"], max_steps=60, learning_rate=1e-2),
        resamples=9,
        steps=30,
        random_state=0,
    ).fit(X, Y)
    assert shift.p_values_[1] == 0.1


@pytest.mark.parametrize("dtype", [object, pd.CategoricalDtype(COLOURS[::-1], ordered=True)])
def test_a_category_that_only_the_second_sample_has(dtype):
    """It is a shift, and no mistake, unless all categories were named."""
    X = pd.DataFrame({"x": np.random.default_rng(0).normal(size=300), "kind": colours(300)}).astype({"kind": dtype})
    kinds = np.where(np.random.default_rng(1).random(300) < 0.3, "teal", colours(300))
    Y = pd.DataFrame({"x": np.random.default_rng(2).normal(size=300), "kind": kinds}).astype({"kind": object})
    estimator = NCMLDensityEstimator(small, categories=["kind"], max_steps=60, learning_rate=1e-2)
    shift = FeatureShift(estimator, resamples=19, steps=30, random_state=0).fit(X, Y)
    assert shift.p_values_[1] == 0.05 < shift.p_values_[0]
    assert shift.estimator_.columns_.high[1] == len(COLOURS) + 0.5
    if dtype is object:
        with pytest.raises(ArgumentError, match="'teal' in kind"):
            shift.set_params(estimator__categories={"kind": COLOURS}).fit(X, Y)


WRONG = {
    "strings": (lambda f: fitted(f), r"columns kind \(object\); .*declare categories=\['kind'\]"),
    "dates": (
        lambda f: fitted(f.assign(kind=pd.Timestamp(0))),
        r"columns kind \(datetime64.*; make days of the dates in kind: X",
    ),
    "some more strings": (
        lambda f: fitted(f.assign(other=f["kind"].where(f["count"] > 0)), categories=["other"]),
        r"columns kind \(object\); .*declare categories=\['other', 'kind'\]$",
    ),
    "keys": (lambda f: fitted(f.assign(kind=[f"k{i}" for i in range(len(f))])), "; leave out kind, which only names"),
    "text for numbers": (lambda f: fitted(f.assign(kind="1.5")), "; make numbers of the text in kind: X"),
    "a word for a gap": (
        lambda f: fitted(f.assign(kind=["n/a", *["1.5"] * (len(f) - 1)])),
        r"; make a gap \(NaN\) of 'n/a' in kind, and numbers of the rest: X",
    ),
    "an array of strings": (lambda f: fitted(f[["count", "kind"]].to_numpy()), r"columns 1; .*categories=\[1\]"),
    "no such column": (
        lambda f: fitted(f, categories=["colour"]),
        r"got 'colour'; expected names of columns \('.*'kind'.*\), or indices below",
    ),
    "a string": (lambda f: fitted(f, categories="kind"), r"expected a list of columns, \['kind'\]"),
    "a number": (lambda f: fitted(f, categories=3), "categories: got 3; expected a list of columns, or {column"),
    "values in a string": (lambda f: fitted(f, categories={"kind": "abc"}), "got 'abc' for 'kind'; expected a list"),
    "a number for values": (lambda f: fitted(f, categories={"kind": 3}), "got 3 for 'kind'; expected a list"),
    "bounds": (
        lambda f: fitted(f, categories=["kind"], bounds={"kind": (0, 2)}),
        r"bounds: got \(0, 2\) for kind, which is of categories",
    ),
    "a value twice": (lambda f: fitted(f, categories={"kind": ["a", "a"]}), "every value once"),
    "not all values": (lambda f: fitted(f, categories={"kind": ["blue"]}), "in kind, which is not among"),
    "unseen": (
        lambda f: fitted(f, small_with_gaps, categories=["kind"]).score_samples(f.assign(kind="teal")),
        r"'teal' in kind, which is not among the categories known of it \('blue', 'green', 'red'\)",
    ),
    "other names": (
        lambda f: fitted(f, small_with_gaps, categories=["kind"]).score_samples(f.rename(columns={"kind": "sort"})),
        "feature names",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_categories(case):
    call, message = WRONG[case]
    frame = mixed().astype({"kind": object})
    with pytest.raises(ValueError, match=message):
        call(frame)


CELLWISE = {
    "floats": (np.column_stack([np.arange(300.0), np.arange(300) % 3]), [1]),
    "objects": (np.column_stack([np.arange(300.0).astype(object), colours(300)]), [1]),
    "numbers as objects": (np.random.default_rng(0).normal(size=(300, 2)).astype(object), None),
    "a frame": (pd.DataFrame({"x": np.arange(300.0), "kind": colours(300)}), ["kind"]),
}


@pytest.mark.parametrize("case", CELLWISE)
def test_cells_are_not_looked_at_one_by_one(case, monkeypatch):
    """Of a table without gaps: that would take longer than its density."""
    X, categories = CELLWISE[case]
    form, looked = TableForm.of(X, categories), []
    monkeypatch.setattr("ncml.estimator.form._missing", lambda value: looked.append(value) or value is None)
    found = np.asarray(form.encode(X), float)
    assert len(looked) <= 3
    if categories is None:
        assert (found == X).all()
    else:
        np.testing.assert_array_equal(found[:, 0], np.arange(300.0))
        assert (np.array(form.categories[1], object)[found[:, 1].astype(int)] == np.asarray(X)[:, 1]).all()


def test_a_gap_among_the_values_of_categories():
    """None has no code, whatever was declared."""
    X = pd.DataFrame({"x": np.arange(30.0), "kind": ["a", None, "b"] * 10})
    codes = TableForm.of(X, {"kind": [None, "a", "b"]}).encode(X)["kind"]
    np.testing.assert_array_equal(codes[:3], [1.0, np.nan, 2.0])


def test_keys_are_named():
    """A column whose values hardly repeat is named by a warning; one that rows share, or a gap, is none."""
    X = mixed(60)
    X["key"] = [f"row {i}" for i in range(60)]
    with pytest.warns(UserWarning, match=r"hardly repeat: key \(60 of 60 rows\); .* leave out"):
        fitted(X, small_with_gaps, categories=["key", "kind"])
    X["key"] = [f"row {i}" if i < 30 else None for i in range(60)]
    with pytest.warns(UserWarning, match=r"key \(30 of 30 rows\)"):
        fitted(X, small_with_gaps, categories=["key", "kind"])
    X["key"] = [f"pair {i // 2}" for i in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted(X, small_with_gaps, categories=["key", "kind"])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_arrays_of_numbers_there_and_back(dtype):
    """Without categories too; what lies beyond the type is its end."""
    X = np.array([[0, 1], [1, 1], [0, 0], [1, 0]] * 30).astype(dtype)
    model = fitted(X)
    drawn = model.sample(200, random_state=0)
    assert drawn.dtype == X.dtype
    assert np.isfinite(drawn.astype(float)).all()
    assert np.isfinite(model.score_samples(drawn)).all()
    ends = TableForm.of(X, None).decode(np.array([[-1e30, 1e30]]))[0].astype(float)
    info = None if dtype is bool else (np.iinfo if np.issubdtype(dtype, np.integer) else np.finfo)(dtype)
    low, high = (0.0, 1.0) if info is None else (max(float(info.min), -1e30), min(float(info.max), 1e30))
    np.testing.assert_allclose(ends, [low, high], rtol=1e-6)


def test_declared_categories_longer_than_those_of_the_table():
    X = np.array([["ab"[i % 2], "xy"[i % 3 // 2]] for i in range(60)])
    form = TableForm.of(X, {0: ["a", "crowbar", "b"], 1: ["x", "y"]})
    assert form.decode(np.array([[1.0, 0.0]])).tolist() == [["crowbar", "x"]]


def test_what_is_missing_for_pandas_is_no_category():
    """In arrays of objects as in data frames."""
    values = [pd.NA if i % 4 == 0 else (pd.NaT if i % 4 == 2 else "ab"[i % 3 % 2]) for i in range(60)]
    X = np.array([[0.1 * i if i % 5 else pd.NA, v] for i, v in enumerate(values)], dtype=object)
    model = fitted(X, small_with_gaps, categories=[1])
    assert model.form.categories == {1: ["a", "b"]}
    assert np.isfinite(model.score_samples(X)).all()


def test_objects_of_one_kind_there_and_back():
    """Booleans and integers with gaps, which pandas and numpy hold as objects."""
    frame = pd.DataFrame(
        {"flag": [True, None, False] * 20, "count": [1, 2, None] * 20, "x": np.arange(60.0)}, dtype=object
    )
    drawn = fitted(frame, small_with_gaps).sample(20, random_state=0)
    assert {type(v) for v in drawn["flag"]} == {bool}
    assert {type(v) for v in drawn["count"]} == {int}
    assert {type(v) for v in drawn["x"]} == {float}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (pd.Categorical(["x", "y"] * 30), ["x", "m", "y"], "got 'm' for 'c', which is no value of its type, category"),
        (np.array([0, 1] * 30, np.uint8), [0, 0.5, 1], "got 0.5 for 'c', which is no value of its type, uint8"),
        (np.array([0, 1] * 30, np.uint8), [0, 1, 300], "got 300 for 'c', which is no value of its type, uint8"),
        (pd.array([0, 1] * 30, dtype="Int8"), [0, 1, -200], "got -200 for 'c', which is no value of its type, Int8"),
        (np.array([0, 1] * 30), [0, 1, "two"], "got 'two' for 'c', which is no value of its type, int64"),
        (np.array([False, True] * 30), [0, 1, 2], "got 2 for 'c', which is no value of its type, bool"),
    ],
)
def test_values_that_the_type_of_a_column_does_not_have_are_refused(column, values, message):
    """Such draws would be other values, or gaps. As the message says, columns of text have any."""
    table = pd.DataFrame({"c": column, "x": np.random.default_rng(0).normal(size=60)})
    density = NCMLDensityEstimator(max_steps=1, categories={"c": values})
    with pytest.raises(ArgumentError, match=f"categories: {message}; expected values that are"):
        density.fit(table)
    names = list(dict.fromkeys(map(str, [*table["c"].unique(), *values])))
    density.set_params(categories={"c": names})
    assert set(density.fit(table.assign(c=table["c"].astype(str))).sample(50)["c"]) <= set(names)
