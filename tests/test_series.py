"""Time series: what is read, how it is cut, and the forecasts that need no model."""

import csv
import dataclasses
import datetime
import importlib.resources
import json
import tempfile
import zoneinfo
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlflax import run, train
from dlflax.data import Series, make_splits
from dlflax.data.series.lengths import calendar_lengths
from dlflax.data.series.series_file import read_file, read_in_style
from dlflax.data.series.source import naive, seasonal_naive
from dlflax.data.table import calendars
from dlflax.data.table.raw_table import read_table
from dlflax.errors import InputError
from dlflax.train import Hparams, losses, tasks
from experiments import forecast, predict


def write(path, rows, header=("date", "value")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def counted(tmp_path, n=40):
    return write(tmp_path / "counted.csv", [(f"day {i}", i) for i in range(n)])


def test_windows_by_hand(tmp_path):
    """The values 0..39: every window and target is known."""
    series = Series(data=counted(tmp_path), window=5, horizon=3, test_split=0.25)
    dataset = series.load()
    splits = make_splits(series, dataset, 0.2, seed=0)
    # 30 values before the tail, the last 6 of which are for validation
    assert [len(part["targets"]) for part in (splits.train, splits.val, splits.test)] == [17, 4, 8]
    for part in (splits.train, splits.val, splits.test):
        assert part["inputs"].dtype == part["targets"].dtype == np.float32
        scale = splits.target.scale
        np.testing.assert_allclose(part["inputs"][0, :, 0] * scale, [-4, -3, -2, -1, 0], atol=1e-5)
        np.testing.assert_allclose(part["targets"][0] * scale, [1, 2, 3], atol=1e-5)
    assert splits.encoder.own_window == ((35,), (36,), (37,), (38,), (39,))
    assert tasks.Forecast().model_fields(splits) == {"num_outputs": 3}
    whole = make_splits(series, dataset, 0.0, seed=1)
    assert whole.val is None and len(whole.train["targets"]) == 23


def test_no_target_is_in_two_parts(tmp_path):
    values = np.random.default_rng(0).normal(size=60)
    path = write(tmp_path / "a.csv", [(i, v) for i, v in enumerate(values)])
    series = Series(data=path, window=6, horizon=4)
    splits = make_splits(series, series.load(), 0.2, seed=0)
    steps = [  # from one value to the next, as unique as the values
        {round(float(x), 4) for x in np.diff(part["targets"], axis=1).ravel()}
        for part in (splits.train, splits.val, splits.test)
    ]
    assert not (steps[0] & steps[1] or steps[0] & steps[2] or steps[1] & steps[2])


def test_naive_forecasts_by_hand():
    inputs = np.float32([[[1], [2], [3], [4], [0]]])
    np.testing.assert_array_equal(naive(inputs, 2), [[0, 0]])
    np.testing.assert_array_equal(seasonal_naive(inputs, 5, 3), [[3, 4, 0, 3, 4]])


def test_regression_scores_in_the_series_own_unit():
    """Against pandas-free arithmetic on the raw series: a perfect model, and both baselines."""
    series = Series("sunspots", window=22, horizon=11)
    dataset = series.load(lambda _: None)
    splits = make_splits(series, dataset, 0.1, seed=0)
    path = importlib.resources.files("dlflax.data") / "embedded" / "sunspots.csv"
    values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=1)
    assert len(values) == 309 and values.max() == 190.2
    start = 309 - round(series.test_split * 309)
    assert dataset.test["first"][0] == start
    first = np.arange(start, len(values) - 10)
    truth = np.stack([values[first + k] for k in range(11)], 1)
    expected = {
        "naive": np.sqrt(np.mean((values[first - 1][:, None] - truth) ** 2)),
        "seasonal_naive": np.sqrt(np.mean((np.stack([values[first - 11 + k] for k in range(11)], 1)
                                           - truth) ** 2)),
    }  # fmt: skip
    tested = tasks.Tested(None, None, {}, splits, splits.test["targets"], None)
    described = tasks.Forecast().describe(tested)
    scores = described.results
    assert scores["forecasts"]["model"] == {"rmse": 0.0, "mae": 0.0}
    for name, rmse in expected.items():
        assert scores["forecasts"][name]["rmse"] == pytest.approx(rmse, rel=1e-5)
    (figure,) = (draw() for draw in described.figures.values())
    drawn = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, values[start:], atol=1e-3)


