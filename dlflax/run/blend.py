"""The blend of a run or a sweep: bags of networks, and simpler models fitted to the same folds.

All are averaged in one `Ensemble`, weighted by the loss of their held-out outputs, so every example
but those of the test split both trains and validates.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dlflax import data
from dlflax.baselines import boosting, linear
from dlflax.baselines.reference_models import TFIDF
from dlflax.config.config import Config
from dlflax.data.order import assign_folds
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.files import write_csv
from dlflax.models import MLP
from dlflax.models.tfidf import TfIdf
from dlflax.report.progress import announcement, progress_bar
from dlflax.run.average import NETWORK, Bagged, Members, average
from dlflax.run.prepare import Setup
from dlflax.run.results import Record
from dlflax.run.time_limit import EPOCHS, MEASURED, Clock, plan_epochs, read_plan
from dlflax.train.bag import Bag, fit_bag
from dlflax.train.history import best_epoch
from dlflax.train.tasks import Classification, Regression

Log = Callable[[str], None]
TREES_SHARE = 0.5  # of the time that is left for training
MAX_TREES = 2000  # of each fold and class
MIN_CALIBRATED = 500  # examples of a fold from which the calibrated loss chooses the epoch


class Trained(NamedTuple):
    """The members that a sweep has trained."""

    bags: list[Members]
    others: list[Members] | None
    """Linear model and trees; None: they are still to be fitted."""


def check(config: Config, log: Log) -> Config:
    """Returns the Config, that of one network if it trains more than heads on a frozen backbone.
    Raises InputError for settings without a meaning for a bag."""
    if config.transfer is not None and not config.transfer.is_frozen:
        log("note: one network is trained, as --bag-folds is for heads on a frozen backbone")
        return dataclasses.replace(config, bag_folds=0, blend="auto")
    for name in ("fsdp", "distributed", "profile", "devices"):
        if getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} has no effect on a bag: remove it, or add --bag-folds 0.")
    return config


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


def calibrated_monitor(config: Config, examples: int, folds: int) -> Config:
    """Returns the Config, whose calibrated loss chooses the epochs if a fold has enough of the
    examples: overconfidence is removed afterwards."""
    task, enough = config.recipe.task, MIN_CALIBRATED * folds
    if not isinstance(task, Classification) or task.monitor != "loss" or examples < enough:
        return config
    task = dataclasses.replace(task, monitor="calibrated_loss")
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, task=task))


def fit(
    config: Config, setup: Setup, record: Record, clock: Clock, trained: Trained | None = None
) -> Bagged:
    """Trains the members, and returns their average as a finished run. The folds are those of
    `folds`, or one, the validation split; trained: members of a sweep, the only networks. Raises
    InputError and RunError."""
    begun, start = time.perf_counter(), setup.start
    if not fits_on_device(start.splits.train):
        raise InputError("--bag-folds must be 0 for data that do not fit into memory.")
    arrays, fold_of = join_splits(config, setup)
    bags, others = trained or (None, None)
    plan = read_plan(record.folder)
    max_trees = dict(plan.get("max_trees", {}))
    if others is None:  # what a plan allows has all the time that it takes
        limit = Clock(0.0, 0.0) if plan else clock
        others = fit_others(config, setup, arrays, fold_of, limit, max_trees, record.log)
    if bags is None:
        bag = _fit_networks(config, setup, arrays, fold_of, record, clock, max_trees)
        bags = [Members(NETWORK, start.recipe.model, bag.variables, bag.outputs)]
    rows = np.flatnonzero(fold_of >= 0)
    held_out = {name: array[rows] for name, array in arrays.items()}
    members = [member._replace(outputs=member.outputs[rows]) for member in [*bags, *others]]
    return average(config, setup, members, held_out, begun, record.say)


def join_splits(config: Config, setup: Setup) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns (arrays of all examples that are not in the test split; their folds, -1 for an
    example that trains all models)."""
    splits = setup.start.splits
    if splits.val is None:
        fold_of = folds(config, setup.dataset)
        views = data.num_examples(splits.train) // len(fold_of)
        return splits.train, np.tile(fold_of, views)
    counts = data.num_examples(splits.train), data.num_examples(splits.val)
    val = {"weight": np.ones(counts[1], np.float32), **splits.val}
    arrays = {name: np.concatenate([x[:], val[name][:]]) for name, x in splits.train.items()}
    return arrays, np.repeat(np.int32([-1, 0]), counts)


