"""Tables as users of pandas have them: refused columns, the remedies carried out; names; other kinds of arrays."""

from __future__ import annotations

import datetime
import decimal
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from ncml.densities import MADE, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.estimator import FeatureShift, NCMLDensityEstimator, NCMLImputer, NCMLOutlierDetector
from ncml.estimator.form import TableForm

N = 40
FIRST = datetime.date(2020, 1, 30)
DAYS = [FIRST + datetime.timedelta(days=i) for i in range(N)]
SINCE = np.arange(N) + float((FIRST - datetime.date(2000, 1, 1)).days)
NUMBERS = np.arange(N) / 4.0


def small(shape, process):
    return MADE(shape, process, hidden=(8,), components=2)


def small_with_gaps(shape, process):
    return MarginalMADE(shape, process, hidden=(8,), components=2)


def frame_with(column):
    return pd.DataFrame({"a": np.random.default_rng(0).normal(size=len(column)), "c": column}).set_index(
        np.arange(len(column))[::-1]
    )


def refusal(X, name="X", **settings):
    with pytest.raises(ArgumentError) as caught:
        TableForm.of(X, None).encode(X, name, **settings)
    return str(caught.value)


def code_in(message):
    """The assignments that a message advises."""
    return re.findall(r"X(?:\[[^\]]*\])? = .*?(?=; make|; leave|$)", message)


EARLY = [datetime.date(2020, month, day) for month in range(1, 13) for day in range(1, 13)]
SINCE_EARLY = [(d - datetime.date(2000, 1, 1)).days for d in EARLY]

REMEDIES = {
    "datetime64": (pd.to_datetime(DAYS), SINCE, "days of the dates"),
    "datetime64 in a zone": (pd.to_datetime(DAYS).tz_localize("UTC"), SINCE, "days of the dates"),
    "objects of dates": (DAYS, SINCE, "days of the dates"),
    "objects of times": ([datetime.datetime(d.year, d.month, d.day) for d in DAYS], SINCE, "days of the dates"),
    "dates in text": ([str(d) for d in DAYS], SINCE, "days of the dates"),
    "some with a time": ([f"{d}{' 00:00:00' * (d.day > 9)}" for d in DAYS], SINCE, "days of the dates"),
    "dates in text with a zone": ([f"{d}T00:00:00Z" for d in DAYS], SINCE, "days of the dates"),
    "days first": ([f"{d:%d/%m/%Y}" for d in DAYS], SINCE, "days of the dates"),
    "months first": ([f"{d:%m/%d/%Y}" for d in DAYS], SINCE, "days of the dates"),
    "days first with dots": ([f"{d:%d.%m.%Y}" for d in EARLY], SINCE_EARLY, "days of the dates"),
    "the month first, or not": ([f"{d:%m/%d/%Y}" for d in EARLY], SINCE_EARLY, "dates (month first, or else dayfirst"),
    "years first with slashes": ([f"{d:%Y/%m/%d}" for d in DAYS], SINCE, "days of the dates"),
    "years of two digits": ([f"{d:%d/%m/%y}" for d in DAYS], SINCE, "days of the dates"),
    "money with commas": ([f"$ {1000 * i:,}" for i in range(N)], 1000.0 * np.arange(N), "numbers of the text"),
    "dates and a word": ([*map(str, DAYS[:-1]), "never"], [*SINCE[:-1], np.nan], "gap (NaN) of 'never' in c, and days"),
    "periods": (pd.PeriodIndex(DAYS, freq="D"), SINCE, "days of the dates"),
    "durations": (pd.to_timedelta(np.arange(N), unit="D"), np.arange(N), "days of the durations"),
    "objects of durations": (pd.Series([datetime.timedelta(i) for i in range(N)], dtype=object), np.arange(N), "days"),
    "decimals": ([decimal.Decimal(i) / 4 for i in range(N)], NUMBERS, "floats of the decimals"),
    "numbers in text": ([f"{x}" for x in NUMBERS], NUMBERS, "numbers of the text"),
    "per cent": ([f"{x}%" for x in NUMBERS], NUMBERS, "numbers of the text"),
    "money": ([f"$ {x}" for x in NUMBERS], NUMBERS, "numbers of the text"),
    "numbers and a word": ([*NUMBERS[:-1], "n/a"], [*NUMBERS[:-1], np.nan], "gap (NaN) of 'n/a' in c, and numbers"),
    "per cent and a gap": ([*(f"{x}%" for x in NUMBERS[:-1]), None], [*NUMBERS[:-1], np.nan], "numbers of the text"),
}


