"""Linear models: ridge and multinomial logistic regression, the mean of one model for each fold.

The loss on held-out folds chooses the regularization. scikit-learn is imported where it is used.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dlflax.baselines import logistic
from dlflax.data.text.terms import Terms, fit_terms
from dlflax.errors import InputError

STRENGTHS = 0.003, 0.03, 0.3, 3.0, 30.0  # C of logistic regressions
TEXT_STRENGTHS = 1.0, 3.0, 10.0, 30.0, 100.0  # for rows of length 1
ALPHAS = 10.0 ** np.arange(-2, 6)  # of ridge regressions, in examples
MAX_COLUMNS = 2048
MAX_NUMBERS = 10**8  # folds x rows x columns x classes
MAX_CHARACTERS = 5 * 10**8  # folds x characters x classes
MAX_WEIGHTS = 2 * 10**7  # terms x classes
ITERATIONS = 100  # of scikit-learn's L-BFGS


class Fits(NamedTuple):
    """The models of all folds as one."""

    params: dict[str, Any]
    """{"kernel": float32 (d, outputs), "bias": (outputs,)}, the mean of the folds' models."""
    outputs: np.ndarray
    """float32 (n, outputs): logits or numbers, of the model of the fold that an example is held out
    from. They are 0 for an example of no fold."""
    setting: int
    """Index of the strength or alpha with the lowest loss."""


class TextFits(NamedTuple):
    """A model of all texts, `models.TfIdf`, with the strength that is best on the folds."""

    terms: Terms
    params: dict[str, Any]
    """{"idf": float32 (terms,), "kernel": (terms, classes), "bias": (classes,)}."""
    outputs: np.ndarray
    """Outputs as in `Fits`."""

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the outputs for other texts, float32 (n, classes)."""
        from sklearn.feature_extraction.text import TfidfTransformer

        tfidf = TfidfTransformer(sublinear_tf=True)
        tfidf.idf_ = self.params["idf"]
        x = tfidf.transform(self.terms.counts(texts))
        return np.float32(x @ self.params["kernel"] + self.params["bias"])


def fit_texts(
    analyzer: str, texts: Sequence[str], targets: np.ndarray, fold_of: np.ndarray, classes: int
) -> TextFits:
    """Fits logistic regressions on TF-IDF of the texts' terms (sublinear, rows of length 1; Salton
    and Buckley 1988). analyzer: of `terms.LONGEST`; the others as for `fit_folds`, which this
    raises as."""
    from sklearn.feature_extraction.text import TfidfTransformer

    characters = sum(map(len, texts))
    if (int(fold_of.max()) + 1) * characters * classes > MAX_CHARACTERS:
        raise InputError(
            f"a linear model takes too long on {characters:,} characters and {classes:,} classes."
        )
    terms = fit_terms(analyzer, texts, MAX_WEIGHTS // classes)
    tfidf = TfidfTransformer(sublinear_tf=True)
    x = tfidf.fit_transform(terms.counts(texts))
    fits = fit_folds(x, targets, fold_of, classes)
    ((kernel, bias),) = _fit_sparse(x, targets, classes, TEXT_STRENGTHS[fits.setting :][:1])
    params = {"idf": tfidf.idf_, "kernel": kernel, "bias": bias}
    return TextFits(terms, {name: np.float32(x) for name, x in params.items()}, fits.outputs)


def fit_folds(inputs: Any, targets: np.ndarray, fold_of: np.ndarray, classes: int) -> Fits:
    """Fits one model for each fold.

    inputs: float (n, d), of classes also sparse; targets: int (n,), or float (n, k) with classes 0;
    fold_of: int (n,), from 0, and -1 for an example that all models are fitted on. Raises
    InputError for dense data whose fit takes too long.
    """
    folds, (n, columns) = int(fold_of.max()) + 1, inputs.shape
    is_dense = isinstance(inputs, np.ndarray)
    too_many = columns > MAX_COLUMNS or folds * n * columns * max(classes, 1) > MAX_NUMBERS
    if is_dense and too_many:
        raise InputError(f"a linear model takes too long on {n:,} rows of {columns:,} numbers.")
    fit = _fit_classes if is_dense else _fit_sparse
    fit = fit if classes else fit_numbers
    settings: list = []  # [setting] -> (params of each fold, outputs)
    for fold in range(folds):
        train, held_out = fold_of != fold, fold_of == fold
        models = fit(inputs[train].astype(np.float64), targets[train], classes)
        for i, (kernel, bias) in enumerate(models):
            if i == len(settings):
                settings.append(([], np.zeros((n, len(bias)), np.float32)))
            params, outputs = settings[i]
            params.append({"kernel": np.float32(kernel), "bias": np.float32(bias)})
            outputs[held_out] = inputs[held_out] @ params[-1]["kernel"] + params[-1]["bias"]
    rows = fold_of >= 0
    losses = [_loss(outputs[rows], targets[rows], classes) for _, outputs in settings]
    best = int(np.nanargmin(losses))
    params, outputs = settings[best]
    mean = {name: np.mean([fold[name] for fold in params], 0) for name in ("kernel", "bias")}
    return Fits(mean, outputs, best)


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


def _fit_sparse(x, targets, classes, strengths=TEXT_STRENGTHS):
    """Yields (kernel, bias) of scikit-learn's logistic regressions, for each strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(targets)) == 1:
        raise InputError("the texts of a fold have one class: nothing to learn.")
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(x, targets)
        kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, math.log(1e-9))
        coef, intercept = model.coef_.T, model.intercept_
        if len(model.classes_) == 2:
            coef, intercept = np.hstack([0 * coef, coef]), np.append(0, intercept)
        kernel[:, model.classes_], bias[model.classes_] = coef, intercept
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
