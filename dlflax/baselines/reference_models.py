"""Baselines: reference models of scikit-learn on the same splits as the network.

`Task.baselines` lists them. Each is fitted on the train split, some select their regularization on
the validation split, and all return outputs for the test split like the network's, so that the task
computes the same scores. Each has a budget by rows, columns and classes: within it, a sample of the
train split is used (`Baseline.rows`); too small a sample raises InputError. Logistic regressions of
dense inputs are fitted by `baselines.logistic`, to the same optimum in less time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax.baselines import linear, logistic
from dlflax.errors import InputError
from dlflax.models import calibration

TFIDF = {"word": "TF-IDF of words", "char_wb": "TF-IDF of characters"}
MAX_ROWS = 10_000  # training examples of a sample
MAX_NUMBERS = 4 * 10**8  # rows x columns x classes of a logistic regression
MAX_PRODUCTS = 4 * 10**10  # of a ridge regression
MAX_BOOSTED = 5 * 10**7  # (rows + LEAVES_BINS) x columns x classes of gradient boosting
LEAVES_BINS = 31 * 255  # cost of the trees besides the rows
MIN_ROWS, MIN_PER_CLASS = 1000, 5  # of a sample, in total and for each class
MAX_COLUMNS = 4096  # of an image; larger ones are downsampled
MAX_LABELS = 50
STRENGTHS = 0.001, 0.01, 0.1, 1.0, 10.0  # C of logistic regressions
ALPHAS = 10.0 ** np.arange(-3, 6)  # of ridge regressions


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Outputs of a reference model on the test split."""

    outputs: np.ndarray
    """float32 (n, ...), like the network's."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Test scores that are no metric of the outputs."""
    rows: int | None = None
    """Training examples it is fitted on; None: all of them."""


Baselines = dict[str, Callable[[], Baseline]]
"""Name -> function that fits the model."""


