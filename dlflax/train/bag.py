"""Bags: networks that are each trained with another fold held out (bagging, Breiman 1996).

All folds are members of one population. Their held-out outputs, one for each example, score the bag
on examples that it did not train on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dlflax.data.order import batch_order, permutation
from dlflax.errors import RunError
from dlflax.train.history import History
from dlflax.train.hparams import Hparams
from dlflax.train.layout import Layout, layout_for
from dlflax.train.population import Population
from dlflax.train.recipe import Recipe


class Fold(NamedTuple):
    """Indices, int32 (n,), of the examples of a fold."""

    train: np.ndarray
    """In the train set."""
    val: np.ndarray
    """In the validation set."""


class Bag(NamedTuple):
    """Networks of one Recipe, one for each fold."""

    variables: list[dict[str, Any]]
    """NumPy variables of each network at its best epoch."""
    outputs: np.ndarray
    """float32 (n, ...): the output for each example of the network that it was held out from."""
    histories: list[History]


def fit_folds(
    recipe: Recipe, hparams: Hparams, train_set: Mapping[str, Any], val_set: Mapping[str, Any],
    folds: Sequence[Fold], *, epochs: int, seeds: Sequence[int], patience: int = 0,
    plateau_patience: int = 0, on_begin: Callable[[Layout], None] = lambda layout: None,
    on_epoch: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Population:  # fmt: skip
    """Returns a trained Population with one configuration per fold, each under its seed.

    Every fold has as many steps as the smallest one: surplus examples of the others are not trained
    on. Raises RunError for a loss that is not finite, InputError as `Driver`.
    """
    layout = layout_for(recipe, hparams, train_set["inputs"][:1], len(folds))
    on_begin(layout)
    population = Population(
        recipe, [hparams] * len(folds), [[seed] for seed in seeds], train_set, val_set,
        epochs=epochs, layout=layout, patience=patience, plateau_patience=plateau_patience,
        keep_best=True, val_rows=[fold.val for fold in folds],
        orders=[batch_order(train_set, recipe.batch_size, rows)
                for rows in _equal_steps(folds, recipe.batch_size)],
    )  # fmt: skip
    population.train(epochs, on_epoch, should_stop)
    if population.divergence_steps:
        fold, step = min(population.divergence_steps.items())
        raise RunError(
            f"fold {fold + 1}: the loss became NaN or infinite at step {step}: try a smaller "
            "--hparams.learning-rate."
        )
    return population


def _equal_steps(folds: Sequence[Fold], batch_size: int) -> list[np.ndarray]:
    """Returns the training examples of each fold, limited to the steps of the smallest fold."""
    steps = [-(-len(fold.train) // batch_size) for fold in folds]
    most = min(steps) * batch_size
    return [
        np.sort(fold.train[permutation(len(fold.train), 0, 5)[:most]]) for fold in folds
    ]  # fmt: skip


def fit_bag(
    recipe: Recipe, hparams: Hparams, data: Mapping[str, Any], fold_of: np.ndarray, *, seed: int,
    **options: Any,
) -> Bag:  # fmt: skip
    """Trains one network for each fold, with that fold held out.

    data: arrays (n, ...) of all examples; fold_of: int (n,), the fold of each example, from 0;
    options: as for `fit_folds`. Raises as `fit_folds`.
    """
    count = int(fold_of.max()) + 1
    index = [np.flatnonzero(fold_of == fold).astype(np.int32) for fold in range(count)]
    others = [np.flatnonzero(fold_of != fold).astype(np.int32) for fold in range(count)]
    folds = [Fold(*rows) for rows in zip(others, index, strict=True)]
    seeds = [seed + fold for fold in range(count)]
    population = fit_folds(recipe, hparams, data, data, folds, seeds=seeds, **options)
    best = population.best(len(fold_of))
    outputs = np.empty_like(best[0, 0][1])
    for fold, rows in enumerate(index):
        outputs[rows] = best[fold, 0][1][rows]
    variables = [best[fold, 0][0] for fold in range(count)]
    return Bag(variables, outputs, [history for (history,) in population.histories])