def test_times_that_the_training_file_has_not_are_said(tmp_path):
    days = [(f"2020-01-{i + 1:02}", i) for i in range(20)]
    dated, said = write(tmp_path / "dated.csv", days), []
    bare = write(tmp_path / "bare.csv", [(f"day {i}", i) for i in range(20)])
    note = f"{dated}: its rows are taken in their order, as the training data have no times."
    for trained, sentences in ((bare, [note]), (dated, [])):
        style = read_file(trained, log=lambda _: None).style
        said.clear()
        read_in_style(read_table(dated), style, said.append)
        assert [line for line in said if "in their order" in line] == sentences


def test_the_only_numbers_of_a_file_are_the_series(tmp_path):
    style, said = read_file(counted(tmp_path), log=lambda _: None).style, []
    one = write(tmp_path / "one.csv", [(f"day {i}", i) for i in range(9)], ("date", "price"))
    assert read_in_style(read_table(one), style, said.append).values.tolist() == [*range(9)]
    assert f"{one}: the column price is read as value." in said
    two = write(tmp_path / "two.csv", [("day 1", 1, 2)] * 9, ("date", "price", "visitors"))
    with pytest.raises(InputError, match="no column 'value'"):
        read_in_style(read_table(two), style, said.append)
    with pytest.raises(InputError, match="a format for each of its columns"):
        dataclasses.replace(style, formats=())


def test_what_is_missing_never_comes_from_the_future(tmp_path):
    """Values are forward-filled in inputs alone: no target, loss or score has them."""
    cells = ["", *("" if i in (3, 4, 17, 33) else 2 * i for i in range(1, 40))]
    path = write(tmp_path / "a.csv", list(enumerate(cells)))
    said = []
    found = read_file(path, log=said.append)
    values, observed = found.values, found.observed
    assert said == [
        "a.csv: rows are numbered by the column date.",
        "a.csv: one row every 1, from 0 to 39.",
        "a.csv: the first 1 values are missing: dropped.",
        "a.csv: 4 of 39 values are missing: forward-filled in inputs, ignored as targets.",
    ]
    assert values[:5].tolist() == [2, 4, 4, 4, 10] and np.flatnonzero(~observed)[0] == 2
    series = Series(data=path, window=4, horizon=3)
    splits = make_splits(series, series.load(lambda _: None), 0.2, 0)
    scale = splits.target.scale
    for part in (splits.train, splits.val, splits.test):
        unknown = np.isnan(part["targets"])
        assert not np.isnan(part["inputs"]).any() and not unknown.all(1).any()
    assert np.isnan(splits.train["targets"]).sum() == 3 and np.isnan(splits.test["targets"]).any()
    # a model that is right wherever something was measured is perfect
    perfect = np.where(np.isnan(splits.test["targets"]), 1e6, splits.test["targets"])
    tested = tasks.Tested(None, None, {}, splits, np.float32(perfect), None)
    described = tasks.Forecast().describe(tested)
    scores = train.scores(tasks.Forecast(), Hparams(), splits.test, np.float32(perfect))
    assert scores == {"loss": 0, "rmse": 0, "mae": 0}
    drawn = described.figures["forecast"]().axes[0].lines[0].get_ydata()
    tail = np.array(cells[-8:], object)
    np.testing.assert_allclose(drawn, [np.nan if c == "" else c for c in tail], atol=1e-4)
    assert scale > 0


@pytest.mark.parametrize("loss", ["mean_squared_error", "mean_absolute_error", "huber"])
def test_unknown_targets_do_not_count(loss):
    """Nor do they touch the gradient; an example is averaged over what is known of it."""
    loss = losses.LOSSES[loss]
    outputs, targets = jnp.array([[1.0, 2.0], [3.0, 9.0]]), jnp.array([[0.0, jnp.nan], [1.0, 4.0]])
    batch = {"targets": targets}
    each = loss(outputs, batch, Hparams())
    alone = loss(outputs[:1, :1], {"targets": targets[:1, :1]}, Hparams())
    np.testing.assert_allclose(each, [alone[0], loss(outputs, batch, Hparams())[1]])
    gradient = jax.grad(lambda o: loss(o, batch, Hparams()).sum())(outputs)
    assert np.isfinite(gradient).all() and gradient[0, 1] == 0


