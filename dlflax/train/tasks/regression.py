"""One number or several for each example."""

import dataclasses
import itertools
from typing import Annotated, Any

import numpy as np
import tyro

from dlflax.data.target import Numbers, Target
from dlflax.errors import InputError
from dlflax.report import figures
from dlflax.report.tables import number_text
from dlflax.train import baselines, importance, losses, metrics
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """One number or several for each example: targets float (n,) or (n, numbers), outputs
    (n, numbers). Scores are means over the numbers, as scikit-learn's."""

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value decides the best epoch: loss, rmse, mae or r2."""
    scale: Annotated[tuple[float, ...], tyro.conf.Suppress] = dataclasses.field(
        default=(), compare=False, metadata={"resume": "free"}
    )
    """Scale of each target, by which the data source divided it: rmse and mae are in the targets'
    unit. The data decide; the traced step does not read it."""

    @property
    def metrics(self):
        rmse = metrics.MeanError("rmse", scale=self.scale)
        return rmse, dataclasses.replace(rmse, name="mae", power=1), metrics.R2()

    def for_data(self, splits):
        """Returns this task with the scale of these data."""
        return dataclasses.replace(self, scale=_numbers_of(splits.target).scale)

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.targets_of(arrays, "regression")
        if targets.dtype.kind not in "fiu" or targets.ndim > 2:
            _refuse(targets)
        if not (np.abs(targets) <= np.finfo(np.float32).max).all():  # NaN, too
            raise InputError("--task regression: a target is NaN or infinite: remove such rows.")
        size = targets.shape[1] if targets.ndim == 2 else 1
        task.check_outputs(
            outputs, (size,), f"{size} number{'s' * (size > 1)}", *([()] if size == 1 else [])
        )

    def check(self, splits, outputs) -> None:
        if splits.train["targets"].dtype.kind != "f":  # class numbers, by their encoder
            _refuse(splits.train["targets"])

    def model_fields(self, splits) -> dict[str, Any]:
        targets = task.targets_of(splits.train, "regression")
        return {"num_outputs": targets.shape[1] if targets.ndim > 1 else 1}

    def baselines(self, model, splits):
        return baselines.of_numbers(splits)

    def describe(self, tested: Tested) -> Description:
        """Returns predicted against true numbers, and the importance of a table's columns; in the
        targets' own unit, where the data have it."""
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
        drawn = {"predicted": lambda: figures.predicted_against_true(targets, outputs)}
        description = Description(tables={"predictions": rows}, figures=drawn)
        importance.add_to(description, tested, rmse, "rmse")
        return description

    def predictions(self, outputs, batch, target, calibration):
        """Returns the numbers, in the target's unit."""
        return {"values": _numbers_of(target).decode(outputs)}

    def answers(self, asked: Asked):
        answers, spread = [], asked.target.spread or (None,)
        for each, values in zip(asked.inputs, asked.predictions["values"], strict=True):
            values = np.ravel(values).tolist()
            words = " ".join(map(number_text, values, itertools.cycle(spread)))
            answers.append((f"{each}: {words}", {asked.noun: each, "values": values}))
        return answers


def _refuse(targets):
    raise InputError(
        "--task regression needs floats, (n,) or (n, numbers), as targets; these are "
        f"{task.described(targets)}: use another --task."
    )


def _numbers_of(target: Target) -> Numbers:
    """The target of a regression: one without units where the data have another."""
    return target if isinstance(target, Numbers) else Numbers()
