"""Which learning rate: many of them in one compiled program, each for a few hundred steps."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from dlflax import data, train
from dlflax.data.order import epoch_batches
from dlflax.errors import InputError, RunError
from dlflax.files import write_csv, write_json
from dlflax.report import figures
from dlflax.run.config import Config
from dlflax.run.execute import prepared

RATES = 10.0 ** np.linspace(-6, 1, 36)


def find_learning_rate(
    config: Config, folder: Path, steps: int = 200, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains the config's network at each of RATES for `steps` steps from the same start (after
    Smith 2017, who lets the rate of one run grow). Writes learning_rates.csv, .json and .png in
    `folder`. Returns {"suggestion": the rate with the lowest loss over the last quarter, smoothed
    over its neighbours, "rates": [...], "losses": [...]}; a loss is None where training diverged.
    Raises InputError and RunError."""
    if steps < 20:
        raise InputError(f"--steps {steps} must be 20 or more: fewer tell nothing.")
    job = prepared(dataclasses.replace(config, run_dir=folder), log)
    config, recipe = job.config, job.start.recipe
    train_set, batches = _few(job.start.splits.train, recipe.batch_size, steps, config.seed)
    per_epoch = -(-data.examples(job.start.splits.train) // recipe.batch_size)
    hparams = config.hparams.replace(warmup=0.0, total_steps=float(config.epochs * per_epoch))
    log(f"{len(RATES)} learning rates from {RATES[0]:g} to {RATES[-1]:g}, {steps} steps each")
    sums = _train_all(recipe, hparams, RATES, train_set, batches, config.seed,
                      job.start.pretrained)  # fmt: skip
    losses = sums["loss"] / np.maximum(sums["count"], 1)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    if not np.isfinite(losses).any():
        raise RunError("training diverged at every learning rate: look at the data's values.")
    rows = [
        {"learning_rate": float(rate), "loss": float(loss) if np.isfinite(loss) else None}
        for rate, loss in zip(RATES, losses, strict=True)
    ]
    found = {
        "suggestion": float(f"{RATES[_lowest(losses)]:.2g}"),
        "steps": steps,
        "rates": [row["learning_rate"] for row in rows],
        "losses": [row["loss"] for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "learning_rates.json", found)
    write_csv(folder / "learning_rates.csv", rows)
    picture = functools.partial(figures.learning_rates, RATES, losses, found["suggestion"])
    figures.draw({"learning_rates": picture}, folder, log)
    return found


def _few(train_set, batch_size, steps, seed):
    """(the examples of the first `steps` batches, in memory; the batches, as places in them)."""
    count = data.examples(train_set)
    epochs = -(-steps * batch_size // max(count, batch_size)) + 1
    batches = np.concatenate([epoch_batches(count, batch_size, seed, e) for e in range(epochs)])
    batches = batches[:steps]
    real = np.where(batches < 0, -1 - batches, batches)  # see `epoch_batches`
    rows, places = np.unique(real, return_inverse=True)
    places = np.int32(places.reshape(batches.shape))
    few = {name: np.asarray(leaf[rows]) for name, leaf in train_set.items()}
    return few, np.where(batches < 0, -1 - places, places)


def _train_all(recipe, hparams, rates, train_set, batches, seed, pretrained):
    """The sums of the last quarter of the steps of every rate, leaves (rates, ...)."""
    steps = len(batches)

    def one(rate):
        numbers = train.as_traced(hparams.replace(learning_rate=rate))
        inputs = train_set["inputs"][:1]
        state = train.init(recipe, numbers, inputs, jax.random.key(seed), pretrained)
        zero = train.zero_sums(recipe, numbers, train_set)
        middle = np.int32(steps - steps // 4)
        state, _ = train.train_steps(
            recipe, state, numbers, train_set, batches, zero, np.int32(0), middle
        )
        return train.train_steps(
            recipe, state, numbers, train_set, batches, zero, middle, np.int32(steps)
        )[1]

    # one after the other on a CPU, where a single step fills the cores
    at_once = 1 if jax.default_backend() == "cpu" else 9
    mapped = jax.jit(lambda rates: lax.map(one, rates, batch_size=at_once))
    return jax.device_get(mapped(np.float32(rates)))


def _lowest(losses) -> int:
    """The place of the lowest mean of a loss and its two neighbours, of which a diverged one counts
    as twice the worst: not the last rate before training breaks."""
    worst = 2 * losses[np.isfinite(losses)].max()
    filled = np.pad(np.where(np.isfinite(losses), losses, worst), 1, mode="edge")
    return int(np.argmin(np.convolve(filled, np.ones(3) / 3, mode="valid")))