@pytest.mark.parametrize("kind", REMEDIES)
def test_remedies_work(kind):
    """Each message's code, run as it stands, gives the numbers; in a data frame, in objects, in text and in lists."""
    column, numbers, what = REMEDIES[kind]
    frame = frame_with(list(column) if isinstance(column, list) else pd.Series(column).array)
    tables = {"frame": frame, "array": frame.to_numpy(object), "list": frame.to_numpy(object).tolist()}
    if all(isinstance(value, str) for value in column):
        tables["text"] = frame.to_numpy(str)
    for form, X in tables.items():
        if kind in ("decimals", "periods") and form != "frame":
            continue  # numbers to numpy, and nothing
        message = refusal(X)
        assert what in message.replace("in 1", "in c"), message
        variables = {"X": X, "np": np, "pd": pd}
        for line in code_in(message):
            exec(line, variables)
        rows = TableForm.of(variables["X"], None).encode(variables["X"])
        np.testing.assert_allclose(np.asarray(rows, float)[:, 1], numbers)


def test_thousands_are_no_gaps():
    """Commas between digits in threes, beside numbers without, with marks and with a gap: no amount is lost."""
    amounts = np.round(np.geomspace(3.0, 2e6, N), 2)
    text = [f"$ {v:,.2f}" for v in amounts]
    for cells, odd in ((text, False), ([f"{v:,.0f}" for v in amounts], False), (["n/a", *text[1:]], True)):
        X = frame_with(cells)
        message = refusal(X)
        assert ("make a gap (NaN) of 'n/a' in c" in message) == odd
        variables = {"X": X, "np": np, "pd": pd}
        for line in code_in(message):
            exec(line, variables)
        found = variables["X"]["c"]
        assert found.isna().sum() == odd
        np.testing.assert_allclose(found[int(odd) :], amounts[int(odd) :], atol=0.5)


