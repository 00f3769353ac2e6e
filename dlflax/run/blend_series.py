"""The blend of a forecast: linear autoregressions, networks for their residual, exponential
smoothing, the theta method and naive forecasts.

Validation is by rolling origins (Tashman 2000): each fold is a span of origins, and its models are
fitted to what is before it. The weights that the folds choose are those of models fitted again to
everything before the test split.
"""

import time
from typing import Any, NamedTuple

import numpy as np

from dlflax import train
from dlflax.baselines import fit_smoothing, linear
from dlflax.config.config import Config
from dlflax.data.order import batch_order
from dlflax.errors import InputError
from dlflax.files import write_csv
from dlflax.models import autoregression
from dlflax.models.autoregression import Autoregression, SeasonalNaive
from dlflax.models.smoothing import ExponentialSmoothing, Theta
from dlflax.report.progress import announcement, progress_bar
from dlflax.run.average import NETWORK, Bagged, Members, average
from dlflax.run.prepare import Setup
from dlflax.run.results import Record
from dlflax.run.time_limit import EPOCHS, MEASURED, Clock, plan_epochs
from dlflax.train.layout import layout_for
from dlflax.train.population import Population

SPAN = 0.3  # of the steps before the test split: the origins of the folds
SEEDS = 3  # networks that are averaged
EQUAL_SHARE = 0.5  # of the weights: overlapping forecasts choose less surely than their number
MIN_STEPS = 30  # of an epoch, in which examples of a short series are repeated


class Window(NamedTuple):
    """Windows of all training examples, and targets, both maybe standardized."""

    is_scaled: bool
    inputs: np.ndarray
    """float32 (n, window, columns)."""
    targets: np.ndarray
    """float32 (n, horizon), NaN where nothing was observed."""
    mean: np.ndarray
    """(n, 1)."""
    scale: np.ndarray
    """(n, 1)."""


def fit(config: Config, setup: Setup, record: Record, clock: Clock) -> Bagged:
    """Trains the members, and returns their average as a finished run. setup: without a validation
    split. Raises InputError and RunError."""
    begun, splits = time.perf_counter(), setup.start.splits
    first, encoder = splits.examples["train"].columns["first"], splits.encoder
    fold_of = assign_origins(first, encoder.horizon, encoder.window, config.bag_folds)
    held_out = np.flatnonzero(fold_of >= 0)
    folds = [np.flatnonzero(fold_of == fold) for fold in range(fold_of.max() + 1)]
    # of each fold and of the last fit: the examples whose targets are before the first origin
    rows = [np.flatnonzero(first + encoder.horizon <= first[fold[0]]) for fold in folds]
    rows.append(np.arange(len(first)))
    if not len(rows[0]):
        raise InputError(
            f"--window {encoder.window} and --horizon {encoder.horizon} leave {len(first)} windows "
            "to train and validate on: give less, or --bag-folds 0 --val-split 0."
        )
    with announcement("fitting linear autoregressions ...", record.log):
        windows = [standardize(splits.train, encoder.window, scaled) for scaled in (False, True)]
        fits = [fit_linear(window, rows, folds) for window in windows]
    smoothed = []
    if config.blend == "auto":  # before the networks, whose epochs are planned by the time left
        with announcement("fitting exponential smoothing ...", record.log):
            smoothed = smooth_series(setup, config.hparams, folds)
    best = int(np.argmin([loss for loss, _, _ in fits]))
    members = [fit_networks(config, setup, windows[best], fits[best], rows, folds, record, clock)]
    for window, (_, params, outputs) in zip(windows, fits, strict=True):
        model = Autoregression(encoder.window, encoder.horizon, window.is_scaled)
        variables = {"params": {"linear": params[-1]}}
        name = "linear autoregression" + ", scaled" * window.is_scaled
        members.append(Members(name, model, [variables], outputs))
    members = [member._replace(outputs=member.outputs[held_out]) for member in members]
    members = [*members, *smoothed] if config.blend == "auto" else members[:1]
    validation = {name: array[held_out] for name, array in splits.train.items()}
    return average(config, setup, members, validation, begun, record.say, EQUAL_SHARE)