def _fit_networks(
    config: Config, setup: Setup, arrays, fold_of, record: Record, clock: Clock,
    max_trees: dict[str, int],
) -> Bag:  # fmt: skip
    """Trains the networks, and writes metrics.csv with the means over the networks."""
    count = int(fold_of.max()) + 1
    task = calibrated_monitor(config, np.count_nonzero(fold_of >= 0), count).recipe.task
    recipe = dataclasses.replace(setup.start.recipe, task=task)

    def measure():
        ends: list[float] = []
        fit_bag(
            recipe, config.hparams, arrays, fold_of, seed=config.seed, epochs=EPOCHS,
            on_epoch=lambda: ends.append(time.perf_counter()),
            should_stop=lambda: len(ends) > 1 and ends[-1] - ends[0] > MEASURED * clock.limit,
        )  # fmt: skip
        return float(np.diff(ends).min())

    config = plan_epochs(
        config, record.folder, clock, measure, record.log, {"max_trees": max_trees}
    )
    several = f"training {count} networks, each with another fold held out"
    record.say(f"{several if count > 1 else 'training one network'}: "
               f"{config.epochs:,} epochs")  # fmt: skip
    with progress_bar("epochs", config.epochs) as advance:
        bag = fit_bag(
            recipe, config.hparams, arrays, fold_of, seed=config.seed, epochs=config.epochs,
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
    config: Config, setup: Setup, arrays, fold_of, clock: Clock, max_trees: dict[str, int], log: Log
) -> list[Members]:
    """Returns linear models, and boosted trees of every installed library, where they fit the task
    and the time. max_trees: library -> trees of a fold at most, 0 for none; what the time limit
    allows is added."""
    libraries = boosting.available()[::-1]  # the most accurate first
    recipe, splits = setup.start.recipe, setup.start.splits
    inputs, targets = arrays["inputs"], np.asarray(arrays["targets"])
    is_classes = isinstance(recipe.task, Classification)
    outputs = len(splits.class_names) if is_classes else targets[0].size
    texts = [text for name in ("train", "val") if name in splits.examples
             for text in getattr(splits.plain(name), "texts", None) or ()]  # fmt: skip
    is_rows = inputs.ndim == 2 and inputs.dtype.kind == "f" and setup.start.backbone is None
    if (
        config.blend == "none"
        or not is_rows and not texts
        or not is_classes and (texts or not isinstance(recipe.task, Regression))
        or getattr(recipe.model, "num_outputs", outputs) != outputs  # one logit for two classes
    ):  # fmt: skip
        return []

    def fit_terms(analyzer):
        fits = linear.fit_texts(analyzer, texts, targets, fold_of, outputs)
        model = TfIdf(num_terms=len(fits.terms.vocabulary), num_outputs=outputs)
        variables = [{"params": fits.params}]
        return Members(TFIDF[analyzer], model, variables, fits.outputs, terms=fits.terms)

    def fit_linear():
        numbers = targets if is_classes else np.float64(targets).reshape(len(targets), -1)
        fits = linear.fit_folds(inputs, numbers, fold_of, outputs if is_classes else 0)
        model = MLP(features=(), num_outputs=outputs)
        return Members("linear model", model, [{"params": {"logits": fits.params}}], fits.outputs)

    def fit_trees(library):
        later = len(libraries) - libraries.index(library)
        seconds = TREES_SHARE * clock.remaining() / later if clock.limit else math.inf
        most = max_trees.get(library, MAX_TREES)
        if clock.limit:
            max_trees[library] = 0  # unless they fit
        fits = boosting.fit_folds(
            library, splits.encoder, recipe.task, inputs, targets, fold_of, seed=config.seed,
            max_trees=most, seconds=seconds,
        )  # fmt: skip
        if clock.limit:
            max_trees[library] = fits.max_trees
        name = f"boosted trees ({library})"
        return Members(name, fits.model, [fits.variables], fits.outputs)

    fits = {name: functools.partial(fit_terms, analyzer)
            for analyzer, name in TFIDF.items() if texts}  # fmt: skip
    if is_rows:
        fits["a linear model"] = fit_linear
    for library in libraries if is_rows else ():
        if max_trees.get(library) != 0:
            fits[f"boosted trees of {library}"] = functools.partial(fit_trees, library)
    members = []
    for name, fit in fits.items():
        try:
            with announcement(f"fitting {name} ...", log):
                members.append(fit())
        except TimeoutError:
            log(f"time limit: no {name}")
        except InputError as error:
            log(f"note: without {name}: {error}")
        except Exception as error:  # another library may raise anything on unusual data
            log(f"warning: fitting {name} failed ({type(error).__name__}: {error})")
    return members
