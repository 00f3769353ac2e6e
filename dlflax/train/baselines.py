"""Simple models beside the network: what three lines of scikit-learn reach on the same data.

A task says which there are (`Task.baselines`); each is fitted on the training data, some choose
their one number on the validation data, and all give outputs for the test data as the network does,
so that the task scores both in the same way. scikit-learn is imported where it is used; logistic
regressions of dense inputs are fitted by `train.logistic`, to the same optimum in less time.
Each has a budget, by rows, columns and classes: as many rows as that allows are used, which its
Baseline states; where these are too few, it is refused by an InputError.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax.data.encoder import Plain
from dlflax.errors import InputError
from dlflax.train import calibration, logistic

TFIDF = "TF-IDF and logistic regression"
MAX_ROWS = 10_000  # training examples that are used, drawn at random
MAX_CHARACTERS = 5 * 10**7  # of the texts among them
MAX_NUMBERS = 4 * 10**8  # rows x columns x classes of a logistic regression
MAX_TERMS = 2 * 10**7  # terms x classes of one of texts
MAX_PRODUCTS = 4 * 10**10  # of a ridge regression
MAX_BOOSTED = 5 * 10**7  # (rows + LEAVES_BINS) x columns x classes of gradient boosting
LEAVES_BINS = 31 * 255  # which its trees cost besides the rows
MIN_ROWS, MIN_EXAMPLES = 1000, 5  # in all, where there are as many, and of each class
MAX_COLUMNS = 4096  # numbers of an example; larger pictures are averaged down
MAX_LABELS = 50
ITERATIONS = 100  # of scikit-learn's L-BFGS
STRENGTHS = 0.001, 0.01, 0.1, 1.0, 10.0  # of logistic regressions: scikit-learn's C
ALPHAS = 10.0 ** np.arange(-3, 6)  # of ridge regressions


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The outputs of a simple model for the test data."""

    outputs: np.ndarray
    """float32 (n, ...), as those of the network."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Test scores that are no metric of the outputs."""
    rows: int | None = None
    """Training examples that it is fitted on; None: all of them."""


Baselines = dict[str, Callable[[], Baseline]]
"""Name -> function that fits it."""


def of_classes(splits, outputs: int) -> Baselines:
    """For targets int (n,): the share of each class, and a logistic regression on what there is to
    read. outputs: how many the network has, 1 or the number of classes."""
    classes = len(splits.class_names)

    def majority():
        targets = splits.train["targets"]
        share = np.bincount(targets, minlength=classes) / len(targets)
        return _as_logits(np.tile(share, (len(splits.test["targets"]), 1)), outputs)

    found: Baselines = {"majority class": majority}

    def regression(points, strengths):
        def fitted():
            rows, parts = _affordable(*points(), classes)
            predict = _logistic(_fitter(parts), parts, splits, classes, strengths, rows)
            return _as_logits(predict(parts["test"]), outputs, len(rows))

        return fitted

    plain = _plain(splits)
    if texts := _texts(plain):
        found[TFIDF] = regression(lambda: _few_texts(texts, classes), (1.0, 10.0))
    elif (what := _columns(splits)) is not None:
        found[f"logistic regression{what}"] = regression(lambda: _few(splits), STRENGTHS)
    if rows := _rows_of(plain):

        def boost():
            model, used = _boosted("Classifier", splits, rows["train"], plain["train"].categories)
            return _as_logits(_probabilities(model, rows["test"], classes), outputs, used)

        found["histogram gradient boosting"] = boost
    return found