def test_gaps_of_the_series_that_is_shipped():
    said = []
    dataset = Series("co2").load(said.append)
    assert dataset.split.steps == 2284
    assert "59 of 2284 values are missing" in said[-2]


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"dataset": "nope", "data": None}, "--dataset nope is unknown here: choose co2 or"),
        ({"target": "price"}, "has no column 'price': it has date, value"),
        ({"target": "date"}, "line 2, column date: 'day 0' is not a number"),
        ({"window": 30}, "its train split has .* too few for --window 30"),
        ({"window": 300}, "values, too few for --window 300"),
        ({"horizon": 20}, "too few for --window 5 and --horizon 20"),
        ({"window": 5, "seasonality": 7}, "--window 5 must be at least the season of 7 steps"),
        ({"horizon": -1}, "--horizon -1 must be 1 or more"),
        ({"seasonality": -1}, "--seasonality -1 must be"),
        ({"test_split": 0.0}, "--test-split 0 must be between 0 and 1"),
        ({"test_split": 1.0}, "--test-split 1 must be between 0 and 1"),
    ],
)
def test_refusals(tmp_path, fields, sentence):
    fields = {"data": counted(tmp_path), "window": 5, "horizon": 3, **fields}
    with pytest.raises(InputError, match=sentence):
        series = Series(**fields)
        make_splits(series, series.load(), 0.1, 0)


@pytest.mark.parametrize(
    "step, wanted",
    [("MS", (12, 12, 24)), ("D", (7, 14, 28)), ("h", (24, 24, 72)), ("W", (52, 52, 104)),
     ("QS", (4, 4, 8)), ("YS", (1, 6, 12)), ("B", (5, 10, 20)), ("30min", (48, 48, 96)),
     ("min", (60, 60, 120)), ("2MS", (6, 6, 12)), ("s", (60, 60, 120)), (None, (1, 12, 24))],
)  # fmt: skip
def test_lengths_are_those_of_the_calendar(tmp_path, step, wanted):
    pandas = pytest.importorskip("pandas")
    times = pandas.date_range("2001-01-07", periods=900, freq=step) if step else [""] * 900
    path = write(tmp_path / "a.csv", [(time, i % 5) for i, time in enumerate(times)])
    dataset = Series(data=path).load(lambda _: None)
    assert dataset.examples.style["lengths"] == wanted


@pytest.mark.parametrize("step", ["MS", "QS", "D", "h", "W", None])
def test_every_file_from_24_rows_has_lengths_that_fit(tmp_path, step):
    """With and without a validation split; what is shrunk is said."""
    pandas = pytest.importorskip("pandas")
    for count in (24, 25, 31, 43, 60, 100, 508):
        times = pandas.date_range("2001-01-07", periods=count, freq=step) if step else [""] * count
        said, path = [], write(tmp_path / "a.csv", [(time, i % 5) for i, time in enumerate(times)])
        series = Series(data=path)
        dataset = series.load(said.append)
        for share in (0.0, 0.1):
            splits = make_splits(series, dataset, share, 0)
            assert len(splits.train["targets"]) >= 4 and len(splits.test["targets"])
        season, horizon, window = dataset.examples.style["lengths"]
        assert count < 31 or horizon >= 4 and window > horizon
        usual = calendar_lengths(read_file(path, log=lambda _: None).calendar)
        assert ("too few for a" in said[-1]) == ((season, horizon, window) != usual)
    assert Series(data=path, seasonality=12).load(said.append).examples.style["lengths"][0] == 12


