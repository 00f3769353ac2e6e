"""The blend of a run or a sweep: bags of networks, and simpler models fitted to the same folds.

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
from dlflax.train.ensemble import Chosen, choose, ensemble_recipe, nest_variables
from dlflax.train.history import best_epoch
from dlflax.train.tasks import Classification, Regression

Log = Callable[[str], None]
MOST = 100  # members of an ensemble, no limit in practice
TREES_SHARE = 0.5  # of the time that is left for training
MAX_TREES = 2000  # of each fold and class
SIGNIFICANT = 2.0  # standard errors of the mean difference of two losses
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
    hparams: Any = None
    """Hparams of the networks; None: those of the Config."""
    trial: int | None = None
    """Number of the trial of a sweep."""

    @property
    def is_default(self) -> bool:
        """True for what a run has without a sweep: all but trials, and trial 0, the defaults."""
        return not self.trial


class Trained(NamedTuple):
    """The members that a sweep has trained."""

    bags: list[Members]
    others: list[Members] | None
    """Linear model and trees; None: they are still to be fitted."""


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


def calibrated_monitor(config: Config, examples: int) -> Config:
    """Returns the Config, whose calibrated loss chooses the epochs if a fold has enough of the
    examples: overconfidence is removed afterwards."""
    task, enough = config.recipe.task, MIN_CALIBRATED * config.bag_folds
    if not isinstance(task, Classification) or task.monitor != "loss" or examples < enough:
        return config
    task = dataclasses.replace(task, monitor="calibrated_loss")
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, task=task))


def fit(
    config: Config, setup: Setup, record: Record, clock: Clock, trained: Trained | None = None
) -> Bagged:
    """Trains the members, and returns their average as a finished run. setup: without a validation
    split; trained: members of a sweep, the only networks. Raises InputError and RunError."""
    begun, fold_of = time.perf_counter(), folds(config, setup.dataset)
    if not fits_on_device(setup.start.splits.train):
        raise InputError("--bag-folds must be 0 for data that do not fit into memory.")
    bags, others = trained or (None, None)
    plan = read_plan(record.folder)
    slow = list(plan.get("slow", []))
    if others is None:  # what a plan allows has all the time that it takes
        limit = Clock(0.0, 0.0) if plan else clock
        others = fit_others(config, setup, fold_of, limit, slow, record.log)
    if bags is None:
        bag = _fit_networks(config, setup, fold_of, record, clock, slow)
        bags = [Members("network", setup.start.recipe.model, bag.variables, bag.outputs)]
    return _average(config, setup, [*bags, *others], begun, record.say)


def _average(
    config: Config, setup: Setup, members: list[Members], begun: float, say: Log
) -> Bagged:
    """Returns the members' average as a finished run. begun: of time.perf_counter."""
    train_set, task = setup.start.splits.train, setup.start.recipe.task
    hparams = config.hparams.evaluation()
    if isinstance(task, Classification):
        task = dataclasses.replace(task, monitor="loss")  # the epochs are chosen
        hparams = _smooth(hparams, members[0].outputs)
    hparams = train.as_float32(hparams)
    batch = train.host_batch(task, train_set)
    members = [_calibrate(member, task, hparams, batch) for member in members]
    chosen = _choose(task, hparams, members, batch)
    scores = [train.scores(task, config.hparams, train_set, member.outputs) for member in members]
    for member, weight, values in zip(members, chosen.weights, scores, strict=True):
        name = task.metric().name
        say(
            f"{member.name}: loss {number_text(values['loss'])}, "
            f"{name.replace('_', ' ')} {number_text(values[name])} on held-out folds; "
            f"weight {weight:.0%}"
        )
    picked = [pair for pair in zip(members, chosen.weights, strict=True) if pair[1]]
    models = [(member, weight / len(member.variables)) for member, weight in picked
              for _ in member.variables]  # fmt: skip
    recipe = ensemble_recipe(
        dataclasses.replace(setup.start.recipe, task=task),
        [(member.model, member.hparams or config.hparams) for member, _ in models],
        [weight for _, weight in models],
        chosen.temperature,
        temperatures=[member.temperature for member, _ in models],
    )
    variables = nest_variables([tree for member, _ in picked for tree in member.variables])
    mean = _mean(task, members, chosen)
    values = train.scores(task, config.hparams, train_set, mean)
    row = {
        "epoch": 1, "step": 1, "learning_rate": 0.0, "seconds": time.perf_counter() - begun,
        "examples_per_second": 0.0, **{f"val_{name}": value for name, value in values.items()},
    }  # fmt: skip
    fitted = task.calibrate(np.asarray(mean), batch, hparams)
    fitted |= {"temperature": 1.0} if "temperature" in fitted else {}  # it is the Ensemble's
    start = dataclasses.replace(setup.start, recipe=recipe)
    abstract = train.abstract(recipe, config.hparams, train_set["inputs"][:1])
    config = dataclasses.replace(
        config, recipe=recipe, epochs=1, patience=0, plateau_patience=0, bag_folds=0, given=()
    )
    setup = dataclasses.replace(setup, start=start, abstract=abstract)
    state = _as_state(abstract, variables, config.seed)
    return Bagged(config, setup, state, row, fitted, members, chosen.weights)


