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
    """Returns a trained Population of one configuration, under a seed for each fold. Raises
    RunError for a loss that is not finite, InputError as `Driver`."""
    layout = layout_for(recipe, hparams, train_set["inputs"][:1], len(folds))
    on_begin(layout)
    population = Population(
        recipe, [hparams], [seeds], train_set, val_set, epochs=epochs, layout=layout,
        patience=patience, plateau_patience=plateau_patience, keep_best=True,
        **fold_options(folds, train_set, recipe.batch_size),
    )  # fmt: skip
    population.train(epochs, on_epoch, should_stop)
    for fold, member in enumerate(population.trainings[0], 1):
        if member.diverged_at:
            raise RunError(
                f"fold {fold}: the loss became NaN or infinite at step {member.diverged_at}: try a "
                "smaller --hparams.learning-rate."
            )
    return population


def fold_options(
    folds: Sequence[Fold], train_set: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """Returns the options of a `Population` whose seeds have a fold each.

    Every fold has as many steps as the smallest one: surplus examples of the others are not trained
    on."""
    most = min(-(-len(fold.train) // batch_size) for fold in folds) * batch_size
    rows = [np.sort(fold.train[permutation(len(fold.train), 0, 5)[:most]]) for fold in folds]
    return {
        "val_rows": [fold.val for fold in folds],
        "orders": [batch_order(train_set, batch_size, index) for index in rows],
    }


def held_out_folds(fold_of: np.ndarray) -> list[Fold]:
    """Returns the folds of examples, each held out from the training of one network. fold_of: int
    (n,), the fold of each example, from 0."""
    masks = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    return [Fold(*(np.flatnonzero(part).astype(np.int32) for part in (~mask, mask)))
            for mask in masks]  # fmt: skip


def held_out_outputs(folds: Sequence[Fold], outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the output for each example of the network that it was held out from, float32
    (n, ...), 0 for an example in no fold. outputs: of each network on its validation examples."""
    n = 1 + max(int(fold.val.max()) for fold in folds)
    joined = np.zeros((n, *outputs[0].shape[1:]), np.float32)
    for fold, values in zip(folds, outputs, strict=True):
        joined[fold.val] = values
    return joined


def fold_seeds(seed: int, count: int) -> np.ndarray:
    """Returns the seed of each fold of a bag, uint32 (count,)."""
    return np.array([(seed + fold) % 2**32 for fold in range(count)], np.uint32)


def fit_bag(
    recipe: Recipe, hparams: Hparams, data: Mapping[str, Any], fold_of: np.ndarray, *, seed: int,
    **options: Any,
) -> Bag:  # fmt: skip
    """Trains one network for each fold, with that fold held out.

    data: arrays (n, ...) of all examples; fold_of: int (n,), the fold of each example, from 0;
    options: as for `fit_folds`. Raises as `fit_folds`.
    """
    folds = held_out_folds(fold_of)
    seeds = fold_seeds(seed, len(folds))
    population = fit_folds(recipe, hparams, data, data, folds, seeds=seeds, **options)
    best = [fit for _, fit in sorted(population.best(len(fold_of)).items())]
    outputs = [outputs[fold.val] for fold, (_, outputs) in zip(folds, best, strict=True)]
    variables = [variables for variables, _ in best]
    return Bag(variables, held_out_outputs(folds, outputs), population.histories[0])
