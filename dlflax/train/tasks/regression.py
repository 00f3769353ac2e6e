"""Regression: one or more numbers per example."""

import dataclasses
import itertools
from typing import Annotated, Any

import numpy as np
import tyro

from dlflax.baselines import reference_models
from dlflax.data.target import Numbers, Target
from dlflax.errors import InputError
from dlflax.report import figures
from dlflax.report.tables import number_text
from dlflax.train import importance, losses, metrics
from dlflax.train.tasks import intervals, task
from dlflax.train.tasks.task import Asked, Description, Task, Tested

NEEDED = "floats, (n,) or (n, numbers)"


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """One or more numbers per example: targets float (n,) or (n, k), outputs (n, k). Scores are
    averaged over k, as scikit-learn's."""

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value selects the best epoch: loss, rmse, mae or r2."""
    scale: Annotated[tuple[float, ...], tyro.conf.Suppress] = dataclasses.field(
        default=(), compare=False, metadata={"resume": "free"}
    )
    """Scale of each target, by which the data source divided it: rmse and mae are in the targets'
    unit. Set from the data; the traced step does not read it."""

    @property
    def metrics(self):
        rmse = metrics.MeanError("rmse", scale=self.scale)
        return rmse, dataclasses.replace(rmse, name="mae", power=1), metrics.R2()

    def for_data(self, splits):
        """Returns this task with the scale of these data."""
        return dataclasses.replace(self, scale=_numbers_of(splits.target).scale)

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.require_targets(arrays, "regression")
        if targets.dtype.kind not in "fiu" or targets.ndim > 2:
            task.reject_targets(targets, "regression", NEEDED)
        if not (np.abs(targets) <= np.finfo(np.float32).max).all():  # NaN, too
            raise InputError("--task regression: a target is NaN or infinite: remove such rows.")
        size = targets.shape[1] if targets.ndim == 2 else 1
        task.check_outputs(
            outputs, (size,), f"{size} number{'s' * (size > 1)}", *([()] if size == 1 else [])
        )

    def check(self, splits, outputs) -> None:
        if splits.train["targets"].dtype.kind != "f":  # class numbers of the encoder
            task.reject_targets(splits.train["targets"], "regression", NEEDED)

    def model_fields(self, splits) -> dict[str, Any]:
        targets = task.require_targets(splits.train, "regression")
        return {"num_outputs": targets.shape[1] if targets.ndim > 1 else 1}

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the half-width of each number's interval."""
        targets = batch["targets"].reshape(len(outputs), -1)
        return intervals.fit(np.asarray(outputs).reshape(targets.shape) - targets)

    def baselines(self, model, splits):
        return reference_models.regression(splits)

    def describe(self, tested: Tested) -> Description:
        """Returns predicted and true numbers in the targets' unit, and the importance of a table's
        columns."""
        splits, target = tested.splits, _numbers_of(tested.splits.target)
        targets = target.decode(splits.test["targets"]).reshape(len(tested.outputs), -1)

        def rmse(outputs, rows):
            errors = targets[rows] - target.decode(outputs).reshape(-1, targets.shape[1])
            return float(np.sqrt(np.mean(errors**2, 0)).mean())

        outputs = target.decode(tested.outputs).reshape(targets.shape)
        names = splits.names() if splits.examples else None
        rows = [
            ({splits.encoder.form.noun: names[k]} if names is not None else {})
            | {f"true_{i}": t for i, t in enumerate(row)}
            | {f"predicted_{i}": p for i, p in enumerate(guess)}
            for k, (row, guess) in enumerate(zip(targets.tolist(), outputs.tolist(), strict=True))
        ]
        scale = np.ravel(_numbers_of(splits.target).scale)
        measured = intervals.measure(tested.calibration, (outputs - targets) / scale, scale)
        plots = {"predicted": lambda: figures.predicted_against_true(targets, outputs)}
        description = Description(results=measured, tables={"predictions": rows}, figures=plots)
        importance.add_to(description, tested, rmse, "rmse")
        return description

    def predictions(self, outputs, batch, target, calibration):
        """Returns the numbers, and bounds of their intervals, in the target's unit."""
        numbers, count = _numbers_of(target), outputs.shape[1] if outputs.ndim > 1 else 1
        values, half = numbers.decode(outputs), intervals.half_width(calibration, count)
        if half is None:
            return {"values": values}
        margin = (half * np.ravel(numbers.scale)).reshape((1, -1)[-outputs.ndim :])
        return {"values": values, "low": values - margin, "high": values + margin}

    def answers(self, asked: Asked):
        answers, spread = [], asked.target.spread or (None,)
        for i, source in enumerate(asked.inputs):
            numbers = {name: np.ravel(x[i]).tolist() for name, x in asked.predictions.items()}
            rows = zip(*numbers.values(), itertools.cycle(spread), strict=False)
            texts = []
            for value, *bounds, scale in rows:
                interval = " to ".join(number_text(bound, scale) for bound in bounds)
                texts.append(number_text(value, scale) + f" ({interval})" * bool(bounds))
            if "low" in numbers:
                numbers["coverage"] = asked.calibration["coverage"]
            answers.append((f"{source}: {' '.join(texts)}", {asked.noun: source, **numbers}))
        return answers


def _numbers_of(target: Target) -> Numbers:
    """Returns the target if it is `Numbers`, else `Numbers` without a unit."""
    return target if isinstance(target, Numbers) else Numbers()
