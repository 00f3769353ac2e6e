"""The blend of a forecast: rolling origins, autoregressions, its runs and what they predict."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import dlflax
from dlflax import run
from dlflax.baselines import linear
from dlflax.data import Series, Steps, make_splits
from dlflax.models import autoregression
from dlflax.run import blend_series
from dlflax.train import tasks
from experiments import forecast

RNG = np.random.default_rng(0)


def write_months(path, count=60, least=0.0):
    months = np.arange("2001-01", "2031-01", dtype="datetime64[M]")[:count]
    values = np.maximum(least, 20 + np.arange(count) / 4 + 9 * np.sin(np.arange(count) * np.pi / 6))
    values += RNG.normal(size=count)
    lines = [f"{month}-01,{value:.3f}" for month, value in zip(months, values, strict=True)]
    Path(path).write_text("\n".join(["month,sales", *lines]), encoding="utf-8")
    return values


@pytest.mark.parametrize("count", [3, 5, 12, 60, 400])
@pytest.mark.parametrize("horizon", [1, 4, 12])
def test_a_fold_is_fitted_to_what_is_before_it(count, horizon):
    first = 24 + np.arange(count)
    fold_of = blend_series.assign_origins(first, horizon, 24, 4)
    folds = [first[fold_of == fold] for fold in range(fold_of.max() + 1)]
    assert 1 <= len(folds) <= 4 and folds[-1][-1] == first[-1]
    np.testing.assert_array_equal(np.concatenate(folds), np.arange(folds[0][0], first[-1] + 1))
    assert count <= horizon or (first + horizon <= folds[0][0]).any()  # something to train on


@pytest.mark.parametrize("is_scaled", [False, True])
def test_linear_autoregressions_are_those_of_scikit_learn(is_scaled):
    """Held-out outputs, and the module's on windows as they come, with other columns."""
    inputs = np.float32(RNG.normal(size=(60, 9, 3)))
    targets = np.float32(inputs[:, -4:, 0] @ RNG.normal(size=(4, 2)) + RNG.normal(size=(60, 2)))
    targets[7] = [np.nan, targets[7, 1]]
    window = blend_series.standardize({"inputs": inputs, "targets": targets}, 5, is_scaled)
    folds, rows = [np.arange(40, 50), np.arange(50, 60)], [np.arange(38), np.arange(48)]
    loss, params, outputs = blend_series.fit_linear(window, [*rows, np.arange(60)], folds)
    x = inputs[:, -5:, :2].copy()
    mean, scale = np.zeros((60, 1)), np.ones((60, 1))
    if is_scaled:
        mean = x[:, :, :1].mean(1)
        scale = np.sqrt(x[:, :, :1].var(1) + autoregression.MIN_VARIANCE)
        x[:, :, 0] = (x[:, :, 0] - mean) / scale
    x, y = x.reshape(60, -1), (targets - mean) / scale
    y[7, 0] = y[7, 1]  # the nearest that was observed
    expected = {}
    for alpha in linear.ALPHAS:
        models = [Ridge(alpha).fit(x[used], y[used]) for used in rows]
        expected[alpha] = [
            model.predict(x[fold]) * scale[fold] + mean[fold]
            for model, fold in zip(models, folds, strict=True)
        ]
    truth = [targets[fold] for fold in folds]
    losses = {a: np.mean((np.array(found) - truth) ** 2) for a, found in expected.items()}
    best = min(losses, key=losses.get)
    assert loss == pytest.approx(losses[best], rel=1e-4)
    np.testing.assert_allclose(outputs[40:], np.concatenate(expected[best]), atol=1e-4)
    model = autoregression.Autoregression(5, 2, is_scaled)
    found = model.apply({"params": {"linear": params[1]}}, inputs[50:])
    np.testing.assert_allclose(found, outputs[50:], atol=1e-4)


