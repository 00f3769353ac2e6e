"""Simple models beside the network: what three lines of scikit-learn reach on the same data.

A task says which there are (`Task.baselines`); each is fitted on the training data, some choose
their one number on the validation data, and all give outputs for the test data as the network does,
so that the task scores both in the same way. scikit-learn is imported where it is used; logistic
regressions of dense inputs are fitted by `train.logistic`, to the same optimum in less time.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax.data.encoder import Plain
from dlflax.train import calibration, logistic

MOST_ROWS = 10_000  # training examples that are used, drawn at random
MOST_COLUMNS = 4096  # numbers of an example; larger pictures are averaged down
MOST_LABELS = 50
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
            parts = points()
            predict = _logistic(_fitter(parts), parts, splits, classes, strengths)
            return _as_logits(predict(parts["test"]), outputs)

        return fitted

    plain = _plain(splits)
    if texts := _texts(plain):
        found["TF-IDF and logistic regression"] = regression(lambda: _tfidf(texts), (1.0, 10.0))
    elif (what := _columns(splits)) is not None:
        found[f"logistic regression{what}"] = regression(lambda: _flat(splits, few=True), STRENGTHS)
    if rows := _rows_of(plain):

        def boost():
            model = _boosted("Classifier", splits, rows["train"], plain["train"].categories)
            return _as_logits(_probabilities(model, rows["test"], classes), outputs)

        found["histogram gradient boosting"] = boost
    return found


def of_labels(splits) -> Baselines:
    """For targets 0 or 1 (n, labels): the share of each label, and a logistic regression each."""
    targets = splits.train["targets"]

    def scored(logits, val_logits=None):
        """Cut by thresholds of its own, as the network's are; the loss is of the logits."""
        truth, cuts = splits.test["targets"], np.zeros(targets.shape[1])
        if val_logits is not None and len(val_logits) >= calibration.FEWEST:
            cuts = calibration.thresholds(splits.val["targets"], val_logits)
        losses = np.logaddexp(0, logits) - truth * logits
        return Baseline(np.float32(logits - cuts), {"loss": float(losses.mean())})

    def shares():
        share = np.clip(targets.mean(0), 1e-6, 1 - 1e-6)
        return scored(np.tile(np.log(share / (1 - share)), (len(splits.test["targets"]), 1)))

    def regressions(points):
        parts, fitted = points(), []
        fit = _fitter(parts)
        for label in range(targets.shape[1]):
            own = {n: getattr(splits, n) for n in ("train", "val", "test")}
            own = {n: {"targets": p["targets"][:, label].astype(int)} for n, p in own.items() if p}
            fitted.append(_logistic(fit, parts, _Named(**own), 2, (1.0,)))

        def logits(points):
            share = np.stack([of(points)[:, 1] for of in fitted], 1).clip(1e-6, 1 - 1e-6)
            return np.log(share / (1 - share))

        return scored(logits(parts["test"]), logits(parts["val"]) if splits.val else None)

    found: Baselines = {"share of each label": shares}
    if targets.shape[1] > MOST_LABELS:
        return found
    if texts := _texts(_plain(splits)):
        found["TF-IDF and logistic regression"] = lambda: regressions(lambda: _tfidf(texts))
    elif (what := _columns(splits)) is not None:
        found[f"logistic regression{what}"] = lambda: regressions(lambda: _flat(splits, few=True))
    return found


def of_numbers(splits) -> Baselines:
    """For targets float (n,) or (n, numbers): their mean, and a ridge regression."""
    targets = splits.train["targets"].reshape(len(splits.train["targets"]), -1)
    truth = splits.test["targets"].reshape(len(splits.test["targets"]), -1)

    def scored(outputs):
        return Baseline(np.float32(outputs).reshape(truth.shape))

    found: Baselines = {"mean": lambda: scored(np.tile(targets.mean(0), (len(truth), 1)))}
    if (what := _columns(splits)) is not None:
        found[f"ridge regression{what}"] = lambda: scored(_ridge(_flat(splits), splits))
    plain = _plain(splits)
    if (rows := _rows_of(plain)) and targets.shape[1] == 1:

        def boost():
            model = _boosted("Regressor", splits, rows["train"], plain["train"].categories)
            return scored(model.predict(rows["test"]))

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
    """scikit-learn's gradient boosting over histograms, with its own defaults."""
    from sklearn import ensemble

    model = getattr(ensemble, f"HistGradientBoosting{kind}")(
        categorical_features=np.array(categories), random_state=0
    )
    rows = rows.copy()
    for column in np.flatnonzero(categories):  # at most 255 levels, the others are missing
        rows[rows[:, column] > 250, column] = np.nan
    return model.fit(rows, splits.train["targets"].ravel())


