"""Training: Recipe, Hparams, State, and the functions that train and evaluate a State."""

from dlflax.train.batch import Batch, floats
from dlflax.train.driver import Checkpoint, Fit, fit
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
from dlflax.train.history import (
    History,
    Validation,
    best_epoch,
    is_complete,
    plateau_factor,
)
from dlflax.train.hparams import Hparams, as_float32, number
from dlflax.train.loop import train_steps
from dlflax.train.optim import SGD, Adam, AdamW, Constant, Cosine, Linear, Lion, Muon, RMSprop
from dlflax.train.recipe import (
    Recipe,
    abstract,
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
    "Adam", "AdamW", "Batch", "Checkpoint", "Constant", "Cosine", "Ensemble", "Fit", "History",
    "Hparams", "Linear", "Lion", "Muon", "RMSprop", "Recipe", "SGD", "State", "Validation",
    "abstract", "all_batches", "as_dict", "as_float32", "best_epoch", "evaluate",
    "evaluate_batches", "evaluate_sums", "fit", "floats", "forward", "forward_flops",
    "from_variables", "gradient", "host_batch", "init", "is_complete", "number", "output_shape",
    "plateau_factor", "predict", "prepare", "scores", "shift_params", "step", "train_steps",
    "update", "variables", "zero_sums",
]  # fmt: skip
