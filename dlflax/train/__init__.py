"""Training as a pure function of its hyperparameters: Recipe, Hparams, State, and the loop."""

from dlflax.train.ensemble import Ensemble
from dlflax.train.history import History, Training, best_epoch, finished, plateau_factor
from dlflax.train.hparams import Hparams, as_traced, number
from dlflax.train.loop import (
    Fit,
    Saved,
    all_batches,
    evaluate,
    evaluate_batches,
    fit,
    predict,
    scores,
    train_piece,
    train_steps,
)
from dlflax.train.optim import SGD, Adam, AdamW, Constant, Cosine, Linear, Lion, Muon, RMSprop
from dlflax.train.recipe import (
    Recipe,
    State,
    abstract,
    as_dict,
    forward,
    init,
    of_variables,
    output_shape,
    used_numbers,
    variables,
    zero_sums,
)
from dlflax.train.step import augmented, floats, gradient, moved, prepare, step, update

__all__ = [
    "Adam", "AdamW", "Constant", "Cosine", "Ensemble", "Fit", "History", "Hparams", "Linear",
    "Lion", "Muon", "RMSprop", "Recipe", "SGD", "Saved", "State", "Training", "abstract",
    "all_batches", "as_dict", "as_traced", "augmented", "best_epoch", "evaluate",
    "evaluate_batches", "finished", "fit", "floats", "forward", "gradient", "init", "moved",
    "number", "of_variables", "output_shape", "plateau_factor", "predict", "prepare", "scores",
    "step", "train_piece", "train_steps", "update", "used_numbers", "variables", "zero_sums",
]  # fmt: skip
