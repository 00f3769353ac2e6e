"""A trained model's scores on labelled data that its run did not have."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from dlflax import train
from dlflax.data import Splits
from dlflax.data.targets import standardized
from dlflax.errors import InputError
from dlflax.run.predict import AT_ONCE, Predictor


def labelled(predictor: Predictor, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """(inputs as the model sees them, targets as `scores` takes them) of all examples at `place`,
    read as the run's data were. InputError for what cannot be read so, and for unknown classes."""
    source, info = predictor.config.data, predictor.data
    if predictor.kind not in ("picture", "text", "table") or not hasattr(source, "data_dir"):
        raise InputError(
            f"evaluate reads no {predictor.kind} from a path: give an array and its targets."
        )
    if not place.exists():
        raise InputError(f"{place} does not exist: name labelled data as the run was trained with.")
    if predictor.kind == "table":
        inputs = source.read([str(place)], info, predictor.folder)[2]["inputs"]
        return inputs, source.read_targets(place, info)
    dataset = dataclasses.replace(source, data_dir=place).load(predictor.log)
    inputs, targets = (
        np.concatenate([np.asarray(part[name][:]) for part in (dataset.train, dataset.test)])
        for name in ("inputs", "targets")
    )
    if predictor.kind == "text":
        inputs = source.read(inputs.tolist(), info, predictor.folder)[2]["inputs"]
    return predictor.checked_array(inputs), _class_numbers(targets, dataset, info, place)


def _class_numbers(targets, dataset, info, place):
    """The targets by the run's own numbers of classes or labels; numbers as they are."""
    if not dataset.class_names:
        return targets
    known = {name: number for number, name in enumerate(info["class_names"])}
    if unknown := [name for name in dataset.class_names if name not in known]:
        raise InputError(
            f"{place} has the class {unknown[0]}, and the model knows {', '.join(known)[:200]}."
        )
    places = np.array([known[name] for name in dataset.class_names])
    return targets[:, np.argsort(places)] if targets.ndim == 2 else np.int32(places[targets])


def scores(predictor: Predictor, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Returns the loss and every metric of the task. targets: class numbers, labels, or numbers in
    their own unit. Raises InputError for others than the task takes."""
    recipe, info, n = predictor.config.recipe, predictor.data, len(inputs)
    targets = np.asarray(targets)
    if not n or targets.shape[:1] != (n,):
        raise InputError(
            f"evaluate needs as many targets as inputs: targets of shape {targets.shape} for {n}."
        )
    if "target_mean" in info:
        targets = standardized(_numbers(targets), info)
    outputs = np.concatenate([
        predictor.outputs(inputs[start : start + AT_ONCE]) for start in range(0, n, AT_ONCE)
    ])  # fmt: skip
    part = {"inputs": inputs, "targets": targets}
    splits = Splits(part, None, part, class_names=tuple(info["class_names"]), info=dict(info))
    recipe.task.check(splits, lambda: jax.ShapeDtypeStruct((1, *outputs.shape[1:]), outputs.dtype))
    return train.scores(recipe.task.for_data(splits), predictor.config.hparams, part, outputs)


def _numbers(targets: np.ndarray) -> np.ndarray:
    if targets.dtype.kind not in "fiu" or not np.isfinite(targets).all():
        raise InputError("evaluate needs finite numbers as targets, in the unit of the target.")
    return targets.astype(np.float64)
