"""A trained model in Python: dlflax.load("runs/mnist/first").predict(pictures)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data import Classes, Examples, Labels, Numbers, Target, Upload
from dlflax.errors import InputError
from dlflax.run.export import Format, export
from dlflax.run.predict import Predictor


class Model:
    """The model of a run folder, or of a sweep's, ready to answer.

    run_dir: the folder; log: gets a sentence for what the user should know; tta: so many augmented
    views of each input count besides itself; experiment: the file or module that made the run,
    where it has moved, changed, or was not run here. InputError for a folder that cannot be used.
    """

    def __init__(
        self, run_dir: str | Path, log: Callable[[str], None] = print, tta: int = 0,
        experiment: str | None = None,
    ):  # fmt: skip
        self._predictor = Predictor(Path(run_dir), None, experiment, log, tta)
        self.class_names: tuple[str, ...] = self._predictor.encoder.target.classes
        """Names of classes or labels, by number."""
        self.input_shape: tuple[int, ...] = tuple(self._predictor.example()["inputs"].shape[1:])
        """The shape of one example, as the model sees it."""

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """What `experiments.predict --json` says of each input: for classes {"class",
        "probability", "probabilities": {name: probability}}, calibrated; for numbers {"values"}; of
        other tasks what they answer.

        inputs: what `Encoder.parse` takes: an array of one example or many, pixels as uint8 or as
        floats from 0 to 1, rows of numbers in a table's own units; a path or a text, or a list or a
        pandas Series of them; rows {column: value}, or a data frame of pandas, with the columns of
        the training data. InputError for any other, and for a file that cannot be used.
        """
        encoder = self._predictor.encoder
        given = [inputs] if isinstance(inputs, str | Path) else inputs
        if isinstance(given, list | tuple) and all(isinstance(x, str | Path) for x in given):
            named = self._predictor.expanded([str(x) for x in given])
            return [values for _, values in self._predictor.answers(named)]
        as_they_are = Mapping | Upload
        if isinstance(given, list | tuple) and not all(isinstance(x, as_they_are) for x in given):
            given = np.array(given)
        examples = encoder.parse(given)
        answers = [values for _, values in self._predictor.of_examples(examples)]
        if len(examples.names):
            return answers
        return [{**values, encoder.form.noun: i} for i, values in enumerate(answers)]

    def evaluate(self, data: Any, targets: Any = None) -> dict[str, float]:
        """Scores on labelled data: those that a run states for every epoch, in the target's unit.

        data: a path, read as the training data were (a folder of pictures, a file of texts, a
        table), all of it, or a data frame with the target; or an array as for `predict`, with
        targets (n, ...): class numbers, labels, or numbers in their own unit. InputError for data
        that the model was not made for.
        """
        encoder = self._predictor.encoder
        if targets is not None:
            examples = with_target(encoder.parse(data), np.asarray(targets), encoder.target)
        elif isinstance(data, str | Path) and not Path(data).exists():
            raise InputError(
                f"{data} does not exist: name labelled data as the run was trained with."
            )
        else:
            given = Path(data) if isinstance(data, str | Path) else data
            examples = encoder.parse_with_targets(given)
        return self._predictor.scores(examples)

    def export(self, to: Format = "onnx", file: str | Path | None = None) -> Path:
        """Writes the model as a file that runs without this package: see `run.export`."""
        path = Path(file) if file else None
        return export(self._predictor, to, path, self._predictor.log)


def with_target(examples: Examples, values: np.ndarray, target: Target) -> Examples:
    """Returns the examples with these target values, (n, ...). Raises InputError for values of
    another shape or kind than the target's."""
    n = len(examples)
    if not n or values.shape[:1] != (n,):
        raise InputError(
            f"evaluate needs as many targets as inputs: targets of shape {values.shape} for {n}."
        )
    if isinstance(target, Classes):
        if (
            values.dtype.kind not in "iu"
            or values.ndim != 1
            or not np.all((values >= 0) & (values < len(target.names)))
        ):
            raise InputError(
                f"evaluate: targets must be class numbers from 0 to {len(target.names) - 1}, (n,)."
            )
    elif isinstance(target, Labels):
        if values.shape != (n, len(target.names)) or not np.isin(values, (0, 1)).all():
            raise InputError("evaluate needs 0 or 1 for each label, (n, labels), as targets.")
    elif isinstance(target, Numbers):
        right = values.dtype.kind in "fiu" and values.size == n * len(target.mean)
        if not right or not np.isfinite(values).all():
            raise InputError("evaluate needs finite numbers as targets, in the unit of the target.")
    return dataclasses.replace(examples, target=values)
