"""Learning rate finder: trains a population, one member a rate, for a few hundred steps."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.config.config import Config
from dlflax.data.order import Order, batch_order
from dlflax.errors import InputError, RunError
from dlflax.files import write_csv, write_json
from dlflax.report import figures
from dlflax.run.prepare import prepare, read_data
from dlflax.train.layout import free_bytes, layout_for, member_bytes
from dlflax.train.population import Population

RATES = 10.0 ** np.linspace(-6, 1, 36)
PARTS = 4  # quarters of the steps; the loss is the mean over the last one


def find_learning_rate(
    config: Config, folder: Path, steps: int = 200, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains the network for `steps` steps at each of RATES, from the same initial parameters and
    without warm-up.

    Smith 2017 increases the rate of one run instead; here each rate has the config's schedule.
    Writes learning_rates.csv, .json and .png to `folder`. Returns {"suggestion": rate with the
    lowest smoothed loss, "rates": [...], "losses": [...]}; a loss is None if training diverged.
    Raises InputError and RunError.
    """
    if steps < 20:
        raise InputError(f"--steps {steps} must be 20 or more: fewer are too noisy.")
    config = dataclasses.replace(config, run_dir=folder, bag_folds=0)
    config, setup = prepare(*read_data(config, log), log)
    steps -= steps % PARTS
    recipe, train_set = setup.start.recipe, setup.start.splits.train
    order = batch_order(train_set, recipe.batch_size)
    examples, batches = _first_batches(train_set, order, steps, config.seed)
    log(f"{len(RATES)} learning rates from {RATES[0]:g} to {RATES[-1]:g}, {steps} steps each")
    total_steps = config.epochs * order.steps
    losses = _train_losses(recipe, config, examples, batches, total_steps, setup.start.pretrained)
    if not np.isfinite(losses).any():
        raise RunError("training diverged at every learning rate: look at the data's values.")
    rows = [
        {"learning_rate": float(rate), "loss": float(loss) if np.isfinite(loss) else None}
        for rate, loss in zip(RATES, losses, strict=True)
    ]
    results = {
        "suggestion": float(f"{RATES[_argmin_smooth(losses)]:.2g}"),
        "steps": steps,
        "rates": [row["learning_rate"] for row in rows],
        "losses": [row["loss"] for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "learning_rates.json", results)
    write_csv(folder / "learning_rates.csv", rows)
    figure = functools.partial(figures.learning_rates, RATES, losses, results["suggestion"])
    figures.draw({"learning_rates": figure}, folder, log)
    return results


def _first_batches(train_set, order, steps, seed):
    """Returns (examples of the first `steps` batches, in memory; batches as their indices)."""
    epochs = range(-(-steps // order.steps))
    batches = np.concatenate([order.batches(seed, epoch) for epoch in epochs])[:steps]
    is_padding = batches < 0  # see `epoch_batches`
    rows = np.where(is_padding, -1 - batches, batches).ravel()
    indices = np.arange(len(rows), dtype=np.int32).reshape(batches.shape)
    examples = {name: np.asarray(leaf[rows]) for name, leaf in train_set.items()}
    return examples, np.where(is_padding, -1 - indices, indices)


def _train_losses(recipe, config, train_set, batches, total_steps, pretrained) -> np.ndarray:
    """Returns the mean loss over the last quarter of the steps for each rate, +inf if diverged.
    total_steps: of a whole run, for the schedule."""
    parts = batches.reshape(PARTS, -1, recipe.batch_size)
    part_order, hparams = Order(len(parts[0]), lambda _, part: parts[part]), config.hparams
    inputs = train_set["inputs"][:1]
    fits = max(1, free_bytes(train_set) // (2 * member_bytes(recipe, hparams, inputs)))
    losses = []
    for rates in np.array_split(RATES, -(-len(RATES) // fits)):
        constant = hparams.replace(warmup_fraction=0.0)
        members = [constant.replace(learning_rate=float(rate)) for rate in rates]
        population = Population(
            recipe, members, [[config.seed]] * len(rates), train_set, None, epochs=PARTS,
            layout=layout_for(recipe, hparams, inputs, len(rates)), pretrained=pretrained,
            orders=[part_order],
        )  # fmt: skip
        for (member,) in population.trainings:
            member.hparams = member.hparams.replace(total_steps=float(total_steps))
        population.train(PARTS)
        for i, (history,) in enumerate(population.histories):
            losses.append(np.inf if i in population.divergence_steps else history[-1]["train_loss"])
    return np.array(losses)


def _argmin_smooth(losses) -> int:
    """Returns the index of the lowest mean of three neighbours. Diverged is twice the worst, so
    that the last rate before divergence is not chosen."""
    worst = 2 * losses[np.isfinite(losses)].max()
    filled = np.pad(np.where(np.isfinite(losses), losses, worst), 1, mode="edge")
    return int(np.argmin(np.convolve(filled, np.ones(3) / 3, mode="valid")))
