"""Task, the base class: loss, metrics, and the meaning of a model's outputs.

A task is a frozen dataclass that inherits from `Task`, or from a shipped task in this package.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.data.target import Target
from dlflax.errors import InputError
from dlflax.train.metrics import MeanLoss, Metric

LOSS = MeanLoss()


class Task(abc.ABC):
    """Loss, metrics and answers, which every task defines, and hooks with a default. A batch of n
    examples has the keys of `train.batch.Batch`: "inputs" (n, ...), "targets", "mask" float32 (n,),
    0 for padding, which must not count; and every other array (n, ...) of the data source."""

    monitor: str = "loss"
    """Metric whose validation value selects the best epoch, for patience and plateau, too."""
    logits: ClassVar[bool] = False
    """True if outputs are logits, which an ensemble may divide by a temperature."""

    def __init_subclass__(cls, **options):
        """Allows a method to override a parent's field of its name, such as `loss`: a dataclass
        would set the field, and never call the method."""
        super().__init_subclass__(**options)
        fields = getattr(cls, "__dataclass_fields__", {})
        hints = dict(cls.__dict__.get("__annotations__", {}))
        methods = [n for n, v in vars(cls).items() if inspect.isfunction(v) and n not in hints]
        cls.__annotations__ = hints | {name: ClassVar[Any] for name in methods if name in fields}

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Mapping[str, Any], hparams: Any) -> jax.Array:
        """Returns the loss of each example, float32 (n,); padding's is ignored. outputs: float32
        (n, ...). Traced. May be a callable field: `losses`."""

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics besides the loss. `compare` and the baselines use the first."""

    @abc.abstractmethod
    def answers(self, asked: "Asked") -> list[tuple[str, dict[str, Any]]]:
        """Returns (sentence, JSON values) for each input of `predict`."""

    def metric(self, name: str | None = None) -> Metric:
        """Returns the metric with this name, which may be loss, or the first metric. Raises
        InputError for an unknown name."""
        by_name = {metric.name: metric for metric in (*self.metrics, LOSS)}
        if name is not None and name not in by_name:
            raise InputError(f"--task.monitor {name} must be one of {', '.join(by_name)}.")
        return by_name[name or next(iter(by_name))]

    def for_data(self, splits: Any) -> "Task":
        """Returns the task that a run uses for these data, `data.Splits`; default: itself."""
        return self

    def check_arrays(
        self, arrays: Mapping[str, Any], outputs: Callable[[], jax.ShapeDtypeStruct]
    ) -> None:
        """Raises InputError if the task cannot take the arrays (n, ...) of a split, or the model's
        outputs. outputs() returns shape and dtype for one example, (1, ...). Called before the
        first step, also by `train.fit`."""
        return None

    def check(self, splits: Any, outputs: Callable[[], jax.ShapeDtypeStruct]) -> None:
        """Raises InputError if `data.Splits` lack what the task needs besides arrays, such as class
        names. A run calls it after `check_arrays`."""
        return None

    def model_fields(self, splits: Any) -> dict[str, Any]:
        """Returns the values of model fields that depend on the data, such as num_outputs. A model
        may lack these fields."""
        return {}

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Returns the values to predict, (n, ...). The inputs are augmented floats. Traced."""
        return batch["targets"]

    def mean(self, outputs: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns the outputs (n, ...) of an ensemble. outputs: of its models, float32
        (models, n, ...); weights: (models,), their sum is 1. Traced."""
        return jnp.tensordot(weights, outputs, 1)

    def example_weights(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Returns the weights of --class-weights balanced, float32 (n,), for targets (n, ...).
        Raises InputError by default: the task has no classes."""
        raise InputError("--class-weights balanced is for classes: remove the flag.")

    def calibrate(
        self, outputs: np.ndarray, batch: Mapping[str, np.ndarray], hparams: Any
    ) -> dict[str, Any]:
        """Returns numbers or lists of numbers by name, fitted on the validation outputs (N, ...)
        after training and saved in calibration.json. batch: as for `Collecting` metrics."""
        return {}

    def predictions(
        self, outputs: Any, batch: Mapping[str, Any], target: Target, calibration: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns predictions by name, (n, ...): outputs as probabilities, or in the target's unit.
        For `answers` and for the model that `inference.export` writes. target, calibration: as in
        `Asked`. NumPy or traced."""
        return {"outputs": outputs}

    def baselines(self, model: Any, splits: Any) -> dict[str, Callable[[], Any]]:
        """Returns reference models: name -> function that fits a
        `baselines.reference_models.Baseline`."""
        return {}

    def describe(self, tested: "Tested") -> "Description":
        """Returns the report of the test outputs besides the metrics."""
        return Description()


@dataclasses.dataclass(frozen=True)
class Tested:
    """The argument of `Task.describe`: a trained model and its outputs on the test split."""

    recipe: Any
    hparams: Any
    variables: Mapping[str, Any]
    """{"params": ..., ...}, for evaluation."""
    splits: Any
    """`data.Splits` of the data source."""
    outputs: np.ndarray
    """float32 (n, ...), on splits.test."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Inputs (n, ...) -> outputs float32 (n, ...) of the model."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The result of `Task.calibrate`; {} without validation."""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Test scores of the task's metrics."""


Table = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Description:
    """The result of `Task.describe`."""

    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More test scores, JSON values, for results.json."""
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More top-level values of results.json."""
    tables: dict[str, Table | Callable[[], Table]] = dataclasses.field(default_factory=dict)
    """Name -> rows of NAME.csv, or a function that returns them, called after all scores are
    saved."""
    figures: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    """Name -> function that returns a matplotlib Figure for NAME.png, or None, called after all
    scores are saved."""
    findings: list[str] = dataclasses.field(default_factory=list)
    """Sentences for the report, such as a test on a subset of the examples."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The argument of `Task.answers`: inputs of `predict`, and the model's predictions."""

    inputs: list[str]
    """Names of the inputs: files, texts."""
    noun: str
    """Noun for an input: file, text, row."""
    batch: Mapping[str, np.ndarray]
    """"inputs" (n, ...) and the other arrays of `Encoder.batch`."""
    columns: Mapping[str, np.ndarray]
    """The columns of the raw examples (`data.Examples`)."""
    predictions: Mapping[str, np.ndarray]
    """The arrays of `Task.predictions`."""
    target: Target
    """The encoder's target."""
    recipe: Any
    variables: Mapping[str, Any]
    folder: Path | None
    """Run folder for figures; None for no figures."""
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The result of `Task.calibrate`."""


def has_images(splits: Any) -> bool:
    """True if examples of these data can be drawn."""
    inputs = splits.test["inputs"]  # only its shape and dtype: it may be on disk
    return splits.encoder.image(np.zeros((1, *inputs.shape[1:]), inputs.dtype), 0) is not None


def require_targets(arrays, task: str) -> np.ndarray:
    """Returns the targets of a split. Raises InputError if there are none."""
    if "targets" not in arrays:
        raise InputError(f'--task {task} needs "targets" in the data, and there are none.')
    return np.asarray(arrays["targets"][:])


def check_outputs(outputs, needed: tuple[int, ...], reason: str, *others: tuple[int, ...]) -> None:
    """Raises InputError unless the model's output for an example has the needed shape, or one of
    the others. outputs: as for `Task.check`; reason: the subject of "needs"."""
    shape = tuple(outputs().shape[1:])
    if shape not in (needed, *others):
        raise InputError(
            f"--model: its outputs have shape {shape} for an example, but {reason} needs {needed}."
        )


def reject_targets(targets: np.ndarray, task: str, needed: str) -> NoReturn:
    """Raises InputError for targets of another dtype or shape than needed."""
    shape = ", ".join(["n", *map(str, targets.shape[1:])]) + "," * (targets.ndim == 1)
    raise InputError(
        f"--task {task} needs {needed}, as targets; these are {targets.dtype} ({shape}): use "
        "another --task."
    )


def output_names(asked: Asked, count: int) -> list[str]:
    """Returns the names of the model's outputs, by default their indices. Raises InputError if the
    encoder has another number of names."""
    names = list(asked.target.classes) or list(map(str, range(count)))
    if len(names) != count:
        raise InputError(
            f"encoder.json is damaged: target.names has {len(names)} names for the {count} outputs "
            "of the model."
        )
    return names
