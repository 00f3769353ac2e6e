"""The model of a run folder, for new inputs."""

import functools
import glob
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train, transfer
from dlflax.data import Classes, Encoder, Examples, join
from dlflax.data.encoder import RowsRefused
from dlflax.data.folder_files import is_hidden, natural_key
from dlflax.data.target import UNKNOWN
from dlflax.errors import InputError
from dlflax.run.experiment import of_run
from dlflax.run.folder import load_calibration, load_config
from dlflax.run.saved import config_from_json, load_encoder
from dlflax.train.augment import CutMix, Mix, MixUp, augment
from dlflax.train.batch import SIZES, padded_size
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.tasks import Asked

AT_ONCE = 256  # inputs that are read at a time


class Predictor:
    """The model of a run folder, or of a sweep's: the checkpoint with the best validation score,
    or the last one without validation. InputError for a folder that cannot be used, RunError for a
    damaged checkpoint.

    package: whose modules are the experiments known by name; experiment: the file or module that
    made the run, where it is not where the run says; tta: so many views of each input, changed by
    the run's own augmentations, count besides the input itself (test-time augmentation).
    """

    def __init__(
        self, run_dir: Path, package: ModuleType | None = None, experiment: str | None = None,
        log: Callable[[str], None] = print, tta: int = 0,
    ):  # fmt: skip
        run_dir = Path(run_dir)
        if (run_dir / "best" / "config.json").exists():  # the folder of a sweep
            run_dir = run_dir / "best"
        saved = load_config(run_dir)
        self.folder = run_dir.absolute()  # the process may go elsewhere
        self.data, self.log = saved["data"], log
        self.experiment = saved["experiment"]
        made_by = of_run(saved, run_dir, experiment, package, log)
        self.config = config_from_json(saved["config"], run_dir, made_by)
        self.encoder: Encoder = load_encoder(run_dir, made_by)
        self._state, self.tta = None, tta
        if tta < 0 or tta and not self._augmentations():
            raise InputError(
                f"--tta {tta} needs a run with --augment, such as flip or crop, and 0 or more."
            )

    def example(self) -> dict[str, Any]:
        """Returns the batch of one example of zeros."""
        spec = self.encoder.spec()
        return self.encoder.batch(np.zeros((1, *spec.shape), spec.dtype))

    def state(self) -> train.State:
        """Returns the State of the model, read when it is first asked for."""
        if self._state is None:
            config, model, inputs = self.config, self.config.recipe.model, self.example()["inputs"]
            sha256 = self.data["weights_sha256"]
            backbone = transfer.backbone(
                config.transfer, model, inputs, sha256, self.folder, self.log
            )
            seen = transfer.head_inputs(model, inputs) if backbone else inputs
            recipe = transfer.trained(config.transfer, config.recipe)
            abstract = train.abstract(recipe, config.hparams, seen)
            checkpoints = Checkpoints(self.folder / "checkpoints", config.recipe.task, self.log)
            state = checkpoints.restore_best(abstract)
            self._state = transfer.with_backbone(state, backbone)
        return self._state

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the model's outputs on inputs (n, ...), float32 (n, ...), computed in batches of
        SIZES. With `tta` it is the mean over the views, as the task's `mean` has it."""
        parts = [
            self._outputs(pad_rows(inputs[start : start + SIZES[-1]]))
            for start in range(0, len(inputs), SIZES[-1])
        ]
        return np.concatenate(parts)[: len(inputs)]

    def _outputs(self, inputs) -> np.ndarray:
        recipe, numbers = self.config.recipe, train.as_traced(self.config.hparams.evaluation())
        state = self.state()

        def predict(seen):
            return np.asarray(train.predict(recipe, state, numbers, seen))

        if not self.tta:
            return predict(inputs)
        strengths = train.as_traced(self.config.hparams)
        views = [predict(inputs)]
        for i in range(self.tta):
            batch = {"inputs": train.floats(jnp.asarray(inputs))}
            batch = augment(self._augmentations(), jax.random.key(i), batch, strengths)
            views.append(predict(batch["inputs"]))
        weights = jnp.full(len(views), 1 / len(views), jnp.float32)
        return np.asarray(recipe.task.mean(jnp.stack(views), weights))

    def _augmentations(self):
        """Returns those of the run that change one example at a time and that its loss does not
        undo."""
        single = (MixUp, CutMix, Mix)
        return tuple(
            each for each in self.config.recipe.augment
            if not isinstance(each, single) and not getattr(each, "corrupts", False)
        )  # fmt: skip

    def expanded(self, inputs: list[str]) -> list[str]:
        """What a user names, one by one: for "-" the lines of standard input; where inputs are
        files, for a folder all that is below it but hidden ones, by name, and for a pattern such as
        "photos/*.jpg" what it fits. InputError for a folder or a pattern without files."""
        files, found = self.encoder.form.files, []
        for each in inputs:
            if each == "-":
                found += [line for line in sys.stdin.read().splitlines() if line.strip()]
            elif files and not Path(each).exists() and set(each) & set("*?["):
                found += _some(each, sorted(glob.glob(each, recursive=True)))
            elif files and Path(each).is_dir():
                below = (p for p in Path(each).rglob("*") if p.is_file())
                parts = ((p, p.relative_to(each).parts) for p in below)  # not those of ../photos
                shown = [str(p) for p, names in parts if not any(map(is_hidden, names))]
                found += _some(each, sorted(shown, key=natural_key))
            else:
                found.append(each)
        return found

    def answers(
        self, inputs: list[str], on_refused: Callable[[InputError], None] | None = None,
        advance: Callable[[int], None] = lambda more: None,
    ) -> list[tuple[str, dict]]:  # fmt: skip
        """For each input, a file or text, one sentence, and the same as JSON values. on_refused
        gets the error of each that cannot be used; without it the first one is raised. advance is
        told how many more are done."""
        if not inputs:  # what the run itself has, such as its series
            return self.of_examples(self.encoder.parse(None))
        answers = []
        for start in range(0, len(inputs), AT_ONCE):
            some = inputs[start : start + AT_ONCE]
            if parts := self._parse_all(some, on_refused):
                answers += self.of_examples(join(parts))
            advance(len(some))
        return answers

    def _parse_all(self, inputs, on_refused) -> list[Examples]:
        parts = []
        for given in inputs:
            try:
                parts.append(self.encoder.parse(given))
            except RowsRefused as error:  # the others are answered
                if on_refused is None:
                    raise
                for sentence in error.sentences:
                    on_refused(InputError(sentence))
                parts += [error.examples] if len(error.examples) else []
            except InputError as error:
                if on_refused is None:
                    raise
                on_refused(error)
        return parts

    @functools.cached_property
    def calibration(self) -> dict:
        """Returns what the task fitted on validation data. Raises InputError for a damaged file."""
        return load_calibration(self.folder)

    def of_examples(self, examples: Examples, draw: bool = True) -> list[tuple[str, dict]]:
        """`answers` for examples. Without draw no picture is written."""
        recipe = self.config.recipe
        batch = self.encoder.batch(self.encoder.raw(examples))
        asked = Asked(
            list(map(str, examples.names or range(len(examples)))), self.encoder.form.noun, batch,
            examples.columns, self.predictions(batch), self.encoder.target, recipe,
            train.variables(recipe, self.state()), self.folder if draw else None, self.calibration,
        )  # fmt: skip
        return recipe.task.answers(asked)

    def predictions(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns `Task.predictions` of a batch of n examples, (n, ...) each, computed in batches
        of SIZES, whatever n."""
        count, parts = len(batch["inputs"]), []
        for start in range(0, count, SIZES[-1]):
            padded = {n: pad_rows(array[start : start + SIZES[-1]]) for n, array in batch.items()}
            outputs = self._outputs(padded["inputs"])
            parts.append(self.config.recipe.task.predictions(
                outputs, padded, self.encoder.target, self.calibration
            ))  # fmt: skip
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])[:count]
            for name in parts[0]
        }

    def scores(self, examples: Examples) -> dict[str, float]:
        """Returns the loss and every metric of the task on examples with their target, all of
        them. One of a class that the model does not have is counted as wrong, which is said."""
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
        if unknown.any():  # of which there is no loss
            known = {name: array[~unknown] for name, array in arrays.items()}
            del scores["loss"]
            if not unknown.all():
                some = train.scores(task, self.config.hparams, known, outputs[~unknown])
                scores = {"loss": some["loss"], **scores}
        return scores


def pad_rows(array: np.ndarray) -> np.ndarray:
    """Returns the rows, filled up to one of SIZES with copies of the first."""
    more = padded_size(len(array)) - len(array)
    return np.concatenate([array, np.repeat(array[:1], more, 0)]) if more else array


def _some(what: str, files: list[str]) -> list[str]:
    if not files:
        raise InputError(f"{what} has no files: name a folder or a pattern that has some.")
    return files


def as_row(values: dict) -> dict:
    """A line of a CSV file: {"probabilities": {"cat": 0.9}, "values": [1]} as {"probabilities.cat":
    0.9, "values.1": 1}."""
    row = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(i): each for i, each in enumerate(value, 1)}
        if isinstance(value, dict):
            row |= {f"{name}.{key}": each for key, each in as_row(value).items()}
        else:
            row[name] = value
    return row
