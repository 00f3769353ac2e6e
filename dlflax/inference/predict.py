"""Predictions of a run folder's model for new inputs."""

import functools
import glob
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train, transfer
from dlflax.config.experiment import from_run_folder
from dlflax.config.run_folder import load_calibration, load_config
from dlflax.config.saved import config_from_json, load_encoder
from dlflax.data import Classes, Encoder, Examples, join
from dlflax.data.encoder import RowsRefused
from dlflax.data.image.folder_files import is_hidden, natural_key
from dlflax.data.target import UNKNOWN
from dlflax.errors import InputError
from dlflax.train.augment import Mix, augment
from dlflax.train.batch import SIZES, padded_size
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.tasks import Asked

CHUNK_SIZE = 256  # inputs that are parsed at a time
WEIGHTS = "model.safetensors"  # in a folder of `Model.save`, which has no checkpoints


class Predictor:
    """Model of a run folder or a sweep, from the best checkpoint. Raises InputError for an unusable
    folder, RunError for a damaged checkpoint.

    package: package of named experiments; experiment: file or module of a run with code outside of
    dlflax; tta: number of augmented views averaged with each input (test-time augmentation).
    """

    def __init__(
        self, run_dir: Path, package: ModuleType | None = None, experiment: str | None = None,
        log: Callable[[str], None] = print, tta: int = 0,
    ):  # fmt: skip
        run_dir = Path(run_dir)
        if (run_dir / "best" / "config.json").exists():  # the folder of a sweep
            run_dir = run_dir / "best"
        saved = load_config(run_dir)
        self.folder = run_dir.absolute()  # the current folder may change
        self.data, self.log = saved["data"], log
        self.experiment = saved["experiment"]
        run_experiment = from_run_folder(saved, run_dir, experiment, package, log)
        self.config = config_from_json(saved["config"], run_dir, run_experiment)
        self.encoder: Encoder = load_encoder(run_dir, run_experiment)
        self._state, self.tta = None, tta
        if tta < 0 or tta and not self._augmentations():
            raise InputError(
                f"--tta {tta} needs a run with --augment, such as flip or crop, and 0 or more."
            )

    def example(self) -> dict[str, Any]:
        """Returns a batch of one example whose raw input is zero."""
        spec = self.encoder.spec()
        return self.encoder.batch(np.zeros((1, *spec.shape), spec.dtype))

    def state(self) -> train.State:
        """Returns the State of the model, loaded at the first call."""
        if self._state is None:
            config, model, inputs = self.config, self.config.recipe.model, self.example()["inputs"]
            if (self.folder / WEIGHTS).exists() and not (self.folder / "checkpoints").exists():
                self._state = self._read_weights(inputs)
                return self._state
            sha256 = self.data["weights_sha256"]
            backbone = transfer.load_backbone(
                config.transfer, model, inputs, sha256, self.folder, self.log
            )
            head_inputs = transfer.head_inputs(model, inputs) if backbone else inputs
            recipe = transfer.trainable_recipe(config.transfer, config.recipe)
            abstract = train.abstract(recipe, config.hparams, head_inputs)
            checkpoints = Checkpoints(self.folder / "checkpoints", config.recipe.task, self.log)
            state = checkpoints.restore_best(abstract)
            self._state = transfer.merge_backbone(state, backbone)
        return self._state

    def _read_weights(self, inputs) -> train.State:
        """Returns the State of a folder of `Model.save`: averages, if the recipe has `ema`."""
        recipe = self.config.recipe
        abstract = train.variables(recipe, train.abstract(recipe, self.config.hparams, inputs))
        state = train.from_variables(transfer.read_variables(self.folder / WEIGHTS, abstract))
        return state.replace(ema=state.params)

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """Returns float32 outputs (n, ...) for inputs (n, ...), with `tta` the mean over views."""
        batches = _padded_batches({"inputs": inputs})
        return np.concatenate([self._outputs(b["inputs"]) for b in batches])[: len(inputs)]

    def _outputs(self, inputs) -> np.ndarray:
        recipe, hparams = self.config.recipe, train.as_float32(self.config.hparams.evaluation())
        state = self.state()

        def predict(inputs):
            return np.asarray(train.predict(recipe, state, hparams, inputs))

        if not self.tta:
            return predict(inputs)
        strengths = train.as_float32(self.config.hparams)
        views = [predict(inputs)]
        for i in range(self.tta):
            batch = {"inputs": train.floats(jnp.asarray(inputs))}
            batch = augment(self._augmentations(), jax.random.key(i), batch, strengths)
            views.append(predict(batch["inputs"]))
        weights = jnp.full(len(views), 1 / len(views), jnp.float32)
        return np.asarray(recipe.task.mean(jnp.stack(views), weights))

    def _augmentations(self):
        """Returns the run's augmentations for --tta: of single examples, without corruption."""
        return tuple(
            augmentation for augmentation in self.config.recipe.augment
            if not isinstance(augmentation, Mix)
            and not getattr(augmentation, "corrupts", False)
        )  # fmt: skip

    def expand_inputs(self, inputs: list[str]) -> list[str]:
        """Expands "-" to the lines of standard input, and if inputs are files, folders and patterns
        such as "photos/*.jpg" to their files, except hidden ones. Raises InputError for none."""
        takes_files, expanded = self.encoder.form.files, []
        for name in inputs:
            path = Path(name)
            if name == "-":
                expanded += [line for line in sys.stdin.read().splitlines() if line.strip()]
            elif takes_files and (path.is_dir() or set(name) & set("*?[") and not path.exists()):
                if path.is_dir():  # hidden below it; "../photos" itself is not
                    files = [
                        str(file) for file in path.rglob("*")
                        if file.is_file() and not any(map(is_hidden, file.relative_to(path).parts))
                    ]  # fmt: skip
                    files.sort(key=natural_key)
                else:
                    files = sorted(glob.glob(name, recursive=True))
                if not files:
                    raise InputError(f"{name} has no files: name a folder or pattern with files.")
                expanded += files
            else:
                expanded.append(name)
        return expanded

    def answers(
        self, inputs: list[str], on_refused: Callable[[InputError], None] | None = None,
        advance: Callable[[int], None] = lambda more: None,
    ) -> list[tuple[str, dict]]:  # fmt: skip
        """Returns (sentence, JSON values) for each input, a file or text. on_refused: gets the
        error of each unusable input (default: the first is raised); advance: gets numbers of
        finished inputs, for a progress bar."""
        if not inputs:  # the run's own example, such as its series
            return self.answer_examples(self.encoder.parse(None))
        answers = []
        for start in range(0, len(inputs), CHUNK_SIZE):
            chunk = inputs[start : start + CHUNK_SIZE]
            if examples := self._parse_all(chunk, on_refused):
                answers += self.answer_examples(join(examples))
            advance(len(chunk))
        return answers

    def _parse_all(self, inputs, on_refused) -> list[Examples]:
        parsed = []
        for given in inputs:
            try:
                parsed.append(self.encoder.parse(given))
            except InputError as error:
                if on_refused is None:
                    raise
                if not isinstance(error, RowsRefused):
                    on_refused(error)
                    continue
                for sentence in error.sentences:
                    on_refused(InputError(sentence))
                parsed += [error.examples] if len(error.examples) else []
        return parsed

    @functools.cached_property
    def calibration(self) -> dict:
        """Returns the task's calibration. Raises InputError for a damaged file."""
        return load_calibration(self.folder)

    def answer_examples(self, examples: Examples, draw: bool = True) -> list[tuple[str, dict]]:
        """Returns `answers` for examples. draw: writes figures of the answers."""
        recipe = self.config.recipe
        batch = self.encoder.batch(self.encoder.raw(examples))
        asked = Asked(
            list(map(str, examples.names or range(len(examples)))), self.encoder.form.noun, batch,
            examples.columns, self.predictions(batch), self.encoder.target, recipe,
            train.variables(recipe, self.state()), self.folder if draw else None, self.calibration,
        )  # fmt: skip
        return recipe.task.answers(asked)

    def predictions(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns `Task.predictions` of any number of examples, (n, ...) each."""
        predictions = [
            self.config.recipe.task.predictions(
                self._outputs(padded["inputs"]), padded, self.encoder.target, self.calibration
            )
            for padded in _padded_batches(batch)
        ]
        return {
            name: np.concatenate([np.asarray(p[name]) for p in predictions])[: len(batch["inputs"])]
            for name in predictions[0]
        }

    def scores(self, examples: Examples) -> dict[str, float]:
        """Returns the loss and every metric of the task on all examples. Examples of classes that
        the model does not have count as wrong, which is logged."""
        target, task = self.encoder.target, self.config.recipe.task
        unknown = np.zeros(len(examples), bool)
        if isinstance(target, Classes):
            unknown = np.asarray(examples.target) == UNKNOWN
        if unknown.any():
            self.log(
                f"{unknown.sum():,} of {len(unknown):,} examples are of classes that the model "
                "does not have: they count as wrong."
            )
        arrays = self.encoder.encode(examples)
        outputs = self.outputs(arrays["inputs"])
        scores = train.scores(task, self.config.hparams, arrays, outputs)
        if unknown.any():  # the loss is of known classes only
            known = {name: array[~unknown] for name, array in arrays.items()}
            del scores["loss"]
            if not unknown.all():
                known_scores = train.scores(task, self.config.hparams, known, outputs[~unknown])
                scores = {"loss": known_scores["loss"], **scores}
        return scores


def _padded_batches(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches whose sizes are among SIZES, padded with copies of their first rows."""
    for start in range(0, len(arrays["inputs"]), SIZES[-1]):
        rows = np.arange(start, min(start + SIZES[-1], len(arrays["inputs"])))
        padding = padded_size(len(rows)) - len(rows)
        rows = np.pad(rows, (0, padding), constant_values=start)
        yield {name: array[rows] for name, array in arrays.items()}


def csv_row(values: dict) -> dict:
    """Flattens an answer, {"probabilities": {"cat": 0.9}, "values": [1]}, to a CSV row,
    {"probabilities.cat": 0.9, "values.1": 1}."""
    row = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(i): item for i, item in enumerate(value, 1)}
        if isinstance(value, dict):
            row |= {f"{name}.{key}": item for key, item in csv_row(value).items()}
        else:
            row[name] = value
    return row
