"""Trained model in Python: dlflax.load("runs/mnist/first").predict(images)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data import Classes, Examples, Labels, Numbers, Target, Upload
from dlflax.errors import InputError
from dlflax.inference.export import Format, export
from dlflax.inference.predict import Predictor


class Model:
    """Trained model of a run folder or a sweep.

    run_dir: the folder; log: gets warnings; tta: number of augmented views per input (test-time
    augmentation); experiment: file or module of a run with code outside of dlflax. Raises
    InputError for an unusable folder.
    """

    def __init__(
        self, run_dir: str | Path, log: Callable[[str], None] = print, tta: int = 0,
        experiment: str | None = None,
    ):  # fmt: skip
        self._predictor = Predictor(Path(run_dir), None, experiment, log, tta)
        self.class_names: tuple[str, ...] = self._predictor.encoder.target.classes
        """Names of the classes or labels, by index."""
        self.input_shape: tuple[int, ...] = tuple(self._predictor.example()["inputs"].shape[1:])
        """Shape of one model input."""

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """Returns predictions as of `experiments.predict --json`: for classes {"class",
        "probability", "probabilities": {name: probability}}, calibrated; for numbers {"values"}.

        inputs: as of `Encoder.parse`: an array of one example or several (pixels as uint8, or as
        floats from 0 to 1; table rows in their own units); a path or a text, or a list or pandas
        Series of them; rows {column: value} or a pandas data frame with the columns of the training
        data. Raises InputError for other inputs and for unusable files.
        """
        encoder = self._predictor.encoder
        inputs = [inputs] if isinstance(inputs, str | Path) else inputs
        if isinstance(inputs, list | tuple):
            if all(isinstance(x, str | Path) for x in inputs):
                names = self._predictor.expand_inputs([str(x) for x in inputs])
                return [values for _, values in self._predictor.answers(names)]
            if not all(isinstance(x, Mapping | Upload) for x in inputs):
                inputs = np.array(inputs)
        examples = encoder.parse(inputs)
        answers = [values for _, values in self._predictor.answer_examples(examples)]
        if len(examples.names):
            return answers
        return [{**values, encoder.form.noun: i} for i, values in enumerate(answers)]

    def evaluate(self, data: Any, targets: Any = None) -> dict[str, float]:
        """Returns the loss and all metrics on labelled data, in the target's unit.

        data: a path to data in the format of the training data (a folder of images, a file of
        texts, a table), or a data frame with the target column; or an array as for `predict`, with
        targets (n, ...): class numbers, 0/1 labels, or numbers in their own unit. Raises InputError
        for data of another kind.
        """
        encoder = self._predictor.encoder
        if targets is not None:
            examples = set_targets(encoder.parse(data), np.asarray(targets), encoder.target)
        else:
            data = Path(data) if isinstance(data, str) else data
            if isinstance(data, Path) and not data.exists():
                raise InputError(
                    f"{data} does not exist: name labelled data in the format of the training data."
                )
            examples = encoder.parse_with_targets(data)
        return self._predictor.scores(examples)

    def export(self, to: Format = "onnx", file: str | Path | None = None) -> Path:
        """Exports the model to a file that runs without this package: see `inference.export`."""
        path = Path(file) if file else None
        return export(self._predictor, to, path, self._predictor.log)


def set_targets(examples: Examples, values: np.ndarray, target: Target) -> Examples:
    """Returns the examples with target values (n, ...), after a check of their shape and dtype."""
    n = len(examples)
    if not n or values.shape[:1] != (n,):
        raise InputError(
            f"evaluate needs as many targets as inputs: targets of shape {values.shape} for {n}."
        )
    if isinstance(target, Classes):
        is_index = values.dtype.kind in "iu" and values.ndim == 1
        if not is_index or not np.all((values >= 0) & (values < len(target.names))):
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
