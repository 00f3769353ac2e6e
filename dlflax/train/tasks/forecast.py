"""The values of a series that follow a window of its past."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import tyro

from dlflax.data import series
from dlflax.data.target import Steps, Target
from dlflax.errors import InputError
from dlflax.files import escape_controls
from dlflax.report import figures
from dlflax.report.tables import number_text, scale_of_steps
from dlflax.train import baselines, calibration, losses, metrics
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested

COVERAGE = 0.9  # of the intervals


@dataclasses.dataclass(frozen=True)
class Forecast(Task):
    """The values of a series that follow a window of its past, as `data.Series` gives them: targets
    and outputs float (n, horizon), less the window's last value and divided by a scale. Targets
    that were not observed are NaN: a loss of your own has to leave them out, as `losses` do."""

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value decides the best epoch: loss, rmse or mae."""
    scale: Annotated[float, tyro.conf.Suppress] = dataclasses.field(
        default=1.0, compare=False, metadata={"resume": "free"}
    )
    """By which the data source divided the series: mae is in the series' unit. The data decide; the
    traced step does not read it."""

    @property
    def metrics(self):
        return metrics.ForecastRMSE(scale=self.scale), metrics.ForecastMAE(scale=self.scale)

    def for_data(self, splits):
        """Returns this task with the scale of these data."""
        return dataclasses.replace(self, scale=_steps_of(splits.target).scale)

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.targets_of(arrays, "forecast")
        if targets.dtype.kind != "f" or targets.ndim != 2:
            _refuse(targets)
        if np.isinf(targets).any():
            raise InputError("--task forecast: a target is infinite: write NaN for a missing one.")
        task.check_outputs(outputs, targets.shape[1:], f"a horizon of {targets.shape[1]}")

    def check(self, splits, outputs) -> None:
        if not isinstance(splits.target, Steps):
            _refuse(splits.train["targets"])

    def model_fields(self, splits) -> dict[str, Any]:
        return {"num_outputs": task.targets_of(splits.train, "forecast").shape[-1]}

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns half the width of the interval around a forecast that has COVERAGE of the
        validation values, at each step. It is the quantile of conformal prediction (Lei et al.
        2018), although windows overlap."""
        errors = np.abs(np.asarray(outputs, np.float64) - batch["targets"])
        known = (~np.isnan(errors)).sum(0)
        if known.min() < calibration.FEWEST:
            return {}
        shares = np.minimum(1, np.ceil((known + 1) * COVERAGE) / known)
        half = [np.nanquantile(e, share) for e, share in zip(errors.T, shares, strict=True)]
        return {"coverage": COVERAGE, "half_width": [float(each) for each in half]}

    def baselines(self, model, splits):
        return baselines.of_series(splits)

    def describe(self, tested: Tested) -> Description:
        """The forecasts against the naive and the seasonal-naive one, in the series' own unit, and
        how many of the values are in the interval of `calibrate`."""
        splits, outputs = tested.splits, tested.outputs
        test, target = splits.test, _steps_of(splits.target)
        scale, period = target.scale, target.period
        horizon = outputs.shape[1]
        forecasts = {
            "model": outputs,
            "naive": series.naive(test["inputs"], horizon),
            "seasonal_naive": series.seasonal_naive(test["inputs"], horizon, period),
        }
        errors = {name: scale * (each - test["targets"]) for name, each in forecasts.items()}
        scores = {
            name: {"rmse": float(np.sqrt(np.nanmean(e**2))), "mae": float(np.nanmean(np.abs(e)))}
            for name, e in errors.items()
        }

        half, results = half_width(tested.calibration, horizon), {"forecasts": scores}
        if half is not None:
            known = ~np.isnan(test["targets"])
            inside = (np.abs(outputs - test["targets"]) <= half)[known].mean()
            results["interval"] = {
                "coverage_wanted": tested.calibration["coverage"], "coverage": float(inside),
                "mean_width": float(2 * scale * np.mean(half)),
            }  # fmt: skip

        def draw():
            last, first = test["last"], splits.examples["test"].columns["first"]
            first = first - first[0]
            values = {name: last + scale * each for name, each in forecasts.items()}
            truth = np.full(first[-1] + horizon, np.nan)  # what was not observed stays a gap
            truth[first[:, None] + np.arange(horizon)] = last + scale * test["targets"]
            shown = np.flatnonzero(first % horizon == 0)
            pieces = {
                name: [(int(first[i]), values[name][i]) for i in shown]
                for name in ("model", "seasonal_naive")
            }
            names = ("model", "seasonal_naive", "naive")
            squares = {name: np.ma.masked_invalid(errors[name] ** 2) for name in names}
            by_step = {name: np.sqrt(squares[name].mean(0)).filled(np.nan) for name in names}
            return figures.forecast(truth, pieces, by_step, None if half is None else scale * half)

        return Description(results=results, figures={"forecast": draw})

    def predictions(self, outputs, batch, target, calibration):
        """The forecast, and the ends of its intervals, in the series' unit."""
        scale = _steps_of(target).scale
        values = batch["last"] + scale * outputs
        half = half_width(calibration, values.shape[1])
        if half is None:
            return {"forecast": values}
        reach = scale * half[None]
        return {"forecast": values, "low": values - reach, "high": values + reach}

    def answers(self, asked: Asked):
        """Returns the steps ahead with their times and intervals, a line each, and a figure."""
        answers, found = [], asked.predictions
        batch, scale = asked.batch, _steps_of(asked.target).scale
        for i, (each, row) in enumerate(zip(asked.inputs, found["forecast"], strict=True)):
            values = {asked.noun: each, "forecast": row.tolist()}
            if (times := asked.columns["times"][i].tolist())[0]:
                values["times"] = times
            band = None
            if "low" in found:
                band = found["low"][i], found["high"][i]
                low, high = (ends.tolist() for ends in band)
                values |= {"coverage": asked.calibration["coverage"], "low": low, "high": high}
            lines = [f"after {escape_controls(each)}:"]
            spread = scale_of_steps(row.tolist(), float(scale))
            for step, numbers in enumerate(zip(row, *band or (), strict=True)):
                value, *ends = (number_text(float(number), spread) for number in numbers)
                ends = f"  ({' to '.join(ends)})" if ends else ""
                lines.append(f"  {times[step] or step + 1}  {value}{ends}")
            if band:
                share = f"{values['coverage']:.0%}"
                lines.append(f"{share} of the validation values lay in such brackets.")
            if asked.folder:
                past = batch["last"][i] + scale * batch["inputs"][i, :, 0]
                figure = figures.future_forecast(past, row, band, times)
                if made := figures.save_prediction(figure, asked.folder, each):
                    values["picture"] = str(made)
                    lines.append(f"picture: {made}")
            answers.append(("\n".join(lines), values))
        return answers


def _refuse(targets):
    raise InputError(
        "--task forecast needs a series (data.Series), float (n, horizon); these targets are "
        f"{task.described(targets)}: use another --task."
    )


def half_width(calibrated, horizon: int) -> np.ndarray | None:
    """float (horizon,), in units of the scale; None where there is none. InputError for one of
    another length."""
    if "half_width" not in calibrated:
        return None
    if "coverage" not in calibrated:
        raise InputError("calibration.json is damaged: it has half_width, but no coverage.")
    found = np.atleast_1d(calibrated["half_width"])
    if len(found) != horizon:
        raise InputError(
            f"calibration.json is damaged: it has {len(found)} intervals for {horizon} steps."
        )
    return found


def _steps_of(target: Target) -> Steps:
    """The target of a forecast: one without a unit where the data are no series."""
    return target if isinstance(target, Steps) else Steps((), 1.0, 1)
