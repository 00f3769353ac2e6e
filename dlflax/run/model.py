"""A trained model in Python: dlflax.load("runs/mnist/first").predict(pictures)."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.run.evaluate import labelled, scores
from dlflax.run.export import Format, export
from dlflax.run.predict import AT_ONCE, Predictor


class Model:
    """The model of a run folder, or of a sweep's, ready to answer.

    run_dir: the folder; log: gets a sentence for what the user should know; tta: so many augmented
    views of each input count besides itself. InputError for a folder that cannot be used.
    """

    def __init__(self, run_dir: str | Path, log: Callable[[str], None] = print, tta: int = 0):
        self._predictor = Predictor(Path(run_dir), log=log, tta=tta)
        self.class_names: tuple[str, ...] = tuple(self._predictor.data["class_names"])
        """Of classes or labels, by number."""
        self.input_shape: tuple[int, ...] = tuple(self._predictor.data["input_shape"])
        """Of one example, as the model sees it."""

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """What `experiments.predict --json` says of each input: for classes {"class",
        "probability", "probabilities": {name: probability}}, calibrated; for numbers {"values"}; of
        other tasks what they answer.

        inputs: an array as the model was trained with, (n, *input_shape) or one example: uint8
        pictures or floats; a path or a text, or a list of them; a table of pandas with the columns
        of the training data. InputError for any other, and for a file that cannot be used.
        """
        if hasattr(inputs, "to_csv"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "table.csv"
                inputs.to_csv(path, index=False)
                answers = self._predictor.answers([str(path)])
            return [{**values, "row": i} for i, (_, values) in enumerate(answers)]
        if isinstance(inputs, str | Path):
            inputs = [inputs]
        if isinstance(inputs, list | tuple) and all(isinstance(x, str | Path) for x in inputs):
            named = self._predictor.expanded([str(x) for x in inputs])
            return [values for _, values in self._predictor.answers(named)]
        return self._of_array(inputs)

    def _of_array(self, inputs: Any) -> list[dict[str, Any]]:
        array, found = self._predictor.checked_array(inputs), []
        for start in range(0, len(array), AT_ONCE):
            part = array[start : start + AT_ONCE]
            names = [str(start + i) for i in range(len(part))]
            answers = self._predictor.of_batch(names, "row", {"inputs": part})
            found += [values for _, values in answers]
        return found

    def evaluate(self, data: Any, targets: Any = None) -> dict[str, float]:
        """Scores on labelled data: those that a run states for every epoch, numbers in their unit.

        data: a path, read as the training data were (a folder of pictures, a file of texts, a
        table), all of it; or an array as for `predict`, with targets as in training, (n, ...),
        such as class numbers. InputError for data that the model was not made for.
        """
        if targets is None:
            inputs, targets = labelled(self._predictor, Path(data))
        else:
            inputs, targets = self._predictor.checked_array(data), np.asarray(targets)
        return scores(self._predictor, inputs, targets)

    def export(self, to: Format = "onnx", file: str | Path | None = None) -> Path:
        """Writes the model as a file that runs without this package: see `run.export`."""
        path = Path(file) if file else None
        return export(self._predictor, to, path, self._predictor.log)