def of_series(splits) -> Baselines:
    """For windows: the last season again, and a ridge autoregression."""
    from dlflax.data.series import seasonal_naive

    test = splits.test

    def seasonal():
        horizon = test["targets"].shape[1]
        return Baseline(np.float32(seasonal_naive(test["inputs"], horizon, splits.target.period)))

    found: Baselines = {"the last season again": seasonal}
    if not np.isnan(splits.train["targets"]).any(1).all():
        found["ridge autoregression"] = lambda: Baseline(_ridge(_flat(splits), splits))
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
        fitted = PCA(components, random_state=0).fit(points["train"][_rows(len(points["train"]))])
        codes = fitted.transform(points["test"])
        outputs = np.float32(fitted.inverse_transform(codes)).reshape(shape)
        scores = {}
        if probe:
            accuracy = probe(fitted.transform(points["train"]), codes)
            scores["linear_probe_accuracy"] = accuracy
        return Baseline(outputs, scores)

    return {f"{components} principal components": pca}


@dataclasses.dataclass(frozen=True)
class _Named:
    """Parts of the data, by name."""

    train: dict[str, Any]
    test: dict[str, Any]
    val: dict[str, Any] | None = None


def _columns(splits) -> str | None:
    """Returns the name of rows of numbers (" on pixels", or ""); None where an example is not one
    that a linear model could read."""
    inputs = splits.train["inputs"]
    if _are_images(inputs):
        return " on pixels"
    plain = inputs.dtype.kind in "fiu" and np.prod(inputs.shape[1:]) <= 5 * MOST_COLUMNS
    return "" if plain and not _texts(_plain(splits)) else None


def _are_images(inputs) -> bool:
    """True for pixels (n, h, w, 1 or 3), uint8 or of a deeper image, scaled."""
    return inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.dtype in (np.uint8, np.float32)


def _flat(splits, few: bool = False):
    """{part: float64 (n, columns)}: pixels from 0 to 1, large pictures averaged down. few: of the
    training examples those of `_rows`."""
    found = {}
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if part is None:
            continue
        x = np.asarray(part["inputs"])
        x = x[_rows(len(x))] if few and name == "train" else x
        if _are_images(x):
            block = 1
            while np.prod(x.shape[1:]) / block**2 > MOST_COLUMNS:
                block += 1
            height, width = (size // block * block for size in x.shape[1:3])
            cut = x[:, :height, :width].reshape(
                len(x), height // block, block, width // block, block, -1
            )
            x = cut.mean((2, 4), dtype=np.float32) / (255 if x.dtype == np.uint8 else 1)
        found[name] = np.float64(x.reshape(len(x), -1))
    return found


def _tfidf(texts):
    """{part: sparse (n, terms)} of words and pairs of words; of single characters and pairs where
    there are hardly any blanks."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    sample = "".join(texts["train"][:1000])
    blanks = sum(map(str.isspace, sample)) > len(sample) / 20
    reader = TfidfVectorizer(
        ngram_range=(1, 2),
        analyzer="word" if blanks else "char",
        token_pattern=r"(?u)\b\w+\b" if blanks else None,
        sublinear_tf=True,
    )
    found = {"train": reader.fit_transform(texts["train"])}
    return found | {n: reader.transform(part) for n, part in texts.items() if n != "train"}


def _as_logits(probabilities, outputs: int) -> Baseline:
    p = np.log(np.clip(probabilities, 1e-9, 1))
    return Baseline(np.float32(p if outputs > 1 else p[:, 1:] - p[:, :1]))


def _fitter(points) -> Callable:
    """Returns a function of targets and C that fits a logistic regression of the training rows."""
    x = points["train"][_rows(points["train"].shape[0])]
    if isinstance(x, np.ndarray):
        return logistic.fitter(x)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fit(targets, strength):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=ITERATIONS).fit(x, targets)

    return fit


def _logistic(fit, points, splits, classes: int, strengths) -> Callable:
    """Returns a function from points to probabilities (n, classes): the regression by `fit` of the
    strength from which on the validation loss rises, 1 without validation data."""
    y = splits.train["targets"][_rows(len(splits.train["targets"]))]
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


def _ridge(points, splits) -> np.ndarray:
    """Outputs (n, numbers) on the test data, of the strength with the least validation error."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = splits.train["targets"].reshape(len(points["train"]), -1)
    whole = np.flatnonzero(~np.isnan(y).any(1))
    rows = whole[_rows(len(whole))]
    best, least = None, np.inf
    for alpha in ALPHAS if splits.val else (1.0,):
        model = make_pipeline(StandardScaler(), Ridge(alpha))
        model.fit(points["train"][rows], y[rows])
        loss = 0.0
        if splits.val:
            truth = splits.val["targets"].reshape(len(points["val"]), -1)
            loss = np.nanmean((model.predict(points["val"]).reshape(truth.shape) - truth) ** 2)
        if loss < least:
            best, least = model, loss
    return np.float32(best.predict(points["test"])).reshape(len(points["test"]), -1)


def _rows(count: int) -> np.ndarray:
    """The places of the training examples that are used."""
    if count <= MOST_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_ROWS, replace=False))
