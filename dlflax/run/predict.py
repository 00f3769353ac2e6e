"""The model of a run folder, for new inputs."""

import functools
import glob
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train, transfer
from dlflax.data import table
from dlflax.errors import InputError
from dlflax.models.protocols import ReadingTokens
from dlflax.run.experiment import of_run
from dlflax.run.folder import load_calibration, load_config
from dlflax.run.saved import config_from_json
from dlflax.train.augment import CutMix, Mix, MixUp, augment
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.tasks import Asked

AT_ONCE = 256  # inputs that are read and computed at a time


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
        self.folder, self.data, self.log = run_dir, saved["data"], log
        self.experiment = saved["experiment"]
        made_by = of_run(saved, run_dir, experiment, package, log)
        self.config = config_from_json(saved["config"], run_dir, made_by)
        self._state, self.tta = None, tta
        if tta < 0 or tta and not self._augmentations():
            raise InputError(
                f"--tta {tta} needs a run with --augment, such as flip or crop, and 0 or more."
            )

    def state(self, inputs) -> train.State:
        """inputs: a batch of what is to be predicted."""
        if self._state is None:
            config, model = self.config, self.config.recipe.model
            sha256 = self.data.get("weights_sha256")
            backbone = transfer.backbone(
                config.transfer, model, inputs, sha256, self.folder, self.log
            )
            seen = transfer.head_inputs(model, inputs) if backbone else inputs[:1]
            recipe = transfer.trained(config.transfer, config.recipe)
            abstract = train.abstract(recipe, config.hparams, seen)
            checkpoints = Checkpoints(self.folder / "checkpoints", config.recipe.task, self.log)
            state = checkpoints.restore_best(abstract)
            self._state = transfer.with_backbone(state, backbone)
        return self._state

    def outputs(self, inputs) -> np.ndarray:
        """The model's outputs, float32 (n, ...), on inputs (n, ...); with `tta` the mean over the
        views, as the task's `mean` has it."""
        recipe, numbers = self.config.recipe, train.as_traced(self.config.hparams.evaluation())
        state = self.state(inputs)

        def of(seen):
            return np.asarray(train.predict(recipe, state, numbers, seen))

        if not self.tta:
            return of(inputs)
        strengths = train.as_traced(self.config.hparams)
        views = [of(inputs)]
        for i in range(self.tta):
            batch = {"inputs": train.floats(jnp.asarray(inputs))}
            batch = augment(self._augmentations(), jax.random.key(i), batch, strengths)
            views.append(of(batch["inputs"]))
        weights = jnp.full(len(views), 1 / len(views), jnp.float32)
        return np.asarray(recipe.task.mean(jnp.stack(views), weights))

    def _augmentations(self):
        """Those of the run that change one example at a time, and that its loss does not undo."""
        single = (MixUp, CutMix, Mix)
        return tuple(
            each for each in self.config.recipe.augment
            if not isinstance(each, single) and not getattr(each, "corrupts", False)
        )  # fmt: skip

    def _read(self, inputs, on_refused):
        """What the data source reads of the inputs, without those that are refused."""
        read = functools.partial(self.config.data.read, data=self.data, folder=self.folder)
        if on_refused is None or not inputs:
            return read(inputs)
        names, kind, batches = [], "", []
        for each in inputs:
            try:
                some, kind, batch = read([each])
            except InputError as error:
                on_refused(error)
                continue
            names += some
            batches.append(batch)
        batch = {k: np.concatenate([each[k] for each in batches]) for k in (batches or [{}])[0]}
        return names, kind, batch

    def expanded(self, inputs: list[str]) -> list[str]:
        """What a user names, one by one: for "-" the lines of standard input; where inputs are
        files, for a folder all that is below it but hidden ones, by name, and for a pattern such as
        "photos/*.jpg" what it fits. InputError for a folder or a pattern without files."""
        files, found = getattr(self.config.data, "INPUTS", "files") == "files", []
        for each in inputs:
            if each == "-":
                found += [line for line in sys.stdin.read().splitlines() if line.strip()]
            elif files and not Path(each).exists() and set(each) & set("*?["):
                found += _some(each, sorted(glob.glob(each, recursive=True)))
            elif files and Path(each).is_dir():
                below = (p for p in Path(each).rglob("*") if p.is_file())
                parts = ((p, p.relative_to(each).parts) for p in below)  # not those of ../photos
                shown = [p for p, names in parts if not any(n.startswith(".") for n in names)]
                found += _some(each, sorted(map(str, shown)))
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
        if not hasattr(self.config.data, "read"):
            raise InputError(
                f"{type(self.config.data).__name__} has no method read, which predict needs: "
                "read(inputs, data, folder) -> (names, kind, batch)."
            )
        found = []
        for start in range(0, max(len(inputs), 1), AT_ONCE):
            some = inputs[start : start + AT_ONCE]
            found += self._answers(some, on_refused)
            advance(len(some))
        return found

    def _answers(self, inputs, on_refused):
        names, kind, batch = self._read(inputs, on_refused)
        return self.of_batch(names, kind, batch) if names else []

    @functools.cached_property
    def calibration(self) -> dict:
        """What the run's task fitted on its validation data. InputError for a damaged file."""
        return load_calibration(self.folder)

    @property
    def kind(self) -> str:
        """What an example is, as `Splits.kind`: picture, text, table, series, or array for all
        else."""
        shape = self.data["input_shape"]
        guess = "picture" if len(shape) == 3 and shape[2] in (1, 3) else "array"
        guess = "table" if "columns" in self.data else guess  # before version 0.3 it was not saved
        guess = "series" if "last_window" in self.data else guess
        kind = self.data.get("kind", "text" if "tokenizer" in self.data else guess)
        return kind if kind in ("picture", "text", "table", "series") else "array"

    @property
    def dtype(self) -> str:
        """Of the model's inputs."""
        guess = {"picture": "uint8", "text": "int32"}.get(self.kind, "float32")
        found = self.data.get("dtype", guess)
        if found not in ("uint8", "int32", "float32", "float16", "int8", "int16", "uint16"):
            raise InputError(f"config.json is damaged: data.dtype {found!r} is none of a model's.")
        return found

    def checked_array(self, inputs) -> np.ndarray:
        """Arrays (n, *shape), of one example or many, as the model sees them: pixels as uint8 or as
        floats from 0 to 1, rows of a table in the units of its columns, else as trained with.
        InputError for any other."""
        array = np.asarray(inputs)
        columns = self.data["columns"] if self.kind == "table" else None
        shape = tuple(self.data["input_shape"]) if columns is None else (len(columns),)
        array = array[None] if array.shape == shape else array
        if self.kind == "series":
            raise InputError("predict takes the CSV file of a series, not an array.")
        if array.dtype.kind not in "fiu" or array.shape[1:] != shape:
            rows = "" if columns is None else f" ({', '.join(c['name'] for c in columns)[:200]})"
            raise InputError(
                f"predict takes arrays in shape {('n', *shape)}{rows}, paths, texts or "
                f"a data frame, no {array.dtype} in shape {array.shape}."
            )
        if columns is not None:
            return _encoded_rows(columns, array)
        if self.dtype == "uint8":
            return _pixels(array)
        with np.errstate(over="ignore"):  # said below
            cast = array.astype(self.dtype)
        if not np.isfinite(cast).all() or cast.dtype.kind != "f" and (cast != array).any():
            raise InputError(f"predict takes finite numbers of {self.dtype}: there are others.")
        model = self.config.recipe.model
        most = model.vocabulary if isinstance(model, ReadingTokens) else 1
        if self.kind == "text" and cast.size and not 0 <= cast.min() <= cast.max() < most:
            raise InputError(f"predict takes tokens from 0 to {most - 1}: there are others.")
        return cast

    def of_batch(
        self, names: list[str], kind: str, batch, draw: bool = True
    ) -> list[tuple[str, dict]]:
        """`answers` for what is read already: "inputs" (n, ...) and what else there is, their names
        and what one is called. Without draw no picture is written."""
        recipe = self.config.recipe
        variables = train.variables(recipe, self.state(batch["inputs"]))
        predictions = recipe.task.predictions(
            self.outputs(batch["inputs"]), batch, self.data, self.calibration
        )
        asked = Asked(
            names, kind, batch, {name: np.asarray(each) for name, each in predictions.items()},
            self.data, recipe, variables, self.folder if draw else None, self.calibration,
        )  # fmt: skip
        return recipe.task.answers(asked)


def _pixels(array: np.ndarray) -> np.ndarray:
    """uint8 (n, ...), or float32 from 0 to 1, which the model does not divide by 255."""
    whole = array.dtype.kind in "iu"
    most = 255 if whole else 1
    if not ((array >= 0) & (array <= most)).all():  # NaN, too
        raise InputError(
            "predict takes pixels as whole numbers from 0 to 255 or as floats from 0 to 1; these "
            f"{array.dtype} go from {np.min(array):g} to {np.max(array):g}."
        )
    return array.astype(np.uint8 if whole else np.float32)


def _encoded_rows(columns: list[dict], array: np.ndarray) -> np.ndarray:
    """float32 (n, d) of rows of numbers, NaN where one is missing, in the order of the columns."""
    if texts := [c["name"] for c in columns if c["kind"] != "numbers"]:
        raise InputError(
            f"predict takes no array for a table with texts ({texts[0]}): give a data frame or a "
            "CSV file."
        )
    rows = np.float64(array)
    if np.isinf(rows).any():
        raise InputError("predict takes finite numbers, or NaN for a missing one.")
    return table.encoded(columns, rows)


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