def _smooth(hparams, outputs):
    """Returns hparams with label smoothing, as if an example of each class were added (Platt 1999):
    few examples without an error are no certainty. outputs: (n, classes)."""
    classes = max(2, outputs.shape[1])
    return hparams.replace(label_smoothing=classes / (len(outputs) + classes))


def _choose(task, hparams, members: list[Members], batch) -> Chosen:
    """Returns the choice from all members, or without a sweep's trials where these gain less than
    SIGNIFICANT standard errors (the rule of Breiman et al. 1984): the best of many is partly
    chance."""
    outputs = jnp.stack([member.outputs for member in members])

    def choose_from(index):
        chosen, weights = choose(task, hparams, outputs[index], batch, MOST), np.zeros(len(members))
        weights[index] = chosen.weights
        chosen = chosen._replace(weights=weights.tolist())
        return chosen, np.asarray(task.loss(_mean(task, members, chosen), batch, hparams))

    default = np.flatnonzero([member.is_default for member in members])
    chosen, losses = choose_from(np.arange(len(members)))
    if 0 < len(default) < len(members):
        without, others = choose_from(default)
        gains = others - losses
        if not gains.mean() > SIGNIFICANT * gains.std(ddof=1) / math.sqrt(len(gains)):
            return without
    return chosen


def _mean(task, members: list[Members], chosen: Chosen):
    """Returns the outputs of the members' ensemble on held-out folds, float32 (n, ...)."""
    pairs = [pair for pair in zip(members, chosen.weights, strict=True) if pair[1]]
    outputs = jnp.stack([member.outputs for member, _ in pairs])
    return task.mean(outputs, jnp.float32([weight for _, weight in pairs])) / chosen.temperature


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
    splits = setup.start.splits
    task = calibrated_monitor(config, len(fold_of)).recipe.task
    recipe = dataclasses.replace(setup.start.recipe, task=task)

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


def fit_others(
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
    params = collections.pop("params")
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt_state)
    state = train.State(np.int32(1), params, collections, opt_state, None, jax.random.key(seed))
    return jax.device_put(state)


def test_members(bagged: Bagged) -> list[dict[str, Any]]:
    """Returns name, number, weight, and scores on held-out folds and on the test split of each kind
    of members."""
    config, splits = bagged.config, bagged.setup.start.splits
    task, rows = config.recipe.task, []
    for member, weight in zip(bagged.members, bagged.weights, strict=True):
        recipe = train.Recipe(member.model, task)
        reads = train.as_float32((member.hparams or config.hparams).evaluation())
        outputs = jnp.stack([
            train.predict(recipe, train.from_variables(tree), reads, splits.test["inputs"])
            / member.temperature
            for tree in member.variables
        ])  # fmt: skip
        shares = jnp.full(len(outputs), 1 / len(outputs), jnp.float32)
        rows.append({
            "name": member.name, "models": len(outputs), "weight": weight,
            "val": train.scores(task, config.hparams, splits.train, member.outputs),
            "test": train.scores(task, config.hparams, splits.test, task.mean(outputs, shares)),
        })  # fmt: skip
    return rows