def classification(splits, outputs: int) -> Baselines:
    """Returns the baselines of classification: majority class and classifiers. outputs: 1 logit, or
    one per class."""
    classes = len(splits.class_names)

    def majority():
        targets = splits.train["targets"]
        share = np.bincount(targets, minlength=classes) / len(targets)
        return _to_logits(np.tile(share, (len(splits.test["targets"]), 1)), outputs)

    def fit_regression(sample):
        rows, points = _limit_rows(*sample(), classes)
        y, y_val = splits.train["targets"][rows], splits.val and splits.val["targets"]
        predict = _logistic(logistic.fitter(points["train"]), points, y, classes, y_val)
        return _to_logits(predict(points["test"]), outputs, len(rows))

    def boosting():
        model, count = _fit_boosting("Classifier", splits, rows["train"], categories)
        return _to_logits(_probabilities(model, rows["test"], classes), outputs, count)

    def fit_texts(analyzer):
        train, val = texts["train"], texts.get("val", [])
        most = linear.MAX_CHARACTERS * len(train) // (3 * classes * sum(map(len, [*train, *val])))
        sample = _sample_rows(len(train), most)
        _check_budget(len(sample), len(train), sum(map(len, train)) // len(train), classes)
        y = splits.train["targets"][sample]
        fold_of = np.arange(len(sample)) % 3  # without a validation split
        if val:
            y = np.concatenate([y, splits.val["targets"]])
            fold_of = np.repeat([-1, 0], [len(sample), len(val)])
        fitted = [*(train[i] for i in sample), *val]
        fits = linear.fit_texts(analyzer, fitted, y, fold_of, classes)
        logits = fits.logits(texts["test"])
        logits = logits if outputs > 1 else logits[:, 1:] - logits[:, :1]
        return Baseline(logits, rows=len(sample))

    texts, rows, categories = _plain(splits)
    baselines: Baselines = {"majority class": majority}
    baselines |= {
        name: functools.partial(fit_texts, analyzer)
        for analyzer, name in TFIDF.items() if texts
    }  # fmt: skip
    baselines |= _linear(fit_regression, splits, texts, classes)
    if rows:
        baselines["histogram gradient boosting"] = boosting
    return baselines


def multi_label(splits) -> Baselines:
    """Returns the baselines of targets 0 or 1 (n, labels): label shares, and logistic regressions,
    one per label."""
    targets = splits.train["targets"]
    labels = targets.shape[1]

    def baseline(logits, val_logits=None, rows=None):
        """Shifts the logits by thresholds fitted like the network's; the loss is of the logits."""
        truth, thresholds = splits.test["targets"], np.zeros(labels)
        if val_logits is not None and len(val_logits) >= calibration.MIN_EXAMPLES:
            thresholds = calibration.thresholds(splits.val["targets"], val_logits)
        losses = np.logaddexp(0, logits) - truth * logits
        return Baseline(np.float32(logits - thresholds), {"loss": float(losses.mean())}, rows)

    def shares():
        share = np.clip(targets.mean(0), 1e-6, 1 - 1e-6)
        return baseline(np.tile(np.log(share / (1 - share)), (len(splits.test["targets"]), 1)))

    def regressions(sample):
        rows, points = _limit_rows(*sample(), labels, 1)
        fit = logistic.fitter(points["train"])
        models = [_logistic(fit, points, y, 2) for y in targets[rows].astype(int).T]

        def logits(split):
            share = np.stack([predict(points[split])[:, 1] for predict in models], 1)
            share = share.clip(1e-6, 1 - 1e-6)
            return np.log(share / (1 - share))

        return baseline(logits("test"), logits("val") if splits.val else None, len(rows))

    baselines: Baselines = {"share of each label": shares}
    if labels <= MAX_LABELS:
        baselines |= _linear(regressions, splits, _plain(splits)[0], labels)
    return baselines


def regression(splits) -> Baselines:
    """Returns the baselines of float targets, (n,) or (n, k): mean and regressions."""
    targets = splits.train["targets"].reshape(len(splits.train["targets"]), -1)
    truth = splits.test["targets"].reshape(len(splits.test["targets"]), -1)

    def baseline(outputs, rows=None):
        return Baseline(np.float32(outputs).reshape(truth.shape), rows=rows)

    def boosting():
        model, count = _fit_boosting("Regressor", splits, rows["train"], categories)
        return baseline(model.predict(rows["test"]), count)

    baselines: Baselines = {"mean": lambda: baseline(np.tile(targets.mean(0), (len(truth), 1)))}
    texts, rows, categories = _plain(splits)
    if (suffix := _suffix(splits, texts)) is not None:
        baselines[f"ridge regression{suffix}"] = lambda: _ridge(splits)
    if rows and targets.shape[1] == 1:
        baselines["histogram gradient boosting"] = boosting
    return baselines


def forecast(splits) -> Baselines:
    """Returns the baselines of forecasts: seasonal-naive, and ridge autoregression."""
    from dlflax.data.series.source import seasonal_naive

    test = splits.test

    def seasonal():
        horizon = test["targets"].shape[1]
        return Baseline(np.float32(seasonal_naive(test["inputs"], horizon, splits.target.period)))

    baselines: Baselines = {"the last season again": seasonal}
    if not np.isnan(splits.train["targets"]).any(1).all():
        baselines["ridge autoregression"] = lambda: _ridge(splits)
    return baselines


def reconstruction(splits, code_size: int | None, probe: Callable | None) -> Baselines:
    """Returns the baseline of reconstructions: principal components, as many as code_size, or 16.
    probe: (codes, test codes) -> accuracy of a classifier on codes; None without classes."""
    (count, *shape) = splits.train["inputs"].shape
    components = int(min(code_size or 16, np.prod(shape), count))

    def pca():
        from sklearn.decomposition import PCA

        shape = splits.test["inputs"].shape
        points = _points(splits)
        rows = _sample_rows(len(points["train"]))
        model = PCA(components, random_state=0).fit(points["train"][rows])
        codes = model.transform(points["test"])
        outputs = np.float32(model.inverse_transform(codes)).reshape(shape)
        scores = {}
        if probe:
            scores["linear_probe_accuracy"] = probe(model.transform(points["train"]), codes)
        return Baseline(outputs, scores, len(rows))

    return {f"{components} principal components": pca}


def _plain(splits) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[bool, ...]]:
    """Returns (texts, rows, categorical columns) of `Encoder.plain`: {split: texts} and {split:
    rows}, {} without any."""
    parts = {name: splits.plain(name) for name in splits.examples}
    parts = {name: part for name, part in parts.items() if part is not None}
    texts = {name: part.texts for name, part in parts.items() if part.texts is not None}
    rows = {name: part.rows for name, part in parts.items() if part.rows is not None}
    return texts, rows, parts["train"].categories if rows else ()


def _linear(fit, splits, texts, classes: int) -> Baselines:
    """Returns {name: function that fits a linear model on sampled inputs}; {} unless the inputs are
    numeric."""
    if (suffix := _suffix(splits, texts)) is None:
        return {}
    return {f"logistic regression{suffix}": lambda: fit(lambda: _sample_points(splits))}


def _suffix(splits, texts) -> str | None:
    """Returns the suffix of a linear model's name: " on pixels", or "" for other numbers; None if
    the inputs are not numeric."""
    if _are_images(inputs := splits.train["inputs"]):
        return " on pixels"
    return "" if inputs.dtype.kind in "fiu" and not texts else None


def _are_images(inputs) -> bool:
    # uint8, or float32 for 16-bit images
    return inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.dtype in (np.uint8, np.float32)


def _sample_points(splits):
    """Returns (rows of a sample of the train split, `_points` with these rows)."""
    rows = _sample_rows(len(splits.train["inputs"]))
    return rows, _points(splits, rows)