def of_labels(splits) -> Baselines:
    """For targets 0 or 1 (n, labels): the share of each label, and a logistic regression each."""
    targets = splits.train["targets"]

    def scored(logits, val_logits=None, rows=None):
        """Cut by thresholds of its own, as the network's are; the loss is of the logits."""
        truth, cuts = splits.test["targets"], np.zeros(targets.shape[1])
        if val_logits is not None and len(val_logits) >= calibration.MIN_EXAMPLES:
            cuts = calibration.thresholds(splits.val["targets"], val_logits)
        losses = np.logaddexp(0, logits) - truth * logits
        return Baseline(np.float32(logits - cuts), {"loss": float(losses.mean())}, rows)

    def shares():
        share = np.clip(targets.mean(0), 1e-6, 1 - 1e-6)
        return scored(np.tile(np.log(share / (1 - share)), (len(splits.test["targets"]), 1)))

    def regressions(points):
        rows, parts = _affordable(*points(), targets.shape[1], 1)
        fitted, fit = [], _fitter(parts)
        for label in range(targets.shape[1]):
            own = {n: getattr(splits, n) for n in ("train", "val", "test")}
            own = {n: {"targets": p["targets"][:, label].astype(int)} for n, p in own.items() if p}
            fitted.append(_logistic(fit, parts, _Named(**own), 2, (1.0,), rows))

        def logits(points):
            share = np.stack([of(points)[:, 1] for of in fitted], 1).clip(1e-6, 1 - 1e-6)
            return np.log(share / (1 - share))

        validation = logits(parts["val"]) if splits.val else None
        return scored(logits(parts["test"]), validation, len(rows))

    found: Baselines = {"share of each label": shares}
    if targets.shape[1] > MAX_LABELS:
        return found
    if texts := _texts(_plain(splits)):
        found[TFIDF] = lambda: regressions(lambda: _few_texts(texts, targets.shape[1]))
    elif (what := _columns(splits)) is not None:
        found[f"logistic regression{what}"] = lambda: regressions(lambda: _few(splits))
    return found


def of_numbers(splits) -> Baselines:
    """For targets float (n,) or (n, numbers): their mean, and a ridge regression."""
    targets = splits.train["targets"].reshape(len(splits.train["targets"]), -1)
    truth = splits.test["targets"].reshape(len(splits.test["targets"]), -1)

    def scored(outputs, rows=None):
        return Baseline(np.float32(outputs).reshape(truth.shape), rows=rows)

    found: Baselines = {"mean": lambda: scored(np.tile(targets.mean(0), (len(truth), 1)))}
    if (what := _columns(splits)) is not None:
        found[f"ridge regression{what}"] = lambda: _ridge(splits)
    plain = _plain(splits)
    if (rows := _rows_of(plain)) and targets.shape[1] == 1:

        def boost():
            model, used = _boosted("Regressor", splits, rows["train"], plain["train"].categories)
            return scored(model.predict(rows["test"]), used)

        found["histogram gradient boosting"] = boost
    return found


def _plain(splits) -> dict[str, Plain]:
    """The examples of each part as `Encoder.plain` gives them; {} where it gives none."""
    parts = {name: splits.plain(name) for name in splits.examples}
    return {name: part for name, part in parts.items() if part is not None}


def _texts(plain: dict[str, Plain]) -> dict[str, Any]:
    return {name: part.texts for name, part in plain.items() if part.texts is not None}


def _rows_of(plain: dict[str, Plain]) -> dict[str, np.ndarray]:
    return {name: part.rows for name, part in plain.items() if part.rows is not None}