def test_days_beside_iso_dates():
    """Which comes first, day or month, matters also where other dates leave no doubt."""
    X = frame_with(["2024-03-04", "02/01/2024", "25/12/2024"] * (N // 3) + ["2024-05-06"] * (N % 3))
    variables = {"X": X, "np": np, "pd": pd}
    for line in code_in(refusal(X)):
        exec(line, variables)
    start = pd.Timestamp("2000-01-01")
    assert (start + pd.to_timedelta(variables["X"]["c"][:3], unit="D")).dt.strftime("%Y-%m-%d").tolist() == [
        "2024-03-04",
        "2024-01-02",
        "2024-12-25",
    ]


def test_remedies_that_leave_rows_out():
    """Where gaps are refused, none is advised."""
    message = refusal(frame_with(["1.5"] * N + ["n/a"]), "Y", gaps=False)
    assert message.endswith(
        "leave out rows with 'n/a' in c, and make numbers of the rest: Y['c'] = Y['c'].astype(float)"
    )


ADVICE = {
    "keys": ([f"k{i}" for i in range(N)], "leave out c, which only names rows, or make numbers of it$"),
    "units": ([f"{i} kg" for i in range(N)], "leave out c, which only names rows, or make numbers of it$"),
    "commas and dots": ([f"{i}.000,5" for i in range(N)], r"decimal=',' and thousands='\.'$"),
    "lists": ([[1, 2]] * N, r"leave out c, or make numbers of its cells \(list\)$"),
    "dicts": ([{"a": 1}] * N, r"leave out c, or make numbers of its cells \(dict\)$"),
    "intervals": (pd.interval_range(0, N), r"leave out c, or make numbers of its cells \(Interval\)$"),
    "complex numbers": (np.arange(N) + 1j, "make two columns of the complex numbers in c: the real and the imag"),
    "commas": ([f"{i},5" for i in range(N)], r"make numbers of the text in c: read it by pd.read_csv with thousands"),
    "a few words": (["a", "b"] * (N // 2), r"declare categories=\['c'\]$"),
}


@pytest.mark.parametrize("kind", ADVICE)
def test_advice_on_columns(kind):
    column, message = ADVICE[kind]
    assert re.search(message, refusal(frame_with(column)))


@pytest.mark.parametrize("dtype", ["datetime64[D]", "datetime64[ns]", "timedelta64[h]"])
def test_arrays_of_dates_are_refused(dtype):
    """As in data frames; scikit-learn takes them for numbers, and a gap for one as well."""
    message = refusal(np.arange(N)[:, None].astype(dtype).repeat(2, 1))
    assert "make days of the" in message


@pytest.mark.parametrize("made", [NCMLDensityEstimator, NCMLOutlierDetector, FeatureShift])
def test_categories_that_are_not_hashable(made):
    X = frame_with([[1, 2]] * N)
    estimator = NCMLDensityEstimator(small, categories=["c"], max_steps=1)
    model = estimator if made is NCMLDensityEstimator else made(estimator)
    with pytest.raises(ArgumentError, match=r"categories: got cells of list in 'c'.*\.astype\(str\)"):
        model.fit(X, X)
    with pytest.raises(ArgumentError, match="categories: got cells of list"):
        NCMLDensityEstimator(small, categories={"c": [[1], [2]]}).fit(X)
    X["c"] = X["c"].astype(str)  # as advised
    X.iloc[::2, 1] = "[3]"
    with pytest.raises(ArgumentError, match="got cells of list"):
        estimator.fit(X).score_samples(frame_with([[1, 2]] * 2))


def test_categories_that_are_tuples():
    X = frame_with([(i % 2, "b") for i in range(N)])
    drawn = NCMLDensityEstimator(small, categories=["c"], max_steps=1).fit(X).sample(5)
    assert set(drawn["c"]) <= {(0, "b"), (1, "b")}


def test_unknown_categories_where_gaps_are_refused():
    """The remedies are those that the model takes."""
    X = frame_with(["u", "v"] * (N // 2))
    odd = X.assign(c="w")
    plain = NCMLDensityEstimator(small, categories=["c"], max_steps=1).fit(X)
    with pytest.raises(ArgumentError, match=r"X: got 'w' in c.*leave such rows out, or fit"):
        plain.score_samples(odd)
    gappy = NCMLDensityEstimator(small_with_gaps, categories=["c"], max_steps=1).fit(X)
    with pytest.raises(ArgumentError, match="make a gap of it"):
        gappy.score_samples(odd)
    with pytest.raises(ArgumentError, match=r"Y: got 'w' in c.*leave such rows out, or fit"):
        FeatureShift(plain.set_params(categories={"c": ["u", "v"]}), resamples=1, steps=1).fit(X, odd)
    detector = NCMLOutlierDetector(NCMLDensityEstimator(small, categories=["c"], max_steps=1), calibration=0.0).fit(X)
    with pytest.raises(ArgumentError, match=r"X: got 'w' in c.*leave such rows out, or fit"):
        detector.score_samples(odd)


ARRAY = np.random.default_rng(1).normal(size=(N, 2))
WITH_GAP = np.where(np.arange(2 * N).reshape(N, 2) == 5, np.nan, ARRAY)
MIXED = np.array([[x, "uv"[i % 2]] for i, x in enumerate(ARRAY[:, 0])], dtype=object)
MIXED_GAP = np.where(np.arange(2 * N).reshape(N, 2) == 5, None, MIXED)
SHIFTS = {
    "a gap in Y": (ARRAY, WITH_GAP, None, r"Y: got missing values \(NaN\) in x1; expected complete rows"),
    "a gap in X": (WITH_GAP, ARRAY, None, r"X: got missing values \(NaN\) in x1; expected complete rows"),
    "a gap in lists": (ARRAY.tolist(), WITH_GAP.tolist(), None, r"Y: got missing values \(NaN\) in x1;"),
    "a gap in categories": (MIXED, MIXED_GAP, [1], r"Y: got missing values \(NaN\) in x1;"),
    "a gap in numbers": (
        pd.DataFrame(ARRAY, columns=[7, 9]),
        pd.DataFrame(WITH_GAP, columns=[7, 9]),
        None,
        "Y: .* in 9;",
    ),
    "infinity in Y": (
        ARRAY,
        np.where(np.isnan(WITH_GAP), np.inf, ARRAY),
        None,
        "Y: got infinity in x1; expected finite",
    ),
    "other columns in Y": (ARRAY, ARRAY[:, :1], None, r"Y: got an array of shape \(40, 1\); expected the columns of X"),
    "other names in Y": (frame_with(NUMBERS), frame_with(NUMBERS)[["c", "a"]], None, r"Y: got \['c', 'a'\]; expected"),
    "text in Y": (frame_with(NUMBERS), frame_with(["u", "v"] * 20), None, r"Y: got columns c .*categories=\['c'\]"),
}


@pytest.mark.parametrize("case", SHIFTS)
def test_the_shift_test_says_which_table_is_wrong(case):
    X, Y, categories, message = SHIFTS[case]
    with pytest.raises(ArgumentError, match=message):
        FeatureShift(NCMLDensityEstimator(small, categories=categories, max_steps=1)).fit(X, Y)


@pytest.mark.parametrize(
    "kind", [NCMLDensityEstimator, lambda **k: NCMLOutlierDetector(NCMLDensityEstimator(**k), calibration=0.0)]
)
def test_infinity_is_refused_with_its_column(kind):
    X = pd.DataFrame(ARRAY, columns=["size", "rate"])
    infinite = X.replace(X.iloc[3, 1], -np.inf)
    with pytest.raises(ArgumentError, match=r"X: got infinity in rate; expected finite numbers.*, or make a gap \(NaN"):
        kind(density=small, max_steps=1).fit(infinite)
    with pytest.raises(ArgumentError, match=r"X: got infinity in rate; expected finite numbers; leave these rows out$"):
        kind(density=small, max_steps=1, missing=False).fit(infinite)
    model = kind(density=small, max_steps=1).fit(X)
    with pytest.raises(ArgumentError, match="X: got infinity in rate; expected finite numbers"):
        model.score_samples(infinite)
    with pytest.raises(ArgumentError, match="X: got infinity in x1; expected finite numbers"):
        kind(density=small, max_steps=1).fit(infinite.to_numpy())


def test_numbers_as_names_of_columns():
    """They are names before they are indices, for bounds as for categories, and messages have them."""
    X = pd.DataFrame({1: np.exp(ARRAY[:, 0]), 0: np.arange(N) % 3, 7: ARRAY[:, 1], 8: 1.0})
    estimator = NCMLDensityEstimator(small, bounds={1: (0.0, None)}, categories=[0], max_steps=1, random_state=0)
    with pytest.warns(UserWarning, match="constant columns are set aside: 8"):
        model = estimator.fit(X)
    assert model.columns_.low.tolist() == [0.0, -0.5, -np.inf]
    assert model.form.categories == {1: [0, 1, 2]}
    with pytest.warns(UserWarning, match="constant columns are set aside: 8"):
        shift = FeatureShift(estimator, resamples=1, steps=1, random_state=0).fit(X, X)
    assert shift.names_ == ("1", "0", "7", "8")
    assert np.isfinite(shift.estimator_.columns_.low).tolist() == [True, True, False]


def test_names_of_several_columns():
    X = pd.DataFrame(ARRAY, columns=["a", "a"])
    with pytest.raises(ArgumentError, match=r"several columns named 'a'.*X = X.loc\[:, ~X.columns.duplicated\(\)\]"):
        NCMLDensityEstimator(small).fit(X)
    with pytest.raises(ArgumentError, match="X: got a data frame without columns"):
        NCMLDensityEstimator(small).fit(X.iloc[:, :0])


def test_tensors():
    """As arrays, those that require gradients too."""
    X = torch.tensor(ARRAY, dtype=torch.float32, requires_grad=True)
    model = NCMLDensityEstimator(small, max_steps=1, random_state=0).fit(X)
    assert (model.score_samples(X) == model.score_samples(X.detach().numpy())).all()
    assert model.sample(3).dtype == np.float32


def test_masked_arrays():
    """What is masked is missing, whatever is beneath."""
    X = np.ma.masked_array(ARRAY, ARRAY > 1.0)
    model = NCMLDensityEstimator(small_with_gaps, max_steps=1, random_state=0).fit(X)
    filled = X.filled(np.nan)
    assert (model.score_samples(X) == model.score_samples(filled)).all()
    assert (model.columns_.centre == np.nanmedian(filled, axis=0)).all()
    text = np.ma.masked_array(MIXED, MIXED == "v")
    assert TableForm.of(text, [1]).categories == {1: ["u"]}


def test_sparse_tables_with_categories():
    """scikit-learn says what to do."""
    with pytest.raises(TypeError, match="toarray"):
        NCMLDensityEstimator(small, categories=[1]).fit(sparse.csr_matrix(ARRAY))


def test_lists_with_text():
    rows = MIXED.tolist()
    with pytest.raises(ArgumentError, match=r"X: got columns 1; .*declare categories=\[1\]$"):
        NCMLDensityEstimator(small).fit(rows)
    gaps = WITH_GAP.astype(object)
    gaps[2, 1] = None
    assert NCMLDensityEstimator(small_with_gaps, max_steps=1).fit(gaps.tolist()).sample(2).dtype == float


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "datetime64[D]", "timedelta64[ns]"])
def test_masked_arrays_of_dates_are_refused_with_code_that_keeps_the_mask(dtype):
    numbers = np.arange(2 * N).reshape(-1, 2)
    days = (numbers * np.timedelta64(1, "D")).astype("timedelta64[ns]")
    X = (np.datetime64("2000-01-01", "ns") + days if dtype[0] == "d" else days).astype(dtype)
    X = np.ma.masked_array(X, mask=numbers == 3)
    variables = {"X": X, "np": np, "pd": pd}
    for line in code_in(refusal(X)):
        exec(line, variables)
    rows = np.asarray(TableForm.of(variables["X"], None).encode(variables["X"]), float)
    np.testing.assert_allclose(rows, np.where(numbers == 3, np.nan, numbers))


def test_a_tensor_of_half_precision_is_a_table():
    x = torch.randn(N, 2).bfloat16()
    np.testing.assert_array_equal(TableForm.of(x, None).encode(x), x.float().numpy())


def test_the_code_for_masked_text_keeps_the_mask():
    text = np.array([[f"{i}.5", f"{i}%"] for i in range(N)])
    X = np.ma.masked_array(text, mask=text == "7.5")
    variables = {"X": X, "np": np, "pd": pd}
    for line in code_in(refusal(X)):
        exec(line, variables)
    rows = np.asarray(TableForm.of(variables["X"], None).encode(variables["X"]), float)
    half = np.arange(N) + 0.5
    half[7] = np.nan
    np.testing.assert_allclose(rows, np.stack([half, np.arange(N)], 1))


def test_columns_named_by_numbers_are_compared_by_name():
    x = np.random.default_rng(0).normal(size=(N, 3))
    shift = FeatureShift(noise=0.5, resamples=3)
    with pytest.raises(
        ArgumentError, match=r"Y: got \[1, 3, 2\]; expected the columns of X, \[1, 2, 3\], in this order"
    ):
        shift.fit(pd.DataFrame(x, columns=[1, 2, 3]), pd.DataFrame(x, columns=[1, 3, 2]))


@pytest.mark.parametrize("made", [NCMLOutlierDetector, FeatureShift])
def test_estimators_of_another_kind(made):
    X = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ArgumentTypeError, match="estimator: got KernelDensity; expected an NCMLDensityEstimator"):
        made(KernelDensity()).fit(X, X)


@pytest.mark.parametrize("wrong", ["mean", KernelDensity(), NCMLDensityEstimator])
@pytest.mark.parametrize("made", [NCMLImputer, NCMLOutlierDetector, FeatureShift])
def test_wrong_estimators_are_refused_by_fit_alone(made, wrong):
    """What scikit-learn asks of any estimator has an answer before."""
    X = np.random.default_rng(0).normal(size=(30, 2))
    model = made(wrong)
    assert get_tags(model).input_tags.allow_nan is (made is not FeatureShift)
    assert made.__name__ in repr(model) + repr(make_pipeline(model))
    copy = clone(model)
    assert type(copy.estimator) is type(wrong)
    with pytest.raises(ArgumentTypeError, match=r"^estimator: got .*; expected an NCMLDensityEstimator"):
        copy.fit(X, X)
    assert not hasattr(copy, "n_features_in_")


def test_shift_of_constants_says_nothing_of_columns_inside():
    """Constant in each sample and not in both: the samples of a deal are nobody's tables."""
    X, Y = np.random.default_rng(0).normal(size=(2, 30, 2))
    X[:, 0], Y[:, 0] = 1.0, 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shift = FeatureShift(NCMLDensityEstimator(small, max_steps=2), resamples=3, steps=2, random_state=0).fit(X, Y)
    assert shift.p_values_.shape == (2,)