def _points(splits, rows=slice(None)):
    """Returns {split: inputs float64 (n, columns)}: pixels in 0..1, large images downsampled. rows:
    of the train split."""
    points = {}
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if part is None:
            continue
        x = np.asarray(part["inputs"])
        if (columns := math.prod(x.shape[1:])) > 5 * MAX_COLUMNS and not _are_images(x):
            _check_budget(0, 1, columns, 1)
        x = x[rows] if name == "train" else x
        if _are_images(x):
            block = 1
            while np.prod(x.shape[1:]) / block**2 > MAX_COLUMNS:
                block += 1
            h, w = (size // block for size in x.shape[1:3])
            blocks = x[:, : h * block, : w * block].reshape(-1, h, block, w, block, x.shape[3])
            x = blocks.mean((2, 4), dtype=np.float32) / (255 if x.dtype == np.uint8 else 1)
        points[name] = np.float64(x.reshape(len(x), -1))
    return points


def _to_logits(probabilities, outputs: int, rows: int | None = None) -> Baseline:
    p = np.log(np.clip(probabilities, 1e-9, 1))
    return Baseline(np.float32(p if outputs > 1 else p[:, 1:] - p[:, :1]), rows=rows)


def _limit_rows(rows, points, fits: int, classes: int | None = None):
    """Returns rows and points with the train split limited to the budget of a logistic regression.
    fits: number of classes, or of binary regressions if classes is 1."""
    x = points["train"]
    sample = _sample_rows(len(rows), int(MAX_NUMBERS / max(x.shape[1] * fits, 1)))
    _check_budget(len(sample), len(rows), x.shape[1], classes or fits)
    return rows[sample], {**points, "train": x[sample]}


def _check_budget(used: int, rows: int, columns: int, classes: int) -> None:
    """Raises InputError if the budget permits too few of the rows."""
    if used < min(rows, max(MIN_ROWS, MIN_PER_CLASS * classes)):
        more = f" and {classes:,} classes" * (classes > 1)
        raise InputError(f"fitting takes too long on {columns:,} columns{more}.")


def _fit_boosting(kind, splits, rows, categories):
    """Returns (scikit-learn's histogram gradient boosting with its defaults, number of rows)."""
    from sklearn import ensemble

    targets = splits.train["targets"].ravel()
    trees = max(2, len(splits.class_names)) - 1 if kind == "Classifier" else 1
    sample = _sample_rows(len(rows), MAX_BOOSTED // (rows.shape[1] * trees) - LEAVES_BINS)
    _check_budget(len(sample), len(rows), rows.shape[1], trees + 1 if trees > 1 else 1)
    model = getattr(ensemble, f"HistGradientBoosting{kind}")(
        categorical_features=np.array(categories), random_state=0
    )
    rows = rows[sample]
    for column in np.flatnonzero(categories):  # scikit-learn takes at most 255 levels
        rows[rows[:, column] > 250, column] = np.nan
    return model.fit(rows, targets[sample]), len(sample)


def _logistic(fit, points, y, classes: int, y_val=None) -> Callable:
    """Returns a function from inputs to probabilities (n, classes): `fit` with increasing STRENGTHS
    until the validation loss rises, or with 1 without y_val."""
    if len(np.unique(y)) < 2:
        return lambda x: np.tile(np.eye(classes)[y[0]], (x.shape[0], 1))

    best, least = None, np.inf
    for strength in STRENGTHS if y_val is not None else (1.0,):
        model, loss = fit(y, strength), 0.0
        if y_val is not None:
            p = _probabilities(model, points["val"], classes)
            loss = -np.log(p[np.arange(len(p)), y_val] + 1e-9).mean()
        if loss >= least:
            break
        best, least = model, loss
    return lambda x: _probabilities(best, x, classes)


def _probabilities(model, x, classes: int) -> np.ndarray:
    """Returns probabilities (n, classes), almost 0 for classes missing from the sample."""
    p = np.full((x.shape[0], classes), 1e-9)
    p[:, model.classes_] = model.predict_proba(x)
    return p


def _ridge(splits) -> Baseline:
    """Returns the ridge regression with the lowest validation error."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = splits.train["targets"].reshape(len(splits.train["targets"]), -1)
    complete = np.flatnonzero(~np.isnan(y).any(1))
    rows = complete[_sample_rows(len(complete))]
    points = _points(splits, rows)
    columns = points["train"].shape[1]  # the cost: min(rows, columns)^2 * max(rows, columns)
    limit = max(MAX_PRODUCTS // columns**2, math.isqrt(MAX_PRODUCTS // columns))
    sample = _sample_rows(len(rows), limit)
    _check_budget(len(sample), len(rows), columns, 1)
    x, y = points["train"][sample], y[rows[sample]]
    best, least = None, np.inf
    for alpha in ALPHAS if splits.val else (1.0,):
        model, loss = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x, y), 0.0
        if splits.val:
            truth = splits.val["targets"].reshape(len(points["val"]), -1)
            loss = np.nanmean((model.predict(points["val"]).reshape(truth.shape) - truth) ** 2)
        if loss < least:
            best, least = model, loss
    outputs = np.float32(best.predict(points["test"])).reshape(splits.test["targets"].shape)
    return Baseline(outputs, rows=len(sample))


def _sample_rows(count: int, limit: int | None = None) -> np.ndarray:
    """Returns the indices of a random sample: at most `limit` of `count`, by default MAX_ROWS."""
    limit = max(0, MAX_ROWS if limit is None else limit)
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))
