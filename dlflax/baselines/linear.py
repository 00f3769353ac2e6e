"""Linear models: ridge and multinomial logistic regression, the mean of one model for each fold.

The loss on held-out folds chooses the regularization.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from dlflax.baselines import logistic
from dlflax.errors import InputError

STRENGTHS = 0.003, 0.03, 0.3, 3.0, 30.0  # C of logistic regressions
ALPHAS = 10.0 ** np.arange(-2, 6)  # of ridge regressions, in examples
MAX_COLUMNS = 2048
MAX_NUMBERS = 10**8  # folds x rows x columns x classes


class Fits(NamedTuple):
    """The models of all folds as one."""

    params: dict[str, Any]
    """{"kernel": float32 (d, outputs), "bias": (outputs,)}, the mean of the folds' models."""
    outputs: np.ndarray
    """float32 (n, outputs): logits or numbers, of the model of the fold that an example is held out
    from."""


def fit_folds(inputs: np.ndarray, targets: np.ndarray, fold_of: np.ndarray, classes: int) -> Fits:
    """Fits one model for each fold.

    inputs: float (n, d); targets: int (n,), or float (n, k) with classes 0; fold_of: int (n,), from
    0. Raises InputError for data whose fit takes too long.
    """
    folds, (n, columns) = int(fold_of.max()) + 1, inputs.shape
    if columns > MAX_COLUMNS or folds * n * columns * max(classes, 1) > MAX_NUMBERS:
        raise InputError(f"a linear model takes too long on {n:,} rows of {columns:,} numbers.")
    fit = _fit_classes if classes else fit_numbers
    settings: list = []  # [setting] -> (params of each fold, outputs)
    for fold in range(folds):
        train, held_out = fold_of != fold, fold_of == fold
        models = fit(np.float64(inputs[train]), targets[train], classes)
        for i, (kernel, bias) in enumerate(models):
            if i == len(settings):
                settings.append(([], np.zeros((n, len(bias)), np.float32)))
            params, outputs = settings[i]
            params.append({"kernel": np.float32(kernel), "bias": np.float32(bias)})
            outputs[held_out] = inputs[held_out] @ params[-1]["kernel"] + params[-1]["bias"]
    losses = [_loss(outputs, targets, classes) for _, outputs in settings]
    params, outputs = settings[int(np.nanargmin(losses))]
    mean = {name: np.mean([fold[name] for fold in params], 0) for name in ("kernel", "bias")}
    return Fits(mean, outputs)


def _fit_classes(x, targets, classes):
    """Yields (kernel, bias) of logistic regressions, for each strength."""
    fit = logistic.fitter(x)
    for strength in STRENGTHS:
        kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, math.log(1e-9))
        if len(np.unique(targets)) == 1:
            bias[targets[0]] = 0.0
        else:
            model = fit(targets, strength)
            kernel[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
        yield kernel, bias


def fit_numbers(x: np.ndarray, targets: np.ndarray, classes: int = 0):
    """Yields (kernel (d, k), bias (k,)) of ridge regressions, for each alpha. x: float64 (n, d);
    targets: (n, k)."""
    mean, center = x.mean(0), targets.mean(0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    products = vectors.T @ ((x - mean).T @ (targets - center))
    for alpha in ALPHAS:
        kernel = vectors @ (products / (np.maximum(values, 0) + alpha)[:, None])
        yield kernel, center - mean @ kernel


def _loss(outputs, targets, classes) -> float:
    """Returns the mean cross-entropy or squared error."""
    if not classes:
        return float(np.mean((outputs - targets) ** 2))
    top = outputs.max(1, keepdims=True)
    log_sums = top[:, 0] + np.log(np.exp(outputs - top).sum(1))
    return float(np.mean(log_sums - outputs[np.arange(len(targets)), targets]))
