"""Training as a pure function of its hyperparameters: Recipe, Hparams, State, and the loop."""

from dlflax.train.batch import Batch, floats
from dlflax.train.driver import Fit, Saved, fit
from dlflax.train.ensemble import Ensemble
from dlflax.train.evaluation import (
    all_batches,
    evaluate,
    evaluate_batches,
    evaluate_sums,
    host_batch,
    predict,
    scores,
)
from dlflax.train.history import Evaluated, History, Training, best_epoch, finished, plateau_factor
from dlflax.train.hparams import Hparams, as_traced, number
from dlflax.train.loop import train_steps
from dlflax.train.optim import SGD, Adam, AdamW, Constant, Cosine, Linear, Lion, Muon, RMSprop
from dlflax.train.recipe import (
    Recipe,
    abstract,
    check_arrays,
    forward,
    forward_flops,
    init,
    output_shape,
    variables,
    zero_sums,
)
from dlflax.train.state import State, as_dict, from_variables
from dlflax.train.step import gradient, prepare, shift_params, step, update

__all__ = [
    "Adam", "AdamW", "Batch", "Constant", "Cosine", "Ensemble", "Evaluated", "Fit", "History",
    "Hparams", "Linear", "Lion", "Muon", "RMSprop", "Recipe", "SGD", "Saved", "State", "Training",
    "abstract", "all_batches", "as_dict", "as_traced", "best_epoch", "check_arrays", "evaluate",
    "evaluate_batches", "evaluate_sums", "finished", "fit", "floats", "forward", "forward_flops",
    "from_variables", "gradient", "host_batch", "init", "number", "output_shape", "plateau_factor",
    "predict", "prepare", "scores", "shift_params", "step", "train_steps", "update",
    "variables", "zero_sums",
]  # fmt: skip
