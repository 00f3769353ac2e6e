"""A trained model's scores on labelled data that its run did not have."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train
from dlflax.data import table
from dlflax.data.targets import standardized
from dlflax.errors import InputError
from dlflax.run.predict import AT_ONCE, Predictor
from dlflax.train.step import task_sums


def labelled(predictor: Predictor, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """(inputs as the model sees them, targets as in training) of all examples at `place`, which is
    read as the run's data were. InputError for what cannot be read so, and for unknown classes."""
    source, info = predictor.config.data, predictor.data
    if predictor.kind not in ("picture", "text", "table") or not hasattr(source, "data_dir"):
        raise InputError(
            f"evaluate reads no {predictor.kind} from a path: give an array and its targets."
        )
    if not place.exists():
        raise InputError(f"{place} does not exist: name labelled data as the run was trained with.")
    dataset = dataclasses.replace(source, data_dir=place).load(predictor.log)
    inputs, targets = (
        np.concatenate([np.asarray(part[name][:]) for part in (dataset.train, dataset.test)])
        for name in ("inputs", "targets")
    )
    if predictor.kind == "text":
        inputs = source.read(inputs.tolist(), info, predictor.folder)[2]["inputs"]
    elif predictor.kind == "table":
        columns, names = info["columns"], dataset.info["names"]
        table.check_columns(columns, names, place)
        inputs = table.encoded(columns, table.numbered(columns, names, inputs))
    return predictor.checked_array(inputs), _targets(targets, dataset, info, place)


def _targets(targets, dataset, info, place):
    if not dataset.class_names:
        return standardized(targets, info) if "target_mean" in info else targets
    known = {name: number for number, name in enumerate(info["class_names"])}
    if unknown := [name for name in dataset.class_names if name not in known]:
        raise InputError(
            f"{place} has the class {unknown[0]}, and the model knows {', '.join(known)[:200]}."
        )
    places = np.array([known[name] for name in dataset.class_names])
    return targets[:, np.argsort(places)] if targets.ndim == 2 else np.int32(places[targets])


def scores(predictor: Predictor, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """What the task's `summary` says of them."""
    recipe, n = predictor.config.recipe, len(inputs)
    if not n or len(targets) != n:
        raise InputError(f"evaluate needs as many targets as inputs: {len(targets)} for {n}.")
    outputs = np.concatenate([
        predictor.outputs(inputs[start : start + AT_ONCE]) for start in range(0, n, AT_ONCE)
    ])  # fmt: skip
    numbers = train.as_traced(predictor.config.hparams.evaluation())
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    batch = {"targets": targets, "mask": jnp.ones(n, jnp.float32)}
    each = recipe.task.loss(outputs, targets, numbers)
    found = recipe.task.summary(jax.device_get(task_sums(recipe, outputs, each, batch)))
    scale = np.ravel(predictor.data.get("target_scale", 1.0))
    if len(scale) == 1:  # the mean over several numbers has no unit
        found |= {name: float(found[name] * scale[0]) for name in ("rmse", "mae") if name in found}
    return found
