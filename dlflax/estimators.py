"""Estimators of scikit-learn: `DLClassifier` and `DLRegressor`, for its pipelines and searches."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from dlflax import train
from dlflax.data.order import assign_folds, batch_order
from dlflax.data.table.columns import NumberColumn
from dlflax.data.table.number_formats import NumberFormat
from dlflax.data.table.source import fit_columns
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.train.bag import fit_bag
from dlflax.train.check import MIN_VALIDATION, check_count, check_hparams, check_recipe
from dlflax.train.recipe import init_on_devices
from dlflax.train.tasks import Classification, Regression, Task

STEPS = 1024  # in one compiled call
ROWS = 256  # in one call of a prediction
WIDTH = 64  # inputs are padded to a multiple of it: such data share one program


class _Network(BaseEstimator):
    """Multilayer perceptrons on encoded numbers: the parameters, training and outputs of both."""

    def __init__(
        self, hidden_sizes: Sequence[int] = (128, 128), epochs: int = 100,
        learning_rate: float = 1e-3, dropout: float = 0.2, weight_decay: float = 0.01,
        batch_size: int = 32, num_bins: int = 16, bag_folds: int = 5, patience: int = 20,
        random_state: Any = None,
    ) -> None:  # fmt: skip
        self.hidden_sizes = hidden_sizes
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.num_bins = num_bins
        self.bag_folds = bag_folds
        self.patience = patience
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _validate(self, x, **fitting):
        """Returns X, float64 (n, columns), after scikit-learn's checks; for y=y, (X, y)."""
        options = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        return validate_data(self, x, reset="y" in fitting, **fitting, **options)

    def _train(self, x: np.ndarray, targets: np.ndarray, task: Task, outputs: int) -> None:
        """Trains the networks on X (n, columns) and encoded targets (n,)."""
        if len(x) < 2:
            raise InputError("the inputs X have n_samples = 1: fit needs 2 samples or more.")
        for name, least in (("epochs", 1), ("num_bins", 0), ("bag_folds", 0), ("patience", 0)):
            check_count(name, getattr(self, name), least)
        columns = {str(i): pa.array(x[:, i], from_pandas=True) for i in range(x.shape[1])}
        formats = dict.fromkeys(columns, NumberFormat())
        self.columns_: list[NumberColumn] = fit_columns(columns, self.num_bins, formats)[0]
        recipe = train.Recipe(
            model=MLP(features=tuple(self.hidden_sizes), num_outputs=outputs), task=task,
            optimizer=train.AdamW(), schedule=train.Cosine(), batch_size=self.batch_size,
        )  # fmt: skip
        hparams = train.Hparams(
            learning_rate=self.learning_rate, dropout=self.dropout, warmup_fraction=0.05,
            weight_decay=self.weight_decay,
        )  # fmt: skip
        check_hparams(hparams)
        check_recipe(recipe)
        self.recipe_, self.hparams_, self.temperature_ = recipe, hparams, 1.0
        seed = int(check_random_state(self.random_state).randint(2**31))
        data = {"inputs": self._encode(x), "targets": targets}
        if self.bag_folds > 1 and len(x) >= MIN_VALIDATION * self.bag_folds:
            self._train_bag(data, seed)
        else:
            self._train_one(data, seed)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.variables_)):
            raise InputError(
                f"the loss became NaN or infinite: learning_rate {self.learning_rate} is too high."
            )

    def _train_bag(self, data: dict[str, np.ndarray], seed: int) -> None:
        """Trains a network for each fold, held out to choose its epoch, and calibrates their mean
        by their outputs on the folds."""
        fold_of = assign_folds(data["targets"], self.bag_folds, seed)
        bag = fit_bag(
            self.recipe_, self.hparams_, data, fold_of, seed=seed, epochs=self.epochs,
            patience=self.patience,
        )  # fmt: skip
        hparams = train.as_float32(self.hparams_.evaluation())
        batch = train.host_batch(self.recipe_.task, data)
        fitted = self.recipe_.task.calibrate(bag.outputs, batch, hparams)
        self.variables_, self.temperature_ = bag.variables, fitted.get("temperature", 1.0)

    def _train_one(self, data: dict[str, np.ndarray], seed: int) -> None:
        """Trains one network, on all rows. Rows and steps are padded: data of about this size share
        a compiled program."""
        order = batch_order(data, self.batch_size)
        batches = np.concatenate([order.batches(seed, epoch) for epoch in range(self.epochs)])
        hparams = train.as_float32(self.hparams_.replace(total_steps=float(len(batches))))
        example = data["inputs"][:1]
        state = init_on_devices(self.recipe_, hparams, example, np.uint32(seed), None)
        data = {name: _pad(array, _power_of_two(len(array))) for name, array in data.items()}
        sums = train.zero_sums(self.recipe_, hparams, data)
        for start in range(0, len(batches), STEPS):
            part = batches[start : start + STEPS]
            state, sums = train.train_steps(
                self.recipe_, state, hparams, data, _pad(part, STEPS), sums, np.int32(0),
                np.int32(len(part)),
            )  # fmt: skip
        self.variables_ = [jax.device_get(train.variables(self.recipe_, state))]

    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Returns the inputs of the network, float32 (n, m WIDTH). Zeros fill them up; the others
        are scaled so that the first layer begins as if it had them alone."""
        parts = [column.encode(x[:, [int(column.name)]], np) for column in self.columns_]
        inputs = np.concatenate([np.zeros((len(x), 0)), *parts], 1)
        width = max(1, inputs.shape[1])
        padded = -(-width // WIDTH) * WIDTH
        inputs = np.pad(inputs, ((0, 0), (0, padded - inputs.shape[1])))
        return np.float32(inputs * np.sqrt(padded / width))

    def _outputs(self, x) -> np.ndarray:
        """Returns the mean of the networks' outputs, float64 (n, outputs)."""
        check_is_fitted(self)
        inputs, hparams = self._encode(self._validate(x)), train.as_float32(self.hparams_)
        outputs = [
            np.concatenate([
                train.predict(self.recipe_, state, hparams, _pad(inputs[i : i + ROWS], ROWS))
                for i in range(0, len(inputs), ROWS)
            ])[: len(inputs)]
            for state in map(train.from_variables, self.variables_)
        ]  # fmt: skip
        weights = np.full(len(outputs), 1 / len(outputs), np.float32)
        mean = self.recipe_.task.mean(np.stack(outputs), weights)
        return np.float64(mean) / self.temperature_


