"""The contract of a task: loss, metrics, and the meaning of a model's outputs.

A task is a frozen dataclass that inherits from `Task`. Those shipped are in the files beside this
one; subclass the nearest, or `Task` itself.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.data.target import Target
from dlflax.errors import InputError
from dlflax.train.metrics import MeanLoss, Metric

LOSS = MeanLoss()


class Task(abc.ABC):
    """Loss, metrics and answers, which every task defines, and hooks with a default.

    In training n examples are a batch: the keys of `train.batch.Batch`, among them "inputs"
    (n, ...), "targets" and "mask" float32 (n,), 0 for padding, which must not count; and all other
    arrays of the data source, (n, ...) each.
    """

    monitor: str = "loss"
    """Name of the metric whose best validation value decides the best epoch, patience and the
    plateau."""
    logits: ClassVar[bool] = False
    """True if outputs are logits, which an ensemble may divide by a temperature."""

    def __init_subclass__(cls, **options):
        """Lets a method replace a parent's field of its name, such as `loss`. A dataclass would set
        the field, and never call the method."""
        super().__init_subclass__(**options)
        fields = getattr(cls, "__dataclass_fields__", {})
        hints = dict(cls.__dict__.get("__annotations__", {}))
        methods = [n for n, v in vars(cls).items() if inspect.isfunction(v) and n not in hints]
        cls.__annotations__ = hints | {name: ClassVar[Any] for name in methods if name in fields}

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Mapping[str, Any], hparams: Any) -> jax.Array:
        """Returns the loss of each example, float32 (n,); that of padding is ignored. outputs:
        float32 (n, ...). Traced. A field of this name that is so called will do: `losses`."""

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics besides the loss. The first one is what approaches are compared by."""

    @abc.abstractmethod
    def answers(self, asked: "Asked") -> list[tuple[str, dict[str, Any]]]:
        """Returns for each input that `predict` was given one sentence, and the same as JSON
        values."""

    def metric(self, name: str | None = None) -> Metric:
        """Returns the metric of that name, the loss among them; without a name the first one.
        Raises InputError for another."""
        known = {metric.name: metric for metric in (*self.metrics, LOSS)}
        if name is not None and name not in known:
            raise InputError(f"--task.monitor {name} must be one of {', '.join(known)}.")
        return known[name or next(iter(known))]

    def for_data(self, splits: Any) -> "Task":
        """Returns the task for these data (`data.Splits`), with which the run continues; default:
        itself."""
        return self

    def check_arrays(
        self, arrays: Mapping[str, Any], outputs: Callable[[], jax.ShapeDtypeStruct]
    ) -> None:
        """Raises InputError, in one sentence, when the arrays (n, ...) of a split or the model's
        outputs are not what this task takes. outputs() gives shape and dtype of those of one
        example, (1, ...). Called once before the first step, by `train.fit` too."""
        return None

    def check(self, splits: Any, outputs: Callable[[], jax.ShapeDtypeStruct]) -> None:
        """Raises InputError when `data.Splits` have not what this task takes besides its arrays,
        such as the names of classes. Called behind `check_arrays`, where a run begins."""
        return None

    def model_fields(self, splits: Any) -> dict[str, Any]:
        """Returns the fields of the model that the data decide, such as num_outputs. A model need
        not have them."""
        return {}

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Returns what the outputs are compared with, (n, ...). The inputs are floats by then, as
        the augmentations left them. Traced."""
        return batch["targets"]

    def mean(self, outputs: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns the outputs of an ensemble, (n, ...). outputs: those of its models, float32
        (models, n, ...); weights: (models,), which add up to 1. Traced."""
        return jnp.tensordot(weights, outputs, 1)

    def example_weights(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Returns the factors of --class-weights balanced, float32 (n,), of targets (n, ...).
        Raises InputError where the task has no classes, which is the default."""
        raise InputError("--class-weights balanced is for classes: remove the flag.")

    def calibrate(
        self, outputs: np.ndarray, batch: Mapping[str, np.ndarray], hparams: Any
    ) -> dict[str, Any]:
        """Returns what is fitted on all validation outputs (N, ...) when training is done, name ->
        number or list of numbers: saved as calibration.json. batch: as for `Collecting` metrics."""
        return {}

    def predictions(
        self, outputs: Any, batch: Mapping[str, Any], target: Target, calibration: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the meaning of outputs, such as probabilities or numbers in their unit: name ->
        (n, ...). `answers` gets it, and it is in the file that `run.export` writes. target and
        calibration: as those of `Asked`. NumPy or traced."""
        return {"outputs": outputs}

    def baselines(self, model: Any, splits: Any) -> dict[str, Callable[[], Any]]:
        """Returns the reference models to be stated beside the network, name -> function that fits
        one and returns its `train.baselines.Baseline`."""
        return {}

    def describe(self, tested: "Tested") -> "Description":
        """Returns what there is to report of the test outputs besides the metrics."""
        return Description()


@dataclasses.dataclass(frozen=True)
class Tested:
    """The subject of `Task.describe`: a trained model and its outputs on the test data."""

    recipe: Any
    hparams: Any
    variables: Mapping[str, Any]
    """{"params": ..., ...}, those to evaluate with."""
    splits: Any
    """`data.Splits`, as the data source made them."""
    outputs: np.ndarray
    """float32 (n, ...), of splits.test."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Inputs (n, ...) -> outputs float32 (n, ...), by the same model."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The result of `Task.calibrate`; {} without validation data."""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Scores of the outputs, by the task's metrics."""


Table = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Description:
    """The result of `Task.describe`."""

    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More test scores, JSON values, for results.json."""
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More values of results.json, at its top."""
    tables: dict[str, Table | Callable[[], Table]] = dataclasses.field(default_factory=dict)
    """Name -> rows, which become NAME.csv, or a function that returns them, which is called when
    all scores are saved."""
    figures: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    """Name -> function that draws a matplotlib Figure, or returns None; each becomes NAME.png. They
    are called when all scores are saved."""
    findings: list[str] = dataclasses.field(default_factory=list)
    """Sentences for the end of a run, such as what was too much work."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The subject of `Task.answers`: a user's inputs to `predict`, and the model's outputs."""

    inputs: list[str]
    """Their names: files, texts."""
    noun: str
    """One of them: file, text, row."""
    batch: Mapping[str, np.ndarray]
    """"inputs" (n, ...) and the other arrays of `Encoder.batch`."""
    columns: Mapping[str, np.ndarray]
    """The columns of the raw examples (`data.Examples`)."""
    predictions: Mapping[str, np.ndarray]
    """The arrays of `Task.predictions`."""
    target: Target
    """That of the encoder."""
    recipe: Any
    variables: Mapping[str, Any]
    folder: Path | None
    """Folder of the run, for what is drawn; None where nothing is to be."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """That of `Tested`."""


def has_images(splits: Any) -> bool:
    """True if examples of these data can be drawn."""
    inputs = splits.test["inputs"]  # of which none is read
    return splits.encoder.image(np.zeros((1, *inputs.shape[1:]), inputs.dtype), 0) is not None


def targets_of(arrays, task: str) -> np.ndarray:
    """Returns the targets of a split. Raises InputError where there are none."""
    if "targets" not in arrays:
        raise InputError(f'--task {task} needs "targets" in the data, and there are none.')
    return np.asarray(arrays["targets"][:])


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
    """Returns the names of the model's outputs, numbers where the target has none. Raises
    InputError when the encoder has another number of them."""
    names = list(asked.target.classes) or list(map(str, range(count)))
    if len(names) != count:
        raise InputError(
            f"encoder.json is damaged: target.names has {len(names)} names for the {count} outputs "
            "of the model."
        )
    return names