def assign_origins(first: np.ndarray, horizon: int, window: int, count: int) -> np.ndarray:
    """Returns the fold of each origin, int (n,), -1 for those that only train. first: int (n,),
    increasing."""
    least = first[0] + horizon + max(2, window // 4)  # origins before are too few to train on
    least = min(max(least, first[-1] - round(SPAN * first[-1])), first[-1])
    rows = np.flatnonzero(first >= least)
    fold_of = np.full(len(first), -1)
    for fold, part in enumerate(np.array_split(rows, min(count, len(rows)))):
        fold_of[part] = fold
    return fold_of


def standardize(data: dict[str, Any], window: int, is_scaled: bool) -> Window:
    """Returns the windows of all examples as `Autoregression` sees them, and their targets."""
    inputs = data["inputs"][:, -window:, :-1]
    inputs, mean, scale = autoregression.standardize(inputs, is_scaled, np)
    return Window(is_scaled, inputs, (data["targets"] - mean) / scale, mean, scale)


def fit_linear(window: Window, rows, folds) -> tuple[float, list[dict[str, Any]], np.ndarray]:
    """Returns (loss on the folds, parameters, outputs (n, horizon) of the examples in folds).

    Parameters are of each fold and of the last fit, by the strength that the folds choose."""
    x, targets = np.float64(window.inputs.reshape(len(window.inputs), -1)), window.targets
    steps = np.arange(targets.shape[1])
    filled = np.float64([  # missing targets are interpolated
        np.interp(steps, steps[~np.isnan(row)], row[~np.isnan(row)]) for row in targets
    ])  # fmt: skip
    settings: list = []
    for used in rows:
        for i, fit in enumerate(linear.fit_numbers(x[used], filled[used])):
            settings.extend([[]] * (i == len(settings)))
            settings[i] = [*settings[i], tuple(map(np.float32, fit))]
    best: Any = (np.inf, [], targets)
    for models in settings:
        outputs = np.full_like(targets, np.nan)
        for fold, (kernel, bias) in zip(folds, models, strict=False):
            outputs[fold] = x[fold] @ kernel + bias
        outputs = outputs * window.scale + window.mean
        loss = np.nanmean((outputs - targets * window.scale - window.mean) ** 2)
        if loss < best[0]:
            best = loss, [{"kernel": kernel, "bias": bias} for kernel, bias in models], outputs
    return best


def fit_networks(
    config: Config, setup: Setup, window: Window, linear_fit, rows, folds, record: Record,
    clock: Clock,
) -> Members:  # fmt: skip
    """Trains networks for the residual of the linear autoregression, and writes metrics.csv.

    Those of each fold and of the last fit are one population. Outputs are of all examples."""
    (_, params, _), recipe, n = linear_fit, setup.start.recipe, len(window.inputs)
    flat = window.inputs.reshape(n, -1)
    fitted = [flat @ fit["kernel"] + fit["bias"] for fit in params]
    data = {
        "inputs": np.tile(window.inputs, (len(rows), 1, 1)),
        "targets": np.concatenate([window.targets - outputs for outputs in fitted]),
    }
    size = max(MIN_STEPS * recipe.batch_size, n)
    orders = [
        batch_order(data, recipe.batch_size, np.int32(i * n + np.resize(used, size)))
        for i, used in enumerate(rows)
        for _ in range(SEEDS)
    ]
    seeds = [[config.seed + seed for seed in range(SEEDS)] * len(rows)]
    layout = layout_for(recipe, config.hparams, data["inputs"][:1], SEEDS * len(rows))

    def train_all(epochs, on_epoch, should_stop=lambda: False):
        population = Population(
            recipe, [config.hparams], seeds, data, None, epochs=epochs, layout=layout,
            orders=orders,
        )  # fmt: skip
        population.train(epochs, on_epoch, should_stop)
        return population

    def measure():
        ends: list[float] = []
        train_all(
            EPOCHS, lambda: ends.append(time.perf_counter()),
            lambda: len(ends) > 1 and ends[-1] - ends[0] > MEASURED * clock.limit,
        )  # fmt: skip
        return float(np.diff(ends).min())

    config = plan_epochs(config, record.folder, clock, measure, record.log)
    record.say(f"training {SEEDS * len(rows)} networks: {SEEDS} for each of {len(folds)} spans of "
               f"origins, and {SEEDS} for all: {config.epochs:,} epochs")  # fmt: skip
    with progress_bar("epochs", config.epochs) as advance:
        population = train_all(config.epochs, lambda: advance(1))
    write_csv(record.folder / "metrics.csv", [
        {name: float(np.mean([row[name] for row in same])) for name in same[0]}
        for same in zip(*(history for row in population.histories for history in row), strict=True)
    ])  # fmt: skip
    last = population.last({"inputs": window.inputs, "targets": window.targets})
    last = {divmod(member, SEEDS): results for (_, member), results in last.items()}
    outputs = np.full_like(window.targets, np.nan)
    for i, fold in enumerate(folds):
        residual = np.mean([last[i, seed][1][fold] for seed in range(SEEDS)], 0)
        outputs[fold] = (fitted[i][fold] + residual) * window.scale[fold] + window.mean[fold]
    horizon = window.targets.shape[1]
    model = Autoregression(window.inputs.shape[1], horizon, window.is_scaled, recipe.model)
    variables = [
        {name: {"network": tree} for name, tree in last[len(folds), seed][0].items()}
        for seed in range(SEEDS)
    ]
    for tree in variables:
        tree["params"]["linear"] = params[-1]
    return Members(NETWORK, model, variables, outputs)


def smooth_series(setup: Setup, hparams, folds) -> list[Members]:
    """Returns exponential smoothing, the theta method and naive forecasts, with outputs for the
    examples of the folds."""
    splits = setup.start.splits
    encoder, inputs = splits.encoder, splits.train["inputs"]
    # what is before a fold is the past of its first example
    pasts = [*(inputs[fold[0]] for fold in folds), splits.test["inputs"][0]]
    series = np.float64(pasts)[:, :, [0, -1]].sum(2)
    period = encoder.target.period
    fits = fit_smoothing.fit(series, period)
    thetas = fit_smoothing.fit_theta(series, period)
    sizes = {"period": period, "num_outputs": encoder.horizon}
    models: dict[str, tuple[Any, list]] = {
        "exponential smoothing": (ExponentialSmoothing(**sizes), [
            {"smoothing": {"numbers": np.float32([x[i] for x in fits.numbers]),
                           "offsets": np.float32(fits.offsets[i])}}
            for i in range(len(series))
        ]),
        "theta": (Theta(**sizes), [{"smoothing": {"numbers": np.float32(row)}} for row in thetas]),
        "last value": (SeasonalNaive(1, encoder.horizon), [{}] * len(series)),
    }  # fmt: skip
    if period > 1:
        models["last season"] = SeasonalNaive(**sizes), [{}] * len(series)
    task, hparams = setup.start.recipe.task, train.as_float32(hparams.evaluation())
    members, size = [], len(splits.test["inputs"])
    for name, (model, variables) in models.items():
        recipe, outputs = train.Recipe(model, task), []
        for fold, tree in zip(folds, variables, strict=False):
            # in pieces of the test split's size, for which a program is needed anyway
            rows = np.resize(fold, -(-len(fold) // size) * size).reshape(-1, size)
            state = train.from_variables(tree)
            pieces = [train.predict(recipe, state, hparams, inputs[piece]) for piece in rows]
            outputs.append(np.concatenate(pieces)[: len(fold)])
        members.append(Members(name, model, [variables[-1]], np.concatenate(outputs)))
    return members