class DLClassifier(ClassifierMixin, _Network):
    """A classifier of scikit-learn: multilayer perceptrons, trained by this package.

    X: numbers (n, columns), NaN where one is missing. hidden_sizes: widths of the hidden layers;
    epochs: passes over X, at most; learning_rate: its peak, under a cosine; num_bins: of each
    column's piecewise-linear encoding, 0 for none. bag_folds: number of networks, each with another
    fold held out to choose its epoch, with `patience` epochs without a better one; 0, or fewer than
    30 rows a fold: one network on all rows. Sizes compile a program and numbers do not, so
    a search over learning_rate, dropout and weight_decay compiles once.

    >>> from dlflax import DLClassifier
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]] * 10, ["low", "low", "high", "high"] * 10
    >>> network = DLClassifier(hidden_sizes=(16,), random_state=0).fit(X, y)
    >>> network.predict([[0.2], [2.8]]).tolist()
    ['low', 'high']
    """

    def fit(self, X: Any, y: Any) -> "DLClassifier":  # noqa: N803
        """Trains on X (n, columns) and classes y (n,). Raises ValueError for other data."""
        X, y = self._validate(X, y=y)  # noqa: N806
        check_classification_targets(y)
        self.classes_, targets = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y has one class, {self.classes_[0]}: a classifier needs two.")
        self._train(X, targets.astype(np.int32), Classification(), len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Returns probabilities, float64 (n, classes), in the order of `classes_`."""
        logits = self._outputs(X)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Returns the most probable class of each row, (n,)."""
        best = self._outputs(X).argmax(1)
        return self.classes_[best]


class DLRegressor(RegressorMixin, _Network):
    """A regressor of scikit-learn: multilayer perceptrons, trained by this package. Parameters as
    of `DLClassifier`.

    >>> from dlflax import DLRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]] * 10, [0.0, 10.0, 20.0, 30.0] * 10
    >>> network = DLRegressor(hidden_sizes=(16,), epochs=300, random_state=0).fit(X, y)
    >>> bool(network.score(X, y) > 0.9)
    True
    """

    def fit(self, X: Any, y: Any) -> "DLRegressor":  # noqa: N803
        """Trains on X (n, columns) and numbers y (n,). Raises ValueError for other data."""
        X, y = self._validate(X, y=y)  # noqa: N806
        y = np.float64(column_or_1d(y, warn=True))
        self.mean_, self.scale_ = y.mean(), y.std() or 1.0
        self._train(X, np.float32((y - self.mean_) / self.scale_), Regression(), 1)
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Returns a number for each row, float64 (n,)."""
        outputs = self._outputs(X)[:, 0]
        return outputs * self.scale_ + self.mean_


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    """Returns the array with rows of zeros after its own."""
    return np.pad(array, ((0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)))


def _power_of_two(count: int) -> int:
    """Returns the least power of two that is `count` or more, from 256."""
    return max(256, 1 << (count - 1).bit_length())
