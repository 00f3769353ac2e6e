"""The contract of a task: what kind of job a run is.

A task is a frozen dataclass with the attributes and methods of `Task`. Those shipped are in the
files beside this one; write your own from scratch, or as a subclass that overrides some methods.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

from dlflax.errors import InputError


class Task(Protocol):
    """What the loss is, what the outputs are compared with, which scores there are, what is
    reported of the test outputs and what a prediction looks like.

    In training n examples are a batch: "inputs" (n, ...), what else the data source gives, and
    "mask" float32 (n,), 0 for padding, which must not count.
    """

    loss: Callable[[Any, Any, Any], Any]
    """(outputs float32 (n, ...), targets, hparams) -> float32 (n,). hparams may be traced."""
    monitor: str
    """The score whose best validation value decides the best epoch, patience and the plateau."""
    SCORES: Mapping[str, Literal["min", "max"]]
    """Every score with the direction in which it is better; the first one is what approaches are
    compared by. Those that `summary` returns are scores of every epoch."""

    def check(self, splits, outputs: Callable[[], jax.ShapeDtypeStruct]) -> None:
        """InputError, in one sentence, when the data (`data.Splits`) or the model's outputs are not
        what this task takes. outputs() gives shape and dtype of those of one example, (1, ...)."""

    def model_fields(self, splits) -> dict[str, Any]:
        """Fields of the model that the task decides from the data, such as num_outputs; a model
        without such a field is left as it is."""

    def targets(self, batch) -> Any:
        """What the outputs are compared with: (n, ...). The inputs are floats by then, as the
        augmentations left them."""

    def sums(self, outputs, targets, mask) -> dict[str, Any]:
        """Sums over the examples that count, float32 arrays of any shape, which add up over batches
        and devices. `loss` and `count` are added by the step."""

    def summary(self, sums) -> dict[str, float]:
        """Scores from the sums, "loss" among them."""

    # A task whose outputs are logits may have mean_logits(logits (models, n, ...), weights
    # (models,)) -> (n, ...), the logits of the mean probabilities: an ensemble of its models then
    # averages these, and has a temperature; of other tasks it averages the outputs.

    # A task may have of_data(splits) -> the task that these data want, with which the run goes on.

    # A task may have calibrate(targets, outputs, hparams) -> {name: number or list of numbers}:
    # fitted on the validation data's targets and outputs (n, ...) when training is done, saved as
    # calibration.json, and given to `describe` and `answer`.

    # A task may have predictions(outputs, batch, data, calibration) -> {name: array (n, ...)}: what
    # the outputs mean, such as probabilities or numbers in their unit. NumPy or traced: `answer`
    # says the same as a file that `run.export` writes. batch and data as in `Asked`.

    # A task may have baselines(model, splits) -> {name: function that fits a simple model and
    # returns its `train.baselines.Baseline`}: a run tells how the network compares with them.

    def describe(self, tested: "Tested") -> "Description":
        """What more there is to say of the test outputs."""

    def answer(self, asked: "Asked") -> list[tuple[str, dict[str, Any]]]:
        """For each input that `predict` was given one sentence, and the same as JSON values."""


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a task describes: a trained model and its outputs on the test data."""

    recipe: Any
    hparams: Any
    variables: Mapping[str, Any]
    """{"params": ..., ...}, those to evaluate with."""
    splits: Any
    """`data.Splits`, as the data source made them."""
    sums: Mapping[str, np.ndarray]
    outputs: np.ndarray
    """float32 (n, ...), of splits.test."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Inputs (n, ...) -> outputs float32 (n, ...), by the same model."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `Task.calibrate` returned; {} without validation data."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What `Task.describe` returns."""

    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More test scores, JSON values, for results.json."""
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else belongs into results.json, at its top."""
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    """Name -> rows, each of which becomes NAME.csv."""
    figures: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    """Name -> function that draws a matplotlib Figure, or returns None; each becomes NAME.png. They
    are called when all scores are saved."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a task answers: inputs that a user gave to `predict`, and the model's outputs."""

    inputs: list[str]
    """As they were given: files, texts."""
    kind: str
    """What one is: "file", "text", ..."""
    batch: Mapping[str, np.ndarray]
    """"inputs" (n, ...) and what else the data source read."""
    outputs: np.ndarray
    """float32 (n, ...)."""
    data: Mapping[str, Any]
    """What config.json says of the data: class_names, input_shape, and the source's own."""
    recipe: Any
    variables: Mapping[str, Any]
    folder: Path | None
    """Of the run, for what is drawn; None where nothing is to be."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As that of `Tested`."""


def predictions(task: Task, outputs, batch, data, calibration) -> dict[str, Any]:
    """`Task.predictions`; {"outputs": ...} of a task without it."""
    if not hasattr(task, "predictions"):
        return {"outputs": outputs}
    return task.predictions(outputs, batch, data, calibration)


def predictions_of(task: Task, asked: Asked) -> dict[str, Any]:
    """`predictions` for what was asked."""
    return predictions(task, asked.outputs, asked.batch, asked.data, asked.calibration)


def targets_of(splits, task: str) -> np.ndarray:
    """The training targets. InputError where there are none."""
    if "targets" not in splits.train:
        raise InputError(f'--task {task} needs "targets" in the data, and there are none.')
    return splits.train["targets"]


def check_outputs(outputs, wanted: tuple[int, ...], what: str, *others: tuple[int, ...]) -> None:
    """InputError unless the model's outputs (as `Task.check` gets them) have the wanted shape for
    an example, or one of the others."""
    shape = tuple(outputs().shape[1:])
    if shape not in (wanted, *others):
        raise InputError(
            f"--model: its outputs have shape {shape} for an example, but {what} needs {wanted}."
        )


def described(array) -> str:
    """ "float32 (n, 3)", of targets, in messages."""
    shape = ", ".join(["n", *map(str, array.shape[1:])])
    return f"{array.dtype} ({shape}{',' * (array.ndim == 1)})"


def names_of_outputs(asked: Asked, count: int) -> list[str]:
    """The names of the model's outputs. InputError when config.json has another number of them."""
    names = asked.data["class_names"]
    if len(names) != count:
        raise InputError(
            f"config.json is damaged: data.class_names has {len(names)} names for the {count} that "
            "the model tells apart."
        )
    return names