def test_files_that_are_no_series(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.csv").write_text("")
    short = write(tmp_path / "short.csv", [(1, 1)])
    endless = write(tmp_path / "endless.csv", [(i, "inf") for i in range(9)])
    for path, sentence in (
        (tmp_path / "binary.csv", "is not a CSV file with a header"),
        (tmp_path / "empty.csv", "is not a CSV file with a header"),
        (tmp_path / "nowhere.csv", "does not exist"),
        (tmp_path, "is not a file"),
        (short, "has 1 numbers"),
        (endless, "line 2, column value: 'inf' is not a number"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_file(path)


def shop(path, n=400, later=0):
    """Sales that follow a price which is set beforehand, and yesterday's visitors."""
    rng = np.random.default_rng(0)
    price, visitors = rng.normal(3, 1, n + later), rng.normal(50, 9, n + later)
    sales = 100 - 9 * price + np.concatenate([[0], visitors[:-1]])
    rows = [
        (
            str(np.datetime64("2020-01-01") + np.timedelta64(i, "D")),
            price[i],
            visitors[i],
            sales[i] if i < n else "",
        )
        for i in range(n + later)
    ]
    return write(path, rows, ("date", "price", "visitors", "sales"))


def test_covariates_by_hand(tmp_path):
    path = shop(tmp_path / "shop.csv", 60)
    series = Series(data=path, window=5, horizon=2, past_covariates=("visitors",),
                    future_covariates=("price",))  # fmt: skip
    dataset = series.load(lambda _: None)
    splits = make_splits(series, dataset, 0.2, 0)
    table = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(2, 1, 3))
    unit = splits.encoder
    inputs = splits.train["inputs"]
    assert inputs.shape[1:] == (5, 4)
    back = inputs[:, :, 1:] * np.array(unit.covariate_scale)[[0, 1, 1]]
    back += np.array(unit.covariate_mean)[[0, 1, 1]]
    for window in (0, 7):
        now = slice(window, window + 5)
        np.testing.assert_allclose(back[window, :, :2], table[now, :2], atol=1e-3)
        np.testing.assert_allclose(back[window, :, 2], table[window + 2 : window + 7, 1], atol=1e-3)
    # what comes after a border is not in the deviations: the last training window ends before the
    # two steps of its target, and these at the border, 38
    own = table[:36, 0]
    assert unit.covariate_mean[0] == pytest.approx(own.mean())
    assert unit.covariate_scale[0] == pytest.approx(own.std())
    longer = dataclasses.replace(series, horizon=6)
    with pytest.raises(InputError, match="--window of 6 or more"):
        make_splits(longer, longer.load(lambda _: None), 0.2, 0)


@pytest.mark.slow
def test_what_is_known_of_the_future_is_used(place, capsys):
    """A forecast from a file that goes on with the covariates, by the model trained with them."""
    path, asked = shop(place / "shop.csv"), shop(place / "asked.csv", 380, later=20)
    flags = ["--data", str(path), "--target", "sales", "--window", "4", "--horizon", "2",
             "--baseline", "none", "--hparams.learning-rate", "3e-3", "--batch-size", "16",
             "--epochs", "40", "--val-split", "0.25", "--hparams.weight-decay", "0"]  # fmt: skip
    seen = ["--past-covariates", "visitors", "--future-covariates", "price"]
    rmse = {}
    for name, more in (("with", seen), ("without", [])):
        run.main("forecast", forecast.PRESETS, forecast.ARCHITECTURES,
                 [*flags, *more, "--run-dir", name])  # fmt: skip
        results = json.loads((place / name / "results.json").read_text(encoding="utf-8"))
        rmse[name] = results["test"]["rmse"]
        assert 0.7 < results["interval"]["coverage"] <= 1
    assert rmse["with"] < 0.75 * rmse["without"]
    capsys.readouterr()
    predict.command(place / "with", (str(asked),), json_output=True)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    truth = np.loadtxt(shop(place / "all.csv"), delimiter=",", skiprows=1, usecols=3)[380:382]
    assert np.abs(np.array(answer["forecast"]) - truth).max() < 3 * rmse["with"]
    assert answer["coverage"] == 0.9
    assert all(a < b < c for a, b, c in zip(
        answer["low"], answer["forecast"], answer["high"], strict=True))  # fmt: skip
    with pytest.raises(SystemExit):
        predict.command(place / "with", (str(path),), json_output=True)
    assert "price must have 2 rows after the last value" in capsys.readouterr().err
    with pytest.raises(InputError, match="the series: price must have 2 rows after the last value"):
        predict.command(place / "with", (), json_output=True)


def test_an_interval_holds_what_it_says():
    """Errors of another size at every step, the same in validation and test."""
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 2.0, 4.0])
    targets, test = (rng.normal(size=(4000, 3)) * spread for _ in range(2))
    found = tasks.Forecast().calibrate(np.zeros((4000, 3)), {"targets": targets}, Hparams())
    half = np.array(found["half_width"])
    np.testing.assert_allclose((np.abs(test) <= half).mean(0), 0.9, atol=0.02)
    np.testing.assert_allclose(half, 1.645 * spread, rtol=0.08)
    few = {"targets": targets[:10]}
    assert tasks.Forecast().calibrate(np.zeros((10, 3)), few, Hparams()) == {}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"past_covariates": ("nothing",)}, "no column 'nothing'"),
        ({"target": "price", "future_covariates": ("price",)}, "cannot be a covariate"),
        ({"past_covariates": ("date",)}, "is not a number"),
        ({"past_covariates": ("date", "price", "visitors", "sales")}, "cannot be a covariate"),
    ],
)
def test_bad_covariates(tmp_path, flags, sentence):
    with pytest.raises(InputError, match=sentence):
        Series(data=shop(tmp_path / "a.csv", 60), **flags).load(lambda _: None)
    with pytest.raises(InputError, match="are for a file"):
        Series(past_covariates=("price",)).load(lambda _: None)


def test_an_interval_without_its_coverage_is_damaged():
    with pytest.raises(InputError, match="calibration.json is damaged"):
        tasks.intervals.half_width({"half_width": [1.0, 2.0]}, 2)


