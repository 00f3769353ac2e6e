"""Forecast: the next values of a series after a window of its past."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import tyro

from dlflax.baselines import reference_models
from dlflax.data.series import source as series
from dlflax.data.target import Steps, Target
from dlflax.errors import InputError
from dlflax.files import escape_controls
from dlflax.report import figures
from dlflax.report.tables import number_text, scale_of_steps
from dlflax.train import losses, metrics
from dlflax.train.tasks import intervals, task
from dlflax.train.tasks.task import Asked, Description, Task, Tested

NEEDED = "a series (data.Series), float (n, horizon)"


@dataclasses.dataclass(frozen=True)
class Forecast(Task):
    """The next values of a series after a window of its past (`data.Series`). Targets and outputs:
    float (n, horizon), minus the window's last value, divided by a scale. Missing targets are NaN;
    your own loss has to ignore them, as those in `losses` do."""

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value selects the best epoch: loss, rmse or mae."""
    scale: Annotated[float, tyro.conf.Suppress] = dataclasses.field(
        default=1.0, compare=False, metadata={"resume": "free"}
    )
    """Scale, by which the data source divided the series: rmse and mae are in the series' unit. Set
    from the data; the traced step does not read it."""

    @property
    def metrics(self):
        return metrics.ForecastRMSE(scale=self.scale), metrics.ForecastMAE(scale=self.scale)

    def for_data(self, splits):
        """Returns this task with the scale of these data."""
        return dataclasses.replace(self, scale=_steps_of(splits.target).scale)

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.require_targets(arrays, "forecast")
        if targets.dtype.kind != "f" or targets.ndim != 2:
            task.reject_targets(targets, "forecast", NEEDED)
        if np.isinf(targets).any():
            raise InputError("--task forecast: a target is infinite: a missing target is NaN.")
        task.check_outputs(outputs, targets.shape[1:], f"a horizon of {targets.shape[1]}")

    def check(self, splits, outputs) -> None:
        if not isinstance(splits.target, Steps):
            task.reject_targets(splits.train["targets"], "forecast", NEEDED)

    def model_fields(self, splits) -> dict[str, Any]:
        return {"num_outputs": task.require_targets(splits.train, "forecast").shape[-1]}

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the half-width of each step's interval, although windows overlap."""
        return intervals.fit(np.asarray(outputs) - batch["targets"])

    def baselines(self, model, splits):
        return reference_models.forecast(splits)

    def describe(self, tested: Tested) -> Description:
        """Returns the errors of the model, the naive and the seasonal-naive forecast, in the
        series' unit, and the coverage of the intervals of `calibrate`."""
        splits, outputs = tested.splits, tested.outputs
        test, target = splits.test, _steps_of(splits.target)
        scale, horizon = target.scale, outputs.shape[1]
        forecasts = {
            "model": outputs,
            "naive": series.naive(test["inputs"], horizon),
            "seasonal_naive": series.seasonal_naive(test["inputs"], horizon, target.period),
        }
        errors = {name: scale * (y - test["targets"]) for name, y in forecasts.items()}
        scores = {
            name: {"rmse": float(np.sqrt(np.nanmean(e**2))), "mae": float(np.nanmean(np.abs(e)))}
            for name, e in errors.items()
        }

        half = intervals.half_width(tested.calibration, horizon)
        measured = intervals.measure(tested.calibration, outputs - test["targets"], scale)
        results = {"forecasts": scores, **measured}

        def draw():
            last, first = test["last"], splits.examples["test"].columns["first"]
            first = first - first[0]
            truth = np.full(first[-1] + horizon, np.nan)  # missing values stay gaps
            truth[first[:, None] + np.arange(horizon)] = last + scale * test["targets"]
            rows = np.flatnonzero(first % horizon == 0)
            names = ("model", "seasonal_naive", "naive")
            values = {name: last + scale * forecasts[name] for name in names[:2]}
            pieces = {n: [(int(first[i]), y[i]) for i in rows] for n, y in values.items()}
            squares = {name: np.ma.masked_invalid(errors[name] ** 2) for name in names}
            by_step = {name: np.sqrt(squares[name].mean(0)).filled(np.nan) for name in names}
            return figures.forecast(truth, pieces, by_step, None if half is None else scale * half)

        return Description(results=results, figures={"forecast": draw})

    def predictions(self, outputs, batch, target, calibration):
        """Returns forecasts and bounds of their intervals, in the series' unit: 0 instead of
        negative ones, where the past has none."""
        steps = _steps_of(target)
        values = batch["last"] + steps.scale * outputs
        half = intervals.half_width(calibration, values.shape[1])
        predictions = {"forecast": values}
        if half is not None:
            margin = steps.scale * half[None]
            predictions |= {"low": values - margin, "high": values + margin}
        if not steps.is_positive:
            return predictions
        return {name: (abs(x) + x) / 2 for name, x in predictions.items()}  # NumPy or traced

    def answers(self, asked: Asked):
        """Returns a line per step ahead, with time and interval, and a figure."""
        answers, predictions = [], asked.predictions
        batch, scale = asked.batch, _steps_of(asked.target).scale
        for i, (source, row) in enumerate(zip(asked.inputs, predictions["forecast"], strict=True)):
            values = {asked.noun: source, "forecast": row.tolist()}
            if (times := asked.columns["times"][i].tolist())[0]:
                values["times"] = times
            bounds = None
            if "low" in predictions:
                bounds = predictions["low"][i], predictions["high"][i]
                low, high = (bound.tolist() for bound in bounds)
                values |= {"coverage": asked.calibration["coverage"], "low": low, "high": high}
            lines = [f"after {escape_controls(source)}:"]
            spread = scale_of_steps(row.tolist(), float(scale))
            for step, numbers in enumerate(zip(row, *bounds or (), strict=True)):
                value, *interval = (number_text(float(number), spread) for number in numbers)
                interval = f"  ({' to '.join(interval)})" if interval else ""
                lines.append(f"  {times[step] or step + 1}  {value}{interval}")
            if bounds:
                share = f"{values['coverage']:.0%}"
                lines.append(f"{share} of the validation values were within such intervals.")
            if asked.folder:
                past = batch["last"][i] + scale * batch["inputs"][i, :, 0]
                figure = figures.future_forecast(past, row, bounds, times)
                if path := figures.save_prediction(figure, asked.folder, source):
                    values["figure"] = str(path)
                    lines.append(f"figure: {path}")
            answers.append(("\n".join(lines), values))
        return answers


def _steps_of(target: Target) -> Steps:
    """Returns the target if it is `Steps`, else `Steps` without a unit."""
    return target if isinstance(target, Steps) else Steps((), 1.0, 1)
