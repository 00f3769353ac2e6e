"""Trained model in Python: dlflax.load("runs/mnist/first").predict(images)."""

import asyncio
import contextlib
import dataclasses
import html
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlflax import train
from dlflax.data import Classes, Examples, Labels, Numbers, Target, Upload, join
from dlflax.errors import InputError
from dlflax.inference import share
from dlflax.inference.export import Format, export
from dlflax.inference.predict import CHUNK_SIZE, Predictor
from dlflax.inference.summary import Rows, importance, leaderboard, summary
from dlflax.models import grad_cam


class Model:
    """Trained model of a run folder or a sweep.

    run_dir: the folder, or one of `save`; log: gets warnings; tta: number of augmented views per
    input (test-time augmentation); experiment: file or module of a run with code outside of
    dlflax. Raises InputError for an unusable folder.
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
        names, examples = self._parse(inputs)
        if names is not None:
            return [values for _, values in self._predictor.answers(names)]
        answers = [values for _, values in self._predictor.answer_examples(examples)]
        if len(examples.names):
            return answers
        noun = self._predictor.encoder.form.noun
        return [{**values, noun: i} for i, values in enumerate(answers)]

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Returns probabilities, float32 (n, classes), calibrated, in the order of `class_names`.

        inputs: as for `predict`. Raises InputError for a model without classes."""
        if not self.class_names:
            raise InputError(
                "predict_proba is for classes, and this model predicts others: use predict."
            )
        names, examples = self._parse(inputs)
        encoder, parts = self._predictor.encoder, []
        for start in range(0, len(examples if names is None else names), CHUNK_SIZE):
            chunk = slice(start, start + CHUNK_SIZE)
            part = (
                examples.take(chunk) if names is None
                else join([encoder.parse(name) for name in names[chunk]])
            )  # fmt: skip
            predictions = self._predictor.predictions(encoder.batch(encoder.raw(part)))
            parts.append(predictions["probabilities"])
        return np.concatenate(parts)

    def _parse(self, inputs: Any) -> tuple[list[str] | None, Examples]:
        """Returns (names of files or texts, which are parsed in chunks, or None; examples)."""
        encoder = self._predictor.encoder
        inputs = [inputs] if isinstance(inputs, str | Path) else inputs
        if isinstance(inputs, list | tuple):
            if inputs and all(isinstance(x, str | Path) for x in inputs):
                return self._predictor.expand_inputs([str(x) for x in inputs]), Examples({})
            if not all(isinstance(x, Mapping | Upload) for x in inputs):
                inputs = np.array(inputs)
        return None, encoder.parse(inputs)

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

    def leaderboard(self) -> Rows:
        """Returns the test scores of this model, of its members and of the baselines, a row each,
        the best first. Rows print as a table, and `pandas.DataFrame` takes them."""
        return leaderboard(self._predictor)

    def summary(self) -> str:
        """Returns what the model was trained on, in lines: data, columns, sizes of the splits,
        scores, calibration, and what was dropped or found."""
        return summary(self._predictor)

    def explain(self, inputs: Any = None) -> Rows | np.ndarray:
        """Returns the importance of a table's columns, or heatmaps of images.

        Without inputs: rows {"column", "importance", "std"}, the increase of the test loss after
        permuting a column. With images, as for `predict`: Grad-CAM, float32 (n, h, w) in 0..1.
        Raises InputError for other data, and for a model without feature maps."""
        if inputs is None:
            rows = importance(self._predictor.folder)
            if rows is None:
                raise InputError(
                    f"{self._predictor.folder} has no importance.csv, as only a table's run writes "
                    "it: for images give explain(images)."
                )
            return rows
        predictor, (names, examples) = self._predictor, self._parse(inputs)
        encoder = predictor.encoder
        if encoder.form.widget != "image" or names == []:
            raise InputError("explain(inputs) takes images: use explain() for a table's columns.")
        if names is not None:
            examples = join([encoder.parse(name) for name in names])
        images = train.floats(encoder.batch(encoder.raw(examples))["inputs"])
        recipe, maps = predictor.config.recipe, None
        variables = train.variables(recipe, predictor.state())
        with contextlib.suppress(TypeError, ValueError):  # an ensemble has several feature maps
            maps = grad_cam.grad_cam(recipe.model, variables, images)
        if maps is None:
            raise InputError(
                f"explain needs a model with feature maps, and {type(recipe.model).__name__} has "
                "none."
            )
        return maps

    def serve(
        self, port: int = 8000, host: str = "127.0.0.1", allow_hosts: Collection[str] = ()
    ) -> None:
        """Serves a page and JSON, as `experiments.serve` does, until Ctrl-C. Raises InputError for
        a port in use, in a running event loop, and without Starlette and uvicorn."""
        with contextlib.suppress(RuntimeError):  # no event loop
            asyncio.get_running_loop()
            raise InputError(
                "serve runs an event loop, as a notebook does: run python -m experiments.serve "
                f"{self._predictor.folder} in a terminal."
            )
        start_server(self._predictor, port, host, allow_hosts)

    def save(self, folder: str | Path) -> Path:
        """Copies what prediction needs to a new folder, for `dlflax.load`: weights as safetensors,
        JSON files, a model card. It has no checkpoints to resume from, and no code."""
        return share.save(self._predictor, Path(folder))

    def push(self, repository: str, private: bool = True) -> str:
        """Publishes `save`'s folder as "OWNER/NAME" on the Hugging Face hub and returns its
        address: `dlflax.load("hf:OWNER/NAME")`. private: hides it from others."""
        return share.push(self._predictor, repository, private)

    def __repr__(self) -> str:
        recipe, folder = self._predictor.config.recipe, str(self._predictor.folder)
        return f"<Model {type(recipe.model).__name__} for {type(recipe.task).__name__}, {folder}>"

    def _repr_html_(self) -> str:
        """Returns leaderboard and summary as HTML, for notebooks."""
        return f"{self.leaderboard()._repr_html_()}<pre>{html.escape(self.summary())}</pre>"


def start_server(predictor: Predictor, port: int, host: str, allow_hosts: Collection[str]) -> None:
    """Serves a model, as `serve.serve`. Raises InputError without the packages of the extra."""
    try:
        from dlflax.inference.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        sentence = "serve needs Starlette and uvicorn: pip install 'dlflax[serve]'."
        raise InputError(sentence) from error
    serve(predictor, host, port, allow_hosts=allow_hosts)


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