@pytest.mark.parametrize(
    "times, rows, wanted",
    [
        ("2024-01-31 2024-02-29 2024-03-31", (0, 2, 13), "2024-01-31 2024-03-31 2025-02-28"),
        ("2024-01-30 2024-02-29 2024-03-30 2024-04-30", (2, 13), "2024-03-30 2025-02-28"),
        ("2023-02-28 2023-03-28 2023-04-28", (1, 3), "2023-03-28 2023-05-28"),
        ("2023-09-30 2023-12-31 2024-03-31 2024-06-30", (2, 4), "2024-03-31 2024-09-30"),
        ("2024-03-29 2024-04-30 2024-05-31 2024-08-30", (2, 8), "2024-05-31 2024-11-29"),
        ("2024-01-01 2024-02-01 2024-03-01 2024-06-03 2024-09-02", (9,), "2024-10-01"),
        ("1700-01-01 1701-01-01 1703-01-01", (0, 309), "1700-01-01 2009-01-01"),
        ("2024-02-29 2025-02-28 2026-02-28 2027-02-28 2028-02-29", (5, 8), "2029-02-28 2032-02-29"),
        ("2020-01-15 2020-07-15 2021-01-15", (3,), "2021-07-15"),
        ("2024-05-03 2024-05-06 2024-05-07 2024-05-08", (0, 6), "2024-05-03 2024-05-13"),
        ("1958-03-29 1958-04-05 1958-04-19", (0, 1), "1958-03-29 1958-04-05"),
        ("2024-05-03T22:30 2024-05-03T23:30", (1, 2), "2024-05-03T23:30:00 2024-05-04T00:30:00"),
        ("2024-05-03T22:30:00.250 2024-05-03T22:30:00.500", (2,), "2024-05-03T22:30:00.750"),
    ],
)
def test_the_times_of_rows(times, rows, wanted):
    seconds = np.array(times.split(), "M8[ms]").astype(np.int64) / 1000
    _, calendar = calendars.align_rows(seconds, seconds, "a.csv", lambda _: None)
    assert calendar.stamps(rows) == wanted.split()


@pytest.mark.parametrize(
    "step",
    [
        "D",
        "W",
        "B",
        "MS",
        "ME",
        "QE",
        "QS",
        "YE",
        "YS",
        "h",
        "BME",
        "BMS",
        "2MS",
        "BQE",
        "15min",
        "3D",
    ],
)
def test_a_calendar_goes_on_as_that_of_pandas(tmp_path, step):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2021-01-04", periods=60, freq=step)
    rows = [f"{time:%Y-%m-%d %H:%M},{i % 7}" for i, time in enumerate(index[:40])]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["time,y", *rows, ""]), encoding="utf-8")
    calendar = read_file(path, None, (), lambda _: None).calendar
    found = calendar.stamps(range(40, 60))
    assert [np.datetime64(each) for each in found] == [np.datetime64(t) for t in index[40:]]


