"""The blend of a run: a bag of networks, and simpler models fitted to the same folds.

All are averaged in one `Ensemble`, weighted by the loss of their held-out outputs, so every example
but those of the test split both trains and validates.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import data, train
from dlflax.baselines import boosting, linear
from dlflax.config.config import Config
from dlflax.data.order import assign_folds
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.files import write_csv
from dlflax.models import MLP, calibration
from dlflax.report.progress import announcement, progress_bar
from dlflax.report.tables import number_text
from dlflax.run.prepare import Setup
from dlflax.run.results import Record
from dlflax.run.time_limit import EPOCHS, MEASURED, Clock, plan_epochs, read_plan
from dlflax.train.bag import Bag, fit_bag
from dlflax.train.ensemble import choose, ensemble_recipe, nest_variables
from dlflax.train.history import best_epoch
from dlflax.train.tasks import Classification, Regression

Log = Callable[[str], None]
MOST = 100  # members of an ensemble, no limit in practice
TREES_SHARE = 0.5  # of the time that is left for training
MAX_TREES = 2000  # of each fold and class
NEAR = 2.0  # times the least loss of a member
MIN_CALIBRATED = 500  # examples of a fold from which the calibrated loss chooses the epoch


class Members(NamedTuple):
    """Models of one kind that are averaged: one for each fold, or the folds' as one."""

    name: str
    model: Any
    variables: list[dict[str, Any]]
    outputs: np.ndarray
    """float32 (n, ...) for each example, of the model that it was held out from, divided by the
    temperature."""
    temperature: float = 1.0


class Bagged(NamedTuple):
    """A bag as a finished run."""

    config: Config
    """The Config of the Ensemble."""
    setup: Setup
    state: train.State
    row: dict[str, float]
    """The only row of its history."""
    calibration: dict[str, Any]
    members: list[Members]
    weights: list[float]
    held_out: dict[str, Any]
    """Arrays of the examples that the members' outputs are for."""


def check(config: Config) -> None:
    """Raises InputError for settings without a meaning for a bag."""
    for name in ("fsdp", "distributed", "profile", "devices"):
        if getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} has no effect on a bag: remove it, or add --bag-folds 0.")
    if config.transfer is not None and config.transfer.has_weights:
        raise InputError("--bag-folds must be 0 with pretrained weights, or add --weights none.")


def folds(config: Config, dataset: data.Dataset) -> np.ndarray:
    """Returns the fold of each example that is not in the test split, int (n,): at most one fold
    per group. Raises InputError for a series."""
    examples, split = dataset.examples, dataset.split
    if examples.target is None or isinstance(split, data.ByTime):
        raise InputError("--bag-folds must be 0 for data without targets and for series.")
    rows = split.rows(examples, 0.0, config.seed, lambda sentence: None)["train"]
    count, groups = min(config.bag_folds, len(rows)), None
    if split.groups is not None:
        groups = split.groups[rows]
        count = min(count, len(np.unique(groups)))
    return assign_folds(examples.target[rows], count, config.seed, groups)


def fit(config: Config, setup: Setup, record: Record, clock: Clock) -> Bagged:
    """Trains the members, and returns their average as a finished run. setup: without a validation
    split. Raises InputError and RunError."""
    begun, fold_of = time.perf_counter(), folds(config, setup.dataset)
    if not fits_on_device(setup.start.splits.train):
        raise InputError("--bag-folds must be 0 for data that do not fit into memory.")
    slow = list(read_plan(record.folder).get("slow", []))
    others = _fit_others(config, setup, fold_of, clock, slow, record.log)
    bag = _fit_networks(config, setup, fold_of, record, clock, slow)
    model = setup.start.recipe.model
    members = [Members("network", model, bag.variables, bag.outputs), *others]
    return average(config, setup, record, members, setup.start.splits.train, begun)