def test_the_history_of_a_window(tmp_path):
    """It ends with the window, and is NaN before the series; one more column has the last value."""
    values = write_months(tmp_path / "a.csv")
    values = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1, usecols=1)
    series = Series(data=tmp_path / "a.csv").for_blend()
    splits = make_splits(series, series.load(lambda _: None), 0.0, 0)
    encoder, first = splits.encoder, splits.examples["train"].columns["first"]
    assert splits.train["inputs"].shape[1:] == (200, 2) and encoder.window < 24
    scale = encoder.target.scale
    for i in (0, len(first) - 1):
        past, level = splits.train["inputs"][i].T
        np.testing.assert_allclose(level * scale, values[first[i] - 1], rtol=1e-6)
        np.testing.assert_allclose((past + level)[-first[i] :] * scale, values[: first[i]],
                                   rtol=1e-4)  # fmt: skip
        assert np.isnan(past[: -first[i]]).all()
    assert len(encoder.own_window) == 60  # saved without what is missing
    own, read = encoder.parse(None), encoder.parse(tmp_path / "a.csv")
    np.testing.assert_array_equal(own.columns["window"], read.columns["window"])


def test_no_forecast_is_negative_where_the_past_is_not():
    outputs, batch = np.array([[-3.0, 1.0]]), {"last": np.array([[2.0]])}
    fitted = {"coverage": 0.9, "half_width": [1.0, 4.0]}
    task = tasks.Forecast()
    target = Steps(("y",), 2.0, 1)
    free = task.predictions(outputs, batch, target, fitted)
    assert free["forecast"].tolist() == [[-4, 4]] and free["low"].tolist() == [[-6, -4]]
    held = task.predictions(outputs, batch, Steps(("y",), 2.0, 1, True), fitted)
    assert held["forecast"].tolist() == [[0, 4]] and held["low"].tolist() == [[0, 0]]
    assert held["high"].tolist() == [[0, 12]]


def test_a_run_is_the_weighted_mean_of_its_members(zoo):
    folder = zoo("sunspots")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    members = {member["name"]: member for member in results["members"]}
    assert {"network", "linear autoregression", "exponential smoothing", "theta",
            "last season"} <= set(members)  # fmt: skip
    assert sum(member["weight"] for member in members.values()) == pytest.approx(1)
    least = min(member["val"]["loss"] for member in members.values())
    for member in members.values():  # those that are nearly as good have a part
        assert member["weight"] > 0.05 or member["val"]["loss"] > 2 * least
    assert results["interval"]["coverage_wanted"] == 0.9 and results["interval"]["coverage"] > 0.6
    assert results["test"]["rmse"] < results["forecasts"]["seasonal_naive"]["rmse"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [("--window 40 --horizon 8", "leave 1 windows to train and validate on"),
     ("--horizon 30", "give --horizon at most 12")],
)  # fmt: skip
def test_lengths_without_a_fold_are_refused(flags, sentence, place, capsys):
    write_months("a.csv")
    with pytest.raises(SystemExit) as end:
        run.main("forecast", forecast.PRESETS, forecast.ARCHITECTURES,
                 ["--data", "a.csv", *flags.split()])  # fmt: skip
    assert end.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_series_by_every_way(place):
    """Trained again it has the same numbers; saved, loaded and exported it predicts the same."""
    write_months("a.csv", 26)
    flags = ["--data", "a.csv", "--epochs", "2", "--baseline", "none", "--model.features", "8"]
    for name in ("r", "s"):
        run.main("forecast", forecast.PRESETS, forecast.ARCHITECTURES, [*flags, "--run-dir", name])
    results = [json.loads(Path(name, "results.json").read_text()) for name in ("r", "s")]
    assert results[0]["members"] == results[1]["members"]
    assert results[0]["test"] == results[1]["test"]
    quiet = {"log": lambda _: None}
    model = dlflax.load("r", **quiet)
    (own,) = model.predict("a.csv")
    assert len(own["forecast"]) == 5 and own["times"][0] == "2003-03-01"
    (saved,) = dlflax.load(model.save("saved"), **quiet).predict("a.csv")
    assert saved["forecast"] == own["forecast"]
    encoder = model._predictor.encoder
    raw = np.float32(encoder.raw(encoder.parse(Path("a.csv"))))
    exported = jax.export.deserialize(bytearray(model.export("stablehlo", "m.bin").read_bytes()))
    found = np.ravel(jax.tree.leaves(exported.call(raw))[0])
    np.testing.assert_allclose(found, own["forecast"], rtol=1e-4)