def test_a_forecast_has_dates_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    days = np.datetime64("2024-01-01") + np.arange(420)
    rows = [f"{day},{np.sin(i / 4):.3f}" for i, day in enumerate(days)]
    Path("a.csv").write_text("\n".join(["day,y", *rows]), encoding="utf-8")
    flags = ["--data", "a.csv", "--window", "20", "--horizon", "5", "--epochs", "2"]
    flags += ["--baseline", "none", "--run-dir", "run", "--seasonality", "1"]
    run.main("forecast", forecast.PRESETS, forecast.ARCHITECTURES, flags)
    capsys.readouterr()
    predict.command(Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "after the series:" and lines[1].split()[0] == "2025-02-24"
    assert "(" in lines[1] and lines[-2].startswith("90% of the validation values")
    assert Path(lines[-1].removeprefix("figure: ")).stat().st_size > 5000
    Path("new.csv").write_text("\n".join(["day,y", *rows[:200]]), encoding="utf-8")
    predict.command(Path("run"), ("new.csv",), True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["times"][0] == str(days[200]) and len(answer["low"]) == 5
    Path("run/predictions").rename("run/gone")
    Path("run/predictions").write_text("in the way", encoding="utf-8")
    predict.command(Path("run"))  # a figure that fails stops nothing
    assert "figure" not in capsys.readouterr().out


def lines_of(path, header, rows):
    """Writes a CSV file; returns what is read of it, and what is logged."""
    said = []
    return read_file(write(path, rows, header), None, (), said.append), said


DAYS = [datetime.datetime(2023, 12, 20) + datetime.timedelta(days=d) for d in range(50)]
HOURS = [datetime.datetime(2023, 12, 30, 20) + datetime.timedelta(hours=h) for h in range(90)]
MONTHS = [datetime.datetime(1990 + m // 12, m % 12 + 1, 1) for m in range(40)]
WRITTEN = {
    "days": (DAYS, [
        "%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%d %b %Y",
        "%B %d, %Y", "%G-W%V-%u", "%Y|%m|%d", "%Y-%j", "%Y-%m-%d 00:00:00+00:00",
    ]),
    "hours": (HOURS, [
        "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.000", "%m/%d/%Y %I:%M %p", "%d/%m/%Y %H:%M",
        "%s", "%s000", "%d.%m.%Y|%H:%M", "%Y|%m|%d|%H", "%Y%m%dT%H%M",
    ]),
    "months": (MONTHS, [
        "%Y-%m", "%b-%y", "%B %Y", "%m/%Y", "%Y|%m", "%Y|%B", "%Y-%m-28", "%d/%m/%Y", "%Y%m",
    ]),
}  # fmt: skip
PARTS = {"%Y": "Year", "%m": "Month", "%B": "name", "%d": "day", "%H": "hour", "%H:%M": "clock"}


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_a_series_is_the_same_in_any_writing(data):
    times, styles = WRITTEN[data.draw(st.sampled_from(list(WRITTEN)))]
    style = data.draw(st.sampled_from(styles)).replace("%s", "{}")
    stamp = [f"{t.replace(tzinfo=datetime.UTC).timestamp():.0f}" for t in times]
    cells = [t.strftime(style).format(s).split("|") for t, s in zip(times, stamp, strict=True)]
    names = [PARTS.get(part, "when") for part in style.split("|")]
    order = np.arange(len(times))
    if data.draw(st.booleans()):
        order = order[::-1]
    elif data.draw(st.booleans()):
        order = np.random.default_rng(0).permutation(order)
    lost = data.draw(st.sampled_from([(), (9,), (17, 18)]))
    values = np.random.default_rng(1).normal(1e6, 9, len(times)).round(2)
    rows = [[*cells[i], "x", f"{values[i]}"] for i in order if i not in lost]
    with tempfile.TemporaryDirectory() as folder:
        file, said = lines_of(Path(folder) / "a.csv", [*names, "note", "y"], rows)
        path = Path(folder) / "clean.csv"
        clean, _ = lines_of(path, ["t", "y"], [
            (t.isoformat(), "" if i in lost else values[i]) for i, t in enumerate(times)
        ])  # fmt: skip
        source = Series(data=Path(folder) / "a.csv", window=6, horizon=2)
        encoder = make_splits(source, source.load(lambda _: None), 0.0, 0).encoder
        turned = [dict(zip(["y", *names], [float(row[-1]), *row], strict=False)) for row in rows]
        windows = [encoder.parse(given).columns for given in (None, source.data, turned)]
    assert f"times are read from {', '.join(names)}" in said[0]
    for name in ("values", "observed", "covariates"):
        assert np.array_equal(getattr(file, name), getattr(clean, name))
    after = range(len(times), len(times) + 3)
    wanted = clean.calendar.stamps(after)
    if "28" in style:
        wanted = [time[:-2] + "28" for time in wanted]
    assert [time.removesuffix("Z") for time in file.calendar.stamps(after)] == wanted
    for window in windows:
        assert np.array_equal(window["window"][0], encoder.own_window)
        assert window["times"][0].tolist() == list(encoder.own_times)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Europe/London"])
@pytest.mark.parametrize("minutes", [60, 30])
@pytest.mark.parametrize("step", [1, -1])
def test_daylight_saving_is_not_irregular(tmp_path, zone, minutes, step):
    begin = datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC)
    length = datetime.timedelta(minutes=minutes)
    clock = [(begin + length * i).astimezone(zoneinfo.ZoneInfo(zone)) for i in range(12000)]
    rows = [(f"{t:%Y-%m-%d %H:%M}", i) for i, t in enumerate(clock[:9000])]
    file, said = lines_of(tmp_path / "a.csv", ["t", "y"], rows[::step])
    assert said[-1] == f"a.csv: its clock is set for daylight saving time, as in {zone}."
    assert np.array_equal(file.values, np.arange(9000)) and file.observed.all()
    after = file.calendar.stamps(range(9000, 12000))
    assert after == [t.replace(tzinfo=None).isoformat() for t in clock[9000:]]


def test_midnights_of_summer_and_winter(tmp_path):
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    rows = [(t.replace(tzinfo=zone).isoformat(), i) for i, t in enumerate(DAYS)]
    rows += [(f"2024-{m:02}-01T00:00:00+0{1 + (m > 3)}:00", m) for m in range(1, 9)]
    file, _ = lines_of(tmp_path / "a.csv", ["t", "y"], rows[:50])
    assert file.calendar.stamps([50]) == ["2024-02-08"]
    file, _ = lines_of(tmp_path / "a.csv", ["t", "y"], rows[50:])
    assert file.calendar.stamps([8]) == ["2024-09-01"] and file.calendar.step == "month"


STORES = [(s, d) for s in ("north", "south", "west") for d in DAYS]


@pytest.mark.parametrize("header, rows, sentence", [
    ("store week y", [(s, i % 50, i) for i, (s, d) in enumerate(STORES)], "3 series.* by store "),
    ("date store y", [(d.date(), s, 1) for s, d in sorted(STORES, key=lambda x: x[1])], "by store"),
    ("shop kind day y", [(i, j, d.date(), 5) for i in (1, 2) for j in (1, 2, 3) for d in DAYS],
     "6 series, told apart by shop and kind"),
    ("country year y", [(s, 1950 + i % 50, i) for i, (s, d) in enumerate(STORES)], "by country"),
    ("unit year month y", [(u, t.year, t.month, 1) for u in "abcd" for t in MONTHS], "by unit"),
    ("store year y", [(s, 1960 + t, 1) for t in range(40) for s in range(1, 13)], "by store"),
    ("store y", [(s, i) for i, (s, d) in enumerate(STORES)], "by store .north, south, west.: give"),
    ("date k y", [(d.date(), d.weekday(), 1) for d in [*DAYS, DAYS[3]]], "two rows of 2023-12-23"),
    ("date y", [*((d.date(), 1) for d in DAYS), ("Total", 50)], "line 52, column date: 'Total' is"),
    ("date y", [*((d.date(), 1) for d in DAYS), ("", 50)], "line 52, column date: '' is not"),
    ("date y", [(f"01/{m:02}/2024", m) for m in range(1, 13)], "12/31/2024 or as 31/12/2024"),
])  # fmt: skip
def test_files_that_are_not_one_series(tmp_path, header, rows, sentence):
    with pytest.raises(InputError, match=sentence):
        lines_of(tmp_path / "a.csv", header.split(), rows)


@pytest.mark.parametrize("header, rows", [
    ("note y", [(f"run {i}", i) for i in range(50)]),
    ("weekday y", [(f"{d:%a}", i) for i, d in enumerate(DAYS)]),
    ("hour y", [(i % 24, i) for i in range(96)]),
    ("x y", [(f"{np.sin(i):.2f}", i) for i in range(50)]),
    ("level y", [(int(1500 + 400 * np.sin(i)), i) for i in range(50)]),
    ("season y", [("winter" if i < 20 else "summer", i) for i in range(50)]),
    ("week day y", [(i // 7, i % 7, i) for i in range(70)]),
])  # fmt: skip
def test_it_is_said_that_there_are_no_times(tmp_path, header, rows):
    file, said = lines_of(tmp_path / "a.csv", header.split(), rows)
    assert said[0] == "no column of a.csv has times: rows are taken in the order of the file."
    assert file.calendar is None and np.array_equal(file.values, np.arange(len(rows)))


def encoder_of(path, **fields):
    source = Series(data=path, window=8, horizon=3, **fields)
    return make_splits(source, source.load(lambda _: None), 0.0, 0).encoder


def test_a_later_file_has_the_training_files_step_and_times(tmp_path, capsys):
    rows = [(f"{d:%d.%m.%Y}", i) for i, d in enumerate(DAYS)]
    encoder = encoder_of(write(tmp_path / "train.csv", rows, ("day", "y")))
    assert encoder.file.times == ("day",) and encoder.file.step == "86400"

    def asked(rows, header=("day", "y")):
        return encoder.parse(write(tmp_path / "new.csv", rows, header)).columns

    own = encoder.parse(None).columns
    more = asked(
        [(i * 3, y, t, "?") for i, (t, y) in enumerate(rows[::-1])], ("a", "y", "day", "b")
    )
    for name in own:
        assert np.array_equal(own[name], more[name])
    capsys.readouterr()
    iso = asked([(f"{d:%Y-%m-%d}", i) for i, d in enumerate(DAYS)])
    assert (
        np.array_equal(own["window"], iso["window"])
        and iso["times"].tolist() == own["times"].tolist()
    )
    said = capsys.readouterr().err
    assert "times are read as 2024-12-31, where the training data have 31.12.2024" in said
    for odd, sentence in (
        (rows[::2], "a row every 2 days, where the training data have one every day"),
        ([(f"{d:%d.%m.%Y}", 1) for d in MONTHS], "every month, where the training data"),
        ([*rows[:20], ("soon", 1)], "line 22, column day: 'soon' is not a time such as 31.12.2024"),
        ([*rows, rows[3]], "two rows of 2023-12-23"),
        ([rows[i] for i in (0, 1, 2, 3, 10, 11, 12, 30, 49)], "irregular times, day to 19 days"),
        ([(f"01/{m:02}/2024", 1) for m in range(1, 12)], "new.csv, column day: times such as"),
    ):
        with pytest.raises(InputError, match=sentence):
            asked(odd)
    asked([(y,) for _, y in rows], ("y",))
    assert "has no column day" in capsys.readouterr().err
    berlin = [(f"{d.isoformat()}+01:00", i) for i, d in enumerate(DAYS)]  # is not London's clock
    assert asked(berlin)["times"][0][0] == "2024-02-07T23:00:00Z"
    # Monday to Friday are days too
    assert asked(rows[5:7] + rows[8:15])["times"][0][0] == "2024-01-04"


def test_typed_times_are_those_of_the_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    for step, written in (("MS", "%b %Y"), ("h", "%m/%d/%Y %I:%M %p"), ("D", "%s"), ("ME", "%x")):
        index = pandas.date_range("2021-03-01", periods=40, freq=step)
        seconds = [int(time.timestamp()) for time in index]
        cells = seconds if written == "%s" else index.strftime(written)
        path = write(tmp_path / "a.csv", list(zip(cells, range(40), strict=True)), ("t", "y"))
        encoder = encoder_of(path)
        typed = cells if written == "%s" else index
        frame = pandas.DataFrame({"y": np.arange(40.0), "t": typed})
        iso = [
            {"t": str(t) if written == "%s" else t.isoformat(), "y": i} for i, t in enumerate(typed)
        ]
        for table in (frame, frame[::-1], iso, path):
            columns = encoder.parse(table).columns
            assert np.array_equal(columns["window"][0], encoder.own_window), (step, type(table))
            assert columns["times"][0].tolist() == list(encoder.own_times)


def test_rounding_is_no_scale(tmp_path):
    rows = [(str(d.date()), 0.1 * i, 0.1, 7) for i, d in enumerate(DAYS)]
    path = write(tmp_path / "a.csv", rows, ("t", "y", "c", "k"))
    said = []
    source = Series(data=path, window=8, horizon=1, target="y", past_covariates=("c", "k"))
    encoder = make_splits(source, source.load(said.append), 0.0, 0, said.append).encoder
    assert encoder.target.scale == 1 and encoder.covariate_scale == (1, 1)
    assert "the series y changes by the same at every step: its scale is 1." in said


def test_large_offsets_survive(tmp_path):
    """What is centered in float64 loses nothing: a meter at 120,000,000, seconds since 1970."""
    wave = np.sin(np.arange(50)).round(3)
    tables = {}
    for name, offset in (("small", 0.0), ("large", 120_000_000.0)):
        rows = [(str(d.date()), 1.7e9 * (offset > 0) + 60 * i, w + offset)
                for i, (d, w) in enumerate(zip(DAYS, wave, strict=True))]  # fmt: skip
        path = write(tmp_path / f"{name}.csv", rows, ("t", "clock", "y"))
        source = Series(data=path, window=8, horizon=3, past_covariates=("clock",))
        splits = make_splits(source, source.load(lambda _: None), 0.2, 0)
        tables[name] = splits.train["inputs"], splits.test["inputs"], splits.train["targets"]
    for small, large in zip(*tables.values(), strict=True):
        np.testing.assert_allclose(small, large, atol=2e-6)


@pytest.mark.parametrize("header, row, right", [
    ("y note", lambda i: (i / 8, ("sun", "rain")[i % 2]), "y"),
    ("a y year month", lambda i: (i % 5, i**2, 2000 + i // 12, i % 12 + 1), "y"),
    ("a y year", lambda i: (i % 5, i**2, 1950 + i), "y"),
    ("day a y", lambda i: (f"{DAYS[i]:%Y-%m-%d}", i % 5, i % 7), "y"),
])  # fmt: skip
def test_the_last_column_of_values_is_forecast_and_said(tmp_path, header, row, right):
    file, said = lines_of(tmp_path / "a.csv", header.split(), [row(i) for i in range(36)])
    assert file.style.columns == (right,)
    assert f"a.csv: {right} is forecast (--target for another)." in said


def test_a_series_has_a_header(tmp_path):
    path = write(tmp_path / "a.csv", [(i, i / 8) for i in range(2, 40)], ("1", "-0.78"))
    with pytest.raises(InputError, match=r"a.csv has numbers in its first line \(1, -0.78\): "):
        read_file(path, None, (), print)