def average(
    config: Config, setup: Setup, record: Record, members: list[Members], held_out: dict[str, Any],
    begun: float, equal_share: float = 0.0,
) -> Bagged:  # fmt: skip
    """Returns the weighted average of the members as a finished run. held_out: arrays of the
    examples that the members' outputs are for; begun: by time.perf_counter; equal_share: of the
    weights, for members whose loss is at most NEAR times the least, in equal parts."""
    task, hparams = setup.start.recipe.task, train.as_float32(config.hparams.evaluation())
    if isinstance(task, Classification):  # the epochs are chosen
        task = dataclasses.replace(task, monitor="loss")
    batch = train.host_batch(task, held_out)
    members = [_calibrate(member, task, hparams, batch) for member in members]
    outputs = jnp.stack([member.outputs for member in members])
    chosen = choose(task, hparams, outputs, batch, MOST)
    scores = [train.scores(task, config.hparams, held_out, member.outputs) for member in members]
    losses = np.nan_to_num([values["loss"] for values in scores], nan=np.inf)
    near = (losses <= NEAR * losses.min()) * equal_share
    weights = near / max(1, np.count_nonzero(near)) + (1 - equal_share) * np.array(chosen.weights)
    chosen = chosen._replace(weights=weights.tolist())
    for member, weight, values in zip(members, chosen.weights, scores, strict=True):
        name = task.metric().name
        record.say(
            f"{member.name}: loss {number_text(values['loss'])}, "
            f"{name.replace('_', ' ')} {number_text(values[name])} on held-out folds; "
            f"weight {weight:.0%}"
        )
    picked = [pair for pair in zip(members, chosen.weights, strict=True) if pair[1]]
    models = [(member, weight / len(member.variables)) for member, weight in picked
              for _ in member.variables]  # fmt: skip
    recipe = ensemble_recipe(
        dataclasses.replace(setup.start.recipe, task=task),
        [(member.model, config.hparams) for member, _ in models],
        [weight for _, weight in models],
        chosen.temperature,
        temperatures=[member.temperature for member, _ in models],
    )
    variables = nest_variables([tree for member, _ in picked for tree in member.variables])
    mean = task.mean(outputs, jnp.float32(chosen.weights)) / chosen.temperature
    values = train.scores(task, config.hparams, held_out, mean)
    row = {
        "epoch": 1, "step": 1, "learning_rate": 0.0, "seconds": time.perf_counter() - begun,
        "examples_per_second": 0.0, **{f"val_{name}": value for name, value in values.items()},
    }  # fmt: skip
    fitted = task.calibrate(np.asarray(mean), batch, hparams)
    fitted |= {"temperature": 1.0} if "temperature" in fitted else {}  # it is the Ensemble's
    start = dataclasses.replace(setup.start, recipe=recipe)
    abstract = train.abstract(recipe, config.hparams, held_out["inputs"][:1])
    config = dataclasses.replace(
        config, recipe=recipe, epochs=1, patience=0, plateau_patience=0, bag_folds=0, given=()
    )
    setup = dataclasses.replace(setup, start=start, abstract=abstract)
    state = _as_state(abstract, variables, config.seed)
    return Bagged(config, setup, state, row, fitted, members, chosen.weights, held_out)


def _calibrate(member: Members, task, hparams, batch) -> Members:
    """Returns the members with the temperature that calibrates their held-out outputs."""
    if not task.logits or len(member.outputs) < calibration.MIN_EXAMPLES:
        return member
    temperature, _ = calibration.temperature(task.loss, hparams, member.outputs, batch)
    return member._replace(outputs=member.outputs / temperature, temperature=temperature)


def _fit_networks(
    config: Config, setup: Setup, fold_of, record: Record, clock: Clock, slow: list[str]
) -> Bag:
    """Trains the networks, and writes metrics.csv with the means over the networks."""
    recipe, splits = setup.start.recipe, setup.start.splits
    enough = len(fold_of) >= MIN_CALIBRATED * config.bag_folds
    if isinstance(recipe.task, Classification) and recipe.task.monitor == "loss" and enough:
        # overconfidence is removed afterwards, so it must not choose the epoch
        recipe = dataclasses.replace(
            recipe, task=dataclasses.replace(recipe.task, monitor="calibrated_loss")
        )

    def measure():
        ends: list[float] = []
        fit_bag(
            recipe, config.hparams, splits.train, fold_of, seed=config.seed, epochs=EPOCHS,
            on_epoch=lambda: ends.append(time.perf_counter()),
            should_stop=lambda: len(ends) > 1 and ends[-1] - ends[0] > MEASURED * clock.limit,
        )  # fmt: skip
        return float(np.diff(ends).min())

    config = plan_epochs(config, record.folder, clock, measure, record.log, {"slow": slow})
    record.say(f"training {int(fold_of.max()) + 1} networks, each with another fold held out: "
               f"{config.epochs:,} epochs")  # fmt: skip
    with progress_bar("epochs", config.epochs) as advance:
        bag = fit_bag(
            recipe, config.hparams, splits.train, fold_of, seed=config.seed, epochs=config.epochs,
            patience=config.patience, plateau_patience=config.plateau_patience,
            on_epoch=lambda: advance(1),
        )  # fmt: skip
    rows = []
    for epoch in range(max(map(len, bag.histories))):
        same = [history[epoch] for history in bag.histories if epoch < len(history)]
        rows.append({name: float(np.mean([row[name] for row in same])) for name in same[0]})
    write_csv(record.folder / "metrics.csv", rows)
    epochs = [best_epoch(history, recipe.task) + 1 for history in bag.histories]
    record.say(f"best epochs of the networks: {', '.join(map(str, epochs))}")
    return bag


