"""A trained model in Python: dlflax.load("runs/mnist/first").predict(pictures)."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlflax.data import csv_files
from dlflax.errors import InputError
from dlflax.run.evaluate import labelled, scores
from dlflax.run.export import Format, export
from dlflax.run.predict import AT_ONCE, Predictor


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
        self.class_names: tuple[str, ...] = tuple(self._predictor.data["class_names"])
        """Of classes or labels, by number."""
        self.input_shape: tuple[int, ...] = tuple(self._predictor.data["input_shape"])
        """Of one example, as the model sees it."""

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """What `experiments.predict --json` says of each input: for classes {"class",
        "probability", "probabilities": {name: probability}}, calibrated; for numbers {"values"}; of
        other tasks what they answer.

        inputs: an array of one example or many, as `Predictor.checked_array` takes them: pixels as
        uint8 or as floats from 0 to 1, rows of numbers in a table's own units; a path or a text, or
        a list or a pandas Series of them; a data frame of pandas with the columns of the training
        data. InputError for any other, and for a file that cannot be used.
        """
        if hasattr(inputs, "to_csv"):
            inputs = self._of_pandas(inputs)
            if hasattr(inputs, "columns"):
                answers = self._of_frame(inputs, self._predictor.answers)
                return [{**values, "row": i} for i, (_, values) in enumerate(answers)]
        if isinstance(inputs, str | Path):
            inputs = [inputs]
        if isinstance(inputs, list | tuple) and all(isinstance(x, str | Path) for x in inputs):
            named = self._predictor.expanded([str(x) for x in inputs])
            return [values for _, values in self._predictor.answers(named)]
        return self._of_array(inputs)

    def _of_pandas(self, given: Any) -> Any:
        """A data frame for a table or a series; else the list of a Series' values."""
        kind, framed = self._predictor.kind, hasattr(given, "columns")
        if kind in ("table", "series"):
            if framed:
                return given
            names = {c["name"] for c in self._predictor.data.get("columns", ())}
            return given.to_frame().T if names and names <= set(given.index) else given.to_frame()
        if framed and len(given.columns) != 1:
            raise InputError(
                f"this model takes no data frame of {len(given.columns)} columns: give the column "
                "of texts or paths."
            )
        values = (given.iloc[:, 0] if framed else given).tolist()
        if not all(isinstance(value, str | Path) for value in values):
            raise InputError("a column of texts or paths has other values, such as missing ones.")
        return values

    def _of_frame(self, frame: Any, use: Callable[[list[str]], Any]) -> Any:
        """What `use` makes of a CSV file of the data frame."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            rows = frame.astype(object).where(frame.notna(), None).itertuples(index=False)
            csv_files.write(path, list(map(str, frame.columns)), rows, self._predictor.data)
            return use([str(path)])

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
        table), all of it, or a data frame with the target; or an array as for `predict`, with
        targets (n, ...): class numbers, labels, or numbers in their own unit. InputError for data
        that the model was not made for.
        """
        if targets is not None:
            inputs = self._predictor.checked_array(data)
        elif hasattr(data, "columns"):
            inputs, targets = self._of_frame(
                data, lambda paths: labelled(self._predictor, Path(paths[0]))
            )
        else:
            inputs, targets = labelled(self._predictor, Path(data))
        return scores(self._predictor, inputs, targets)

    def export(self, to: Format = "onnx", file: str | Path | None = None) -> Path:
        """Writes the model as a file that runs without this package: see `run.export`."""
        path = Path(file) if file else None
        return export(self._predictor, to, path, self._predictor.log)
