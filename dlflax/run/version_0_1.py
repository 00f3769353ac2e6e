"""Settings that dlflax 0.1 saved, as this version saves them: it held names where there are things.

Runs with augmentations draw other random numbers from here on; all others resume to the same bits.
"""

from typing import Any

from dlflax.run.saved import to_json
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.losses import BinaryCrossEntropy
from dlflax.train.optim import OPTIMIZERS, SCHEDULES
from dlflax.train.tasks import Classification, Forecast, Reconstruction

TASKS = {
    "cross_entropy": Classification(),
    "binary_cross_entropy": Classification(loss=BinaryCrossEntropy()),
    "mean_squared_error": Forecast(),
    "reconstruction": Reconstruction(),
}


def converted(saved: dict[str, Any]) -> dict[str, Any]:
    """`settings` of any version since 0.1 in the form of this one. KeyError for what it does not
    know."""
    recipe = saved["config"]["recipe"]
    if "task" in recipe:
        return saved
    recipe = {
        "model": _named("dlflax.models", recipe["model"]),
        "task": to_json(TASKS[recipe["loss"]]),
        "optimizer": to_json(OPTIMIZERS[recipe["optimizer"]]),
        "schedule": to_json(SCHEDULES[recipe["schedule"]]),
        "batch_size": recipe["batch_size"],
        "augment": [to_json(AUGMENTATIONS[name]) for name in recipe["augment"]],
        **{name: recipe[name] for name in ("compute_dtype", "ema", "trainable")},
        "step": None,
    }
    config = {
        **saved["config"],
        "recipe": recipe,
        "hparams": {"class": "dlflax.train:Hparams", **saved["config"]["hparams"]},
        "data": _named("dlflax.data", saved["config"]["data"]),
    }
    if config.get("space"):  # of a sweep
        words = {**config["space"]}
        words |= {f"model.{name}": value for name, value in words.pop("model").items()}
        config["space"] = {name: value for name, value in words.items() if value}
    return {"defined_in": {"module": f"experiments.{saved['experiment']}"}, **saved,
            "config": config}  # fmt: skip


def _named(package: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "class": f"{package}:{fields['class']}"}