def _fit_others(
    config: Config, setup: Setup, fold_of, clock: Clock, slow: list[str], log: Log
) -> list[Members]:
    """Returns a linear model, and boosted trees of every installed library, where they fit the task
    and the time. slow: names of those that do not, which is extended."""
    libraries = boosting.available()[::-1]  # the most accurate first
    recipe, splits = setup.start.recipe, setup.start.splits
    inputs, targets = splits.train["inputs"], np.asarray(splits.train["targets"])
    is_classes = isinstance(recipe.task, Classification)
    outputs = len(splits.class_names) if is_classes else targets[0].size
    if (
        config.blend == "none" or inputs.ndim != 2 or inputs.dtype.kind != "f"
        or not is_classes and not isinstance(recipe.task, Regression)
        or getattr(recipe.model, "num_outputs", outputs) != outputs  # one logit for two classes
    ):  # fmt: skip
        return []

    def fit_linear():
        numbers = targets if is_classes else np.float64(targets).reshape(len(targets), -1)
        fits = linear.fit_folds(inputs, numbers, fold_of, outputs if is_classes else 0)
        model = MLP(features=(), num_outputs=outputs)
        return Members("linear model", model, [{"params": {"logits": fits.params}}], fits.outputs)

    def fit_trees(library):
        later = len(libraries) - libraries.index(library)
        seconds = TREES_SHARE * clock.remaining() / later if clock.limit else math.inf
        fits = boosting.fit_folds(
            library, splits.encoder, recipe.task, inputs, targets, fold_of, seed=config.seed,
            max_trees=MAX_TREES, seconds=seconds,
        )  # fmt: skip
        name = f"boosted trees ({library})"
        return Members(name, fits.model, [fits.variables], fits.outputs)

    fits = {"a linear model": fit_linear}
    for library in libraries:
        fits[f"boosted trees of {library}"] = functools.partial(fit_trees, library)
    members = []
    for name in [name for name in fits if name not in slow]:
        fit = fits[name]
        try:
            with announcement(f"fitting {name} ...", log):
                members.append(fit())
        except TimeoutError:
            log(f"time limit: no {name}")
            slow.append(name)
        except InputError as error:
            log(f"note: no {name}: {error}")
        except Exception as error:  # another library may raise anything on unusual data
            log(f"warning: fitting {name} failed ({type(error).__name__}: {error})")
    return members


def _as_state(abstract: train.State, variables: dict[str, Any], seed: int) -> train.State:
    """Returns a State of these variables after one step."""
    collections = dict(variables)
    params = collections.pop("params", {})
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt_state)
    state = train.State(np.int32(1), params, collections, opt_state, None, jax.random.key(seed))
    return jax.device_put(state)


def test_members(bagged: Bagged) -> list[dict[str, Any]]:
    """Returns name, number, weight, and scores on held-out folds and on the test split of each kind
    of members."""
    config, splits = bagged.config, bagged.setup.start.splits
    task, hparams, rows = config.recipe.task, train.as_float32(config.hparams.evaluation()), []
    for member, weight in zip(bagged.members, bagged.weights, strict=True):
        recipe = train.Recipe(member.model, task)
        outputs = jnp.stack([
            train.predict(recipe, train.from_variables(tree), hparams, splits.test["inputs"])
            / member.temperature
            for tree in member.variables
        ])  # fmt: skip
        shares = jnp.full(len(outputs), 1 / len(outputs), jnp.float32)
        rows.append({
            "name": member.name, "models": len(outputs), "weight": weight,
            "val": train.scores(task, config.hparams, bagged.held_out, member.outputs),
            "test": train.scores(task, config.hparams, splits.test, task.mean(outputs, shares)),
        })  # fmt: skip
    return rows
