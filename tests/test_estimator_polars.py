"""Data frames of polars: the same numbers as from pandas, and frames of the same types back."""

from __future__ import annotations

import datetime
import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score

from ncml.densities import MADE, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.estimator import FeatureShift, NCMLDensityEstimator, NCMLImputer, NCMLOutlierDetector

RNG = np.random.default_rng(0)
N = 80
SIZES = RNG.normal(size=N)
COUNTS = RNG.poisson(3.0, N)
KINDS = RNG.choice(["bolt", "nut", "screw"], N)
GRADES = RNG.choice(["low", "high"], N)
NEW = RNG.random(N) < 0.5
HOLES = np.arange(N) % 9 == 0


def tiny(event_shape, process):
    return MADE(event_shape, process, hidden=(8,), components=2)


def tiny_with_gaps(event_shape, process):
    return MarginalMADE(event_shape, process, hidden=(8,), components=2)


def holed(values):
    return [None if hole else value for value, hole in zip(values.tolist(), HOLES, strict=True)]


def both(*, gaps):
    """The same table in polars and in pandas."""
    some = holed if gaps else np.ndarray.tolist
    polars = pl.DataFrame(
        {
            "size": pl.Series(some(SIZES), dtype=pl.Float32),
            "count": pl.Series(some(COUNTS), dtype=pl.UInt8),
            "kind": pl.Series(some(KINDS), dtype=pl.Categorical),
            "grade": pl.Series(some(GRADES), dtype=pl.Enum(["low", "high"])),
            "new": pl.Series(some(NEW), dtype=pl.Boolean),
        }
    )
    pandas = pd.DataFrame(
        {
            "size": np.array(some(SIZES), np.float32),
            "count": pd.array(some(COUNTS), dtype="UInt8"),
            "kind": pd.Categorical(some(KINDS)),
            "grade": pd.Categorical(some(GRADES), categories=["low", "high"]),
            "new": pd.array(some(NEW), dtype="boolean"),
        }
    )
    return polars, pandas


def estimator(*, gaps=False, **settings):
    return NCMLDensityEstimator(tiny_with_gaps if gaps else tiny, max_steps=20, random_state=0, **settings)


@pytest.mark.parametrize("gaps", [False, True])
def test_densities_and_samples_are_those_of_pandas(gaps):
    polars, pandas = both(gaps=gaps)
    one, other = estimator(gaps=gaps).fit(polars), estimator(gaps=gaps).fit(pandas)
    assert one.feature_names_in_.tolist() == polars.columns
    assert np.array_equal(one.score_samples(polars), other.score_samples(pandas))
    assert np.array_equal(one.score_samples(pandas), one.score_samples(polars))
    rows = one.sample(50, random_state=0)
    assert rows.schema == polars.schema
    expected = other.sample(50, random_state=0)
    for name in polars.columns:
        assert rows[name].to_list() == expected[name].tolist()


def test_gaps_are_filled_and_what_is_there_stays():
    polars, pandas = both(gaps=True)
    imputer = NCMLImputer(estimator(gaps=True), fits=1, random_state=0)
    filled, expected = imputer.fit_transform(polars), NCMLImputer(estimator(gaps=True), fits=1, random_state=0)
    assert filled.schema == polars.schema
    assert filled.null_count().sum_horizontal().item() == 0
    there = [table.filter(~HOLES).to_dict(as_series=False) for table in (filled, polars)]
    assert there[0] == there[1]
    table = expected.fit_transform(pandas)
    for name in polars.columns:
        assert filled[name].to_list() == table[name].tolist()


def test_integers_that_are_none_in_rows_to_fill_make_floats():
    fitted = estimator().fit(both(gaps=False)[0].select("size", "count"))
    rows = pl.DataFrame({"size": [0.5, None, 0.1], "count": [2.5, 3.0, None]})
    filled = fitted.complete(rows, random_state=0)
    assert filled.schema == {"size": pl.Float32, "count": pl.Float64}
    assert filled["count"].to_list()[:2] == [2.5, 3.0]


def test_what_is_there_stays_to_the_last_digit():
    """Integers beyond 2^53 have more of them than floats."""
    keys = [2**60 + 1001 * i for i in range(N)]
    table = pl.DataFrame({"size": SIZES, "key": keys})
    rows = table.with_columns(size=pl.Series(holed(SIZES)))
    assert estimator().fit(table).complete(rows, random_state=0)["key"].to_list() == keys
    holed_keys = table.with_columns(key=pl.Series(holed(np.array(keys))))
    for one, other in ((table, holed_keys), (holed_keys, rows)):  # integers with gaps have another type in pandas
        filled = estimator(gaps=True, missing=True).fit(one).complete(other, random_state=0)
        assert filled.schema == table.schema
        assert filled.filter(~HOLES)["key"].to_list() == table.filter(~HOLES)["key"].to_list()