def _boosted(kind, splits, rows, categories):
    """(scikit-learn's gradient boosting over histograms, with its own defaults; the number of rows
    that it is fitted on)."""
    from sklearn import ensemble

    targets = splits.train["targets"].ravel()
    trees = max(2, len(splits.class_names)) - 1 if kind == "Classifier" else 1
    chosen = _rows(len(rows), MAX_BOOSTED // (rows.shape[1] * trees) - LEAVES_BINS)
    _refuse_few(len(chosen), len(rows), rows.shape[1], trees + 1 if trees > 1 else 1)
    model = getattr(ensemble, f"HistGradientBoosting{kind}")(
        categorical_features=np.array(categories), random_state=0
    )
    rows = rows[chosen]
    for column in np.flatnonzero(categories):  # at most 255 levels, the others are missing
        rows[rows[:, column] > 250, column] = np.nan
    return model.fit(rows, targets[chosen]), len(chosen)


def of_series(splits) -> Baselines:
    """For windows: the last season again, and a ridge autoregression."""
    from dlflax.data.series import seasonal_naive

    test = splits.test

    def seasonal():
        horizon = test["targets"].shape[1]
        return Baseline(np.float32(seasonal_naive(test["inputs"], horizon, splits.target.period)))

    found: Baselines = {"the last season again": seasonal}
    if not np.isnan(splits.train["targets"]).any(1).all():
        found["ridge autoregression"] = lambda: _ridge(splits)
    return found


def of_inputs(splits, code: int | None, probe: Callable | None) -> Baselines:
    """For reconstructions: principal components, as many as a code has numbers (16 where there is
    no code). probe: (codes, test codes) -> accuracy of a classifier on them, if there are
    classes."""
    wanted = code or 16
    sizes = np.prod(splits.train["inputs"].shape[1:]), len(splits.train["inputs"])
    components = int(min(wanted, *sizes))

    def pca():
        from sklearn.decomposition import PCA

        shape = splits.test["inputs"].shape
        points = _flat(splits)
        rows = _rows(len(points["train"]))
        fitted = PCA(components, random_state=0).fit(points["train"][rows])
        codes = fitted.transform(points["test"])
        outputs = np.float32(fitted.inverse_transform(codes)).reshape(shape)
        scores = {}
        if probe:
            scores["linear_probe_accuracy"] = probe(fitted.transform(points["train"]), codes)
        return Baseline(outputs, scores, len(rows))

    return {f"{components} principal components": pca}


@dataclasses.dataclass(frozen=True)
class _Named:
    """Parts of the data, by name."""

    train: dict[str, Any]
    test: dict[str, Any]
    val: dict[str, Any] | None = None


def _columns(splits) -> str | None:
    """Returns " on pixels", or "" of other numbers; None of what no linear model could read."""
    if _are_images(inputs := splits.train["inputs"]):
        return " on pixels"
    return "" if inputs.dtype.kind in "fiu" and not _texts(_plain(splits)) else None


def _are_images(inputs) -> bool:
    # uint8, or of a deeper image, scaled
    return inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.dtype in (np.uint8, np.float32)


def _few(splits):  # (rows, `_flat` of these alone of the training examples)
    rows = _rows(len(splits.train["inputs"]))
    return rows, _flat(splits, rows)


def _flat(splits, rows=slice(None)):
    """{part: float64 (n, columns)}: pixels from 0 to 1, large pictures averaged down. rows: those
    of the training examples."""
    found = {}
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if part is None:
            continue
        x = np.asarray(part["inputs"])
        if (columns := math.prod(x.shape[1:])) > 5 * MAX_COLUMNS and not _are_images(x):
            _refuse_few(0, 1, columns, 1)
        x = x[rows] if name == "train" else x
        if _are_images(x):
            block = 1
            while np.prod(x.shape[1:]) / block**2 > MAX_COLUMNS:
                block += 1
            h, w = (size // block for size in x.shape[1:3])
            cut = x[:, : h * block, : w * block].reshape(-1, h, block, w, block, x.shape[3])
            x = cut.mean((2, 4), dtype=np.float32) / (255 if x.dtype == np.uint8 else 1)
        found[name] = np.float64(x.reshape(len(x), -1))
    return found


def _few_texts(texts, classes: int):
    """(rows, `_tfidf` of these alone of the training texts)."""
    train = texts["train"]
    some = train[:: max(1, len(train) // 1000)]
    rows = _rows(len(train), MAX_CHARACTERS * len(some) // max(1, sum(map(len, some))))
    few = {**texts, "train": [train[i] for i in rows.tolist()]}
    return rows, _tfidf(few, MAX_TERMS // classes)


def _tfidf(texts, terms: int | None = None):
    """{part: sparse (n, terms)} of words and pairs of words; of single characters and pairs where
    there are hardly any blanks. terms: the most frequent that count."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    sample = "".join(texts["train"][:1000])
    blanks = sum(map(str.isspace, sample)) > len(sample) / 20
    reader = TfidfVectorizer(
        ngram_range=(1, 2),
        analyzer="word" if blanks else "char",
        token_pattern=r"(?u)\b\w+\b" if blanks else None,
        sublinear_tf=True,
        max_features=terms,
    )
    found = {"train": reader.fit_transform(texts["train"])}
    return found | {n: reader.transform(part) for n, part in texts.items() if n != "train"}


def _as_logits(probabilities, outputs: int, rows: int | None = None) -> Baseline:
    p = np.log(np.clip(probabilities, 1e-9, 1))
    return Baseline(np.float32(p if outputs > 1 else p[:, 1:] - p[:, :1]), rows=rows)


def _affordable(rows, points, fits: int, classes: int | None = None):
    """Cuts rows and points["train"] to what a logistic regression can be fitted on: one of so many
    classes, or `fits` of two."""
    x = points["train"]
    numbers = (x.nnz / len(rows) if hasattr(x, "nnz") else x.shape[1]) * fits
    few = _rows(len(rows), int(MAX_NUMBERS / max(numbers, 1)))
    _refuse_few(len(few), len(rows), x.shape[1], classes or fits)
    return rows[few], {**points, "train": x[few]}


def _refuse_few(used: int, rows: int, columns: int, classes: int) -> None:
    if used < min(rows, max(MIN_ROWS, MIN_EXAMPLES * classes)):
        more = f" and {classes:,} classes" * (classes > 1)
        raise InputError(f"{columns:,} columns{more} take it too long.")


def _fitter(points) -> Callable:
    """Returns a function of targets and C that fits a logistic regression of the training rows."""
    x = points["train"]
    if isinstance(x, np.ndarray):
        return logistic.fitter(x)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fit(targets, strength):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=ITERATIONS).fit(x, targets)

    return fit


def _logistic(fit, points, splits, classes: int, strengths, rows) -> Callable:
    """Returns a function from points to probabilities (n, classes): the regression by `fit` of the
    strength from which on the validation loss rises, 1 without validation data. rows: the training
    examples of points."""
    y = splits.train["targets"][rows]
    if len(np.unique(y)) < 2:
        return lambda points: np.tile(np.eye(classes)[y[0]], (points.shape[0], 1))

    best, least = None, np.inf
    for strength in strengths if splits.val else (1.0,):
        model, loss = fit(y, strength), 0.0
        if splits.val:
            p = _probabilities(model, points["val"], classes)
            loss = -np.log(p[np.arange(len(p)), splits.val["targets"]] + 1e-9).mean()
        if loss >= least:
            break
        best, least = model, loss
    return lambda points: _probabilities(best, points, classes)


def _probabilities(model, points, classes: int) -> np.ndarray:
    """(n, classes), next to nothing for those that it was not trained on."""
    p = np.full((points.shape[0], classes), 1e-9)
    p[:, model.classes_] = model.predict_proba(points)
    return p


def _ridge(splits) -> Baseline:
    """The ridge regression of the strength with the least validation error."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = splits.train["targets"].reshape(len(splits.train["targets"]), -1)
    whole = np.flatnonzero(~np.isnan(y).any(1))
    rows = whole[_rows(len(whole))]
    points = _flat(splits, rows)
    columns = points["train"].shape[1]  # its cost: the square of the less times the more
    most = max(MAX_PRODUCTS // columns**2, math.isqrt(MAX_PRODUCTS // columns))
    few = _rows(len(rows), most)
    _refuse_few(len(few), len(rows), columns, 1)
    x, y = points["train"][few], y[rows[few]]
    best, least = None, np.inf
    for alpha in ALPHAS if splits.val else (1.0,):
        model = make_pipeline(StandardScaler(), Ridge(alpha))
        model.fit(x, y)
        loss = 0.0
        if splits.val:
            truth = splits.val["targets"].reshape(len(points["val"]), -1)
            loss = np.nanmean((model.predict(points["val"]).reshape(truth.shape) - truth) ** 2)
        if loss < least:
            best, least = model, loss
    outputs = np.float32(best.predict(points["test"])).reshape(splits.test["targets"].shape)
    return Baseline(outputs, rows=len(few))


def _rows(count: int, most: int | None = None) -> np.ndarray:
    """The places of the training examples that are used: at most MAX_ROWS, or `most`."""
    most = max(0, MAX_ROWS if most is None else most)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