def test_values_that_a_type_does_not_have_are_refused():
    table = both(gaps=False)[0]
    with pytest.raises(ArgumentError, match=r"got 'top' for 'grade', which is no value of its type, Enum\(.*low.*\);"):
        estimator(categories={"grade": ["low", "high", "top"]}).fit(table)


def test_a_subclass_is_a_data_frame_too():
    class Table(pl.DataFrame):
        pass

    fitted = estimator().fit(Table(both(gaps=False)[0]))
    assert fitted.sample(2, random_state=0).schema == both(gaps=False)[0].schema


def test_draws_stay_within_the_range_of_a_type_with_gaps():
    table = pl.DataFrame({"size": SIZES, "byte": pl.Series(holed(255 - COUNTS % 2), dtype=pl.UInt8)})
    drawn = estimator(gaps=True).fit(table).sample(2000, random_state=0)["byte"]
    assert drawn.dtype == pl.UInt8
    assert (drawn == 255).sum() > 500


def test_columns_are_named():
    polars = both(gaps=False)[0].with_columns(pl.col("kind").cast(pl.String), pl.col("size").exp())
    fitted = estimator(categories=["kind"], bounds={"size": (0.0, None)}).fit(polars)
    rows = fitted.sample(50, random_state=0)
    assert rows.schema == polars.schema
    assert set(rows["kind"]) == {"bolt", "nut", "screw"}
    assert rows["size"].min() > 0.0
    with pytest.raises(ArgumentError, match=r"got columns kind \(String\); .* declare categories=\['kind'\]"):
        estimator().fit(polars)


def test_detectors_shifts_and_searches_take_them():
    polars, pandas = both(gaps=False)
    scores = [
        NCMLOutlierDetector(estimator(), calibration=0.3, random_state=0).fit(table).score_samples(table)
        for table in (polars, pandas)
    ]
    assert np.array_equal(*scores)
    shifts = [
        FeatureShift(estimator(), resamples=3, steps=5, random_state=0).fit(table[:40], table[40:]).statistic_
        for table in (polars, pandas)
    ]
    assert np.array_equal(*shifts)
    assert len(cross_val_score(estimator(), polars, cv=3)) == 3
    search = GridSearchCV(estimator(), {"patience": [1, 2]}, cv=2).fit(polars)
    assert search.best_estimator_.sample(2).schema == polars.schema


def test_fitted_estimators_are_pickled():
    polars = both(gaps=False)[0]
    fitted = estimator().fit(polars)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.sample(3, random_state=0).equals(fitted.sample(3, random_state=0))


@pytest.mark.parametrize("dtype", [pl.Int128, pl.Int64, pl.Float64])
def test_integers_of_any_width(dtype):
    table = pl.DataFrame({"a": pl.Series(COUNTS.tolist(), dtype=dtype), "b": SIZES})
    counts = estimator().fit(table).score_samples(table)
    assert np.array_equal(counts, estimator().fit(table.to_numpy()).score_samples(table.to_numpy().astype(float)))


def test_dates_are_refused_with_code_that_works():
    """The remedies of the message, one after the other, make a table that is taken."""
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(N)]
    X = pl.DataFrame({"size": SIZES, "day": days})
    with pytest.raises(ArgumentError, match=r"got columns day \(Date\); expected numbers or categories; ") as caught:
        estimator().fit(X)
    names = {"X": X, "pd": pd}
    for code in str(caught.value).split("; ")[2:]:
        exec(code[code.index("X") :], names)
    assert estimator().fit(names["X"]).sample(2).shape == (2, 2)


def test_lazy_frames_are_to_be_collected():
    with pytest.raises(ArgumentTypeError, match=r"X: got a LazyFrame of polars; expected a DataFrame"):
        estimator().fit(both(gaps=False)[0].lazy())
    with pytest.raises(ArgumentTypeError, match=r"X: got a LazyFrame of polars; expected a DataFrame"):
        estimator().fit(both(gaps=False)[0].lazy(), sample_weight=np.ones(N))
    with pytest.raises(ArgumentTypeError, match=r"X: got a Series of polars; expected a DataFrame$"):
        estimator().fit(both(gaps=False)[0]["size"])


def test_pandas_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ArgumentTypeError, match=r"X: got a data frame of polars, .*: pip install pandas"):
        estimator().fit(pl.DataFrame({"size": SIZES}))


def test_other_columns_are_refused():
    fitted = estimator().fit(both(gaps=False)[0])
    with pytest.raises(ValueError, match="feature names"):
        fitted.score_samples(both(gaps=False)[0].rename({"size": "length"}))
