"""Boosted trees of scikit-learn, LightGBM and CatBoost as a model, `models.trees.Trees`.

A library fits its trees to columns of the encoder's inputs, with early stopping on the validation
examples; then the model gets their arrays. Categories are columns by target statistics: the mean
target of a level, smoothed (Micci-Barreca 2001). Those of a training example are computed without
its fold, so that its own target is no input.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dlflax.baselines import tree_libraries
from dlflax.baselines.tree_libraries import Nodes
from dlflax.data.encoder import Encoder
from dlflax.data.table.columns import CategoryColumn, NumberColumn, TimeColumn
from dlflax.data.table.encoder import TableEncoder
from dlflax.data.target import Classes, Numbers
from dlflax.errors import InputError
from dlflax.models.trees import CHUNK, Trees

MODULES = {"scikit-learn": "sklearn", "LightGBM": "lightgbm", "CatBoost": "catboost"}
MAX_ONE_HOT = 10  # levels of a category that are columns, too
MAX_STATISTICS = 10  # most frequent classes with statistics
SMOOTHING = 10.0  # examples that the mean of all counts as, in that of a level
FOLDS = 5  # of target statistics
MEASURED_TREES = 4, 40  # of a fold: the seconds of its start, and of a tree
MIN_TREES = 40  # of a fold, fewer are no model
ABSENT = -20.0  # logit of a class without training examples


def available() -> tuple[str, ...]:
    """Returns the libraries of scikit-learn, LightGBM and CatBoost that are installed."""
    return tuple(name for name, module in MODULES.items() if importlib.util.find_spec(module))


def fit_trees(
    library: str, encoder: Encoder, task: Any, inputs: np.ndarray, targets: np.ndarray,
    val_inputs: np.ndarray, val_targets: np.ndarray, *, seed: int, max_trees: int, threads: int,
) -> tuple[Trees, dict[str, Any]]:  # fmt: skip
    """Fits boosted trees with early stopping on the validation examples, and returns the model and
    its variables.

    library: one of `available`; inputs: (n, ...) of the encoder; targets: class numbers int (n,),
    or standardized numbers (n,) or (n, 1); max_trees: for each of more than two classes. The same
    seed and number of threads give the same variables. Raises InputError for other tasks, for
    targets without two different values, and without the library.
    """
    if library not in available():
        raise InputError(f"{library} is not installed: pip install {library.lower()}.")
    classes, num_outputs = _outputs(encoder, task, targets)
    x, x_val, y, y_val = _flat(inputs), _flat(val_inputs), targets.ravel(), val_targets.ravel()
    values = np.unique(y)
    if len(values) < 2:
        raise InputError("the targets of the training inputs have one value: nothing to learn.")
    if classes:
        is_present = np.isin(y_val, values)
        x_val, y_val = x_val[is_present], np.searchsorted(values, y_val[is_present])
        y = np.searchsorted(values, y)
    if not len(y_val):
        raise InputError("the validation inputs have no class of the training inputs.")
    scores = len(values) if classes and len(values) > 2 else 1
    columns = _Columns.fit(encoder, x.shape[1])
    is_class = np.eye(len(values))[y] if classes else None
    about = y[:, None] if is_class is None else is_class[:, -1:]
    if scores > 1:
        about = is_class[:, np.argsort(-is_class.sum(0), kind="stable")[:MAX_STATISTICS]]
    x, x_val, projection = columns.encode(x, x_val, about, seed)
    arguments = (x, y), (x_val, y_val), scores if classes else 0, seed, max_trees, threads
    trees, base = tree_libraries.FITS[library](*arguments)
    head = np.zeros((scores, num_outputs), np.float32)
    absent = np.zeros(num_outputs)
    if classes and num_outputs > 1:
        absent[np.setdiff1d(np.arange(num_outputs), values)] = ABSENT
        head[np.arange(scores), values if scores > 1 else values[1:]] = 1
    else:
        head[:] = 1
    arrays = {"projection": projection, "head": head, "base": absent + base @ head}
    return _model(columns, trees, arrays)


class Fits(NamedTuple):
    """The models of all folds as one."""

    model: Trees
    """The mean of the folds' scores: logits or numbers."""
    variables: dict[str, Any]
    outputs: np.ndarray
    """float32 (n, outputs), of the model of the fold that an example is held out from."""
    trees: list[int]
    """Number of trees of each fold."""
    max_trees: int
    """The limit of `fit_folds`, or less by its limit of seconds."""


def fit_folds(
    library: str, encoder: Encoder, task: Any, inputs: np.ndarray, targets: np.ndarray,
    fold_of: np.ndarray, *, max_trees: int, seconds: float = math.inf, **options: Any,
) -> Fits:  # fmt: skip
    """Fits a model for each fold, with early stopping on that fold, and joins them.

    fold_of: int (n,), from 0; options: as for `fit_trees`, which this raises as. With a limit of
    `seconds` a few rounds are measured first, and the models have as many as fit: the result's
    `max_trees`. Raises TimeoutError if these are fewer than MIN_TREES. A fold has one thread:
    several that wait for each other are slow on a busy machine."""

    def fit(fold: int, max_trees: int):
        train, val = fold_of != fold, fold_of == fold
        model = fit_trees(
            library, encoder, task, inputs[train], targets[train], inputs[val], targets[val],
            threads=1, max_trees=max_trees, **options,
        )  # fmt: skip
        return *model, _evaluate(*model, _flat(inputs[val]))

    begun, count, cores = time.perf_counter(), int(fold_of.max()) + 1, os.cpu_count() or 1
    if seconds < math.inf:
        # the first fit also imports the library
        times = [fit(0, trees) and time.perf_counter() for trees in (1, *MEASURED_TREES)]
        per_tree, start = np.polyfit(MEASURED_TREES, np.diff(times), 1)
        left = (seconds - (times[-1] - begun)) / math.ceil(count / cores) - start
        max_trees = min(max_trees, round(left / max(per_tree, 1e-9)))
        if max_trees < MIN_TREES:
            raise TimeoutError
    with ThreadPoolExecutor(cores) as pool:  # the libraries release the GIL
        fits = list(pool.map(functools.partial(fit, max_trees=max_trees), range(count)))
    outputs = np.empty((len(inputs), fits[0][0].num_outputs), np.float32)
    for fold, (*_, values) in enumerate(fits):
        outputs[fold_of == fold] = values
    models = [(model, variables) for model, variables, _ in fits]
    return Fits(*_mean(models), outputs, [model.num_trees for model, _ in models], max_trees)


def _evaluate(model: Trees, variables, x: np.ndarray) -> np.ndarray:
    """Returns the outputs of the model in NumPy, which compiles nothing."""
    arrays = types.SimpleNamespace(**variables["trees"])
    is_missing = (arrays.indicator >= 0) & (x[:, np.maximum(arrays.indicator, 0)] > 0.5)
    columns = np.where(is_missing, arrays.fill, x[:, arrays.source])
    columns = np.hstack([columns, x @ arrays.projection])
    scores = np.zeros((len(x), model.num_scores), np.float32)
    step = model.num_scores // model.num_values
    for start in range(0, len(arrays.root), CHUNK * step):
        node = np.tile(arrays.root[start : start + CHUNK * step], (len(x), 1))
        for _ in range(model.depth):
            above = np.take_along_axis(columns, arrays.column[node], 1) > arrays.threshold[node]
            node = arrays.left[node] + above
        scores += arrays.value[node].reshape(len(x), -1, model.num_scores).sum(1)
    return scores @ arrays.head + arrays.base


def _mean(models: list[tuple[Trees, dict[str, Any]]]) -> tuple[Trees, dict[str, Any]]:
    """Returns one model whose scores are the mean of the models'. Raises InputError if a class has
    no example in one of them."""
    trees, arrays = models[0][0], [variables["trees"] for _, variables in models]
    if any(not np.array_equal(a["head"], arrays[0]["head"]) for a in arrays):
        raise InputError("a fold lacks a class, so there are no boosted trees.")
    joined = {name: arrays[0][name] for name in ("source", "indicator", "fill", "head")}
    joined["projection"] = np.hstack([a["projection"] for a in arrays])
    joined["base"] = np.mean([a["base"] for a in arrays], 0)
    joined["threshold"] = np.concatenate([a["threshold"] for a in arrays])
    joined["value"] = np.concatenate([a["value"] for a in arrays]) / np.float32(len(models))
    nodes = np.cumsum([0, *(model.num_nodes for model, _ in models)])
    for name in ("root", "left"):
        joined[name] = np.concatenate([a[name] + at for a, at in zip(arrays, nodes, strict=False)])
    combinations = np.cumsum([0, *(model.num_combinations for model, _ in models)])
    joined["column"] = np.concatenate([
        np.where(a["column"] < trees.num_inputs, a["column"], a["column"] + at)
        for a, at in zip(arrays, combinations, strict=False)
    ])  # fmt: skip
    for name, x in joined.items():
        joined[name] = x.astype(np.int32 if x.dtype.kind == "i" else np.float32)
    model = trees.clone(
        num_combinations=int(combinations[-1]), num_nodes=int(nodes[-1]),
        num_trees=len(joined["root"]), depth=max(model.depth for model, _ in models),
    )  # fmt: skip
    return model, {"params": {}, "trees": joined}


def _outputs(encoder: Encoder, task: Any, targets: np.ndarray) -> tuple[int, int]:
    """Returns (number of classes, 0 for numbers; number of the network's outputs)."""
    target, is_column = encoder.target, targets.shape[1:] in ((), (1,))
    if isinstance(target, Numbers) and is_column and not task.logits:
        return 0, 1
    if isinstance(target, Classes) and targets.ndim == 1 and task.logits:
        classes = len(target.classes)
        splits = types.SimpleNamespace(class_names=target.classes, train={"targets": targets})
        return classes, task.model_fields(splits).get("num_outputs", classes)
    raise InputError(
        f"--task {type(task).__name__}: boosted trees predict one of some classes, or one number."
    )


def _flat(inputs: np.ndarray) -> np.ndarray:
    """Returns inputs float32 (n, width), images in 0..1 as in a step."""
    x = np.asarray(inputs).reshape(len(inputs), -1)
    return np.float32(x) / np.float32(255) if x.dtype == np.uint8 else np.float32(x)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Columns of the trees: their indices in the inputs."""

    sources: list[int]
    """Inputs that are columns."""
    indicators: list[int]
    """Their indicators of missing values, -1 without any."""
    blocks: list[slice]
    """One-hot inputs of categories, for target statistics."""
    calendars: list[slice]
    """One-hot inputs in an order: months, days of the week."""
    width: int

    @classmethod
    def fit(cls, encoder: Encoder, width: int) -> "_Columns":
        """Returns the columns of a table; of any other inputs, all of them."""
        columns = cls([], [], [], [], width)
        if not isinstance(encoder, TableEncoder):
            columns.add(range(width))
            return columns
        groups = encoder.groups()
        for column in encoder.columns:
            columns.add_column(column, groups[column.name])
        if not columns.sources:
            columns.add([0])
        return columns

    def add(self, indices: Any, indicator: int = -1) -> None:
        """Adds inputs."""
        self.sources.extend(indices)
        self.indicators.extend([indicator] * len(indices))

    def add_column(self, column: Any, index: slice) -> None:
        """Adds a column of a table, whose inputs are at index: a number without its bins."""
        if isinstance(column, NumberColumn):
            self.add([index.start], index.stop - 1 if column.missing else -1)
        elif isinstance(column, TimeColumn):
            year = index.start + column.elapsed.width()
            months = year + column.year.width()
            self.add_column(column.elapsed, slice(index.start, year))
            self.add_column(column.year, slice(year, months))
            self.calendars.extend([slice(months, months + 12), slice(months + 12, months + 19)])
            self.add(range(months + 19, index.stop))
        elif isinstance(column, CategoryColumn):
            if len(column.levels) <= MAX_ONE_HOT:
                self.add(range(index.start, index.stop))
            if len(column.levels) > 2:
                self.blocks.append(index)
        else:
            self.add(range(index.start, index.stop))

    def encode(self, x, x_val, targets, seed: int):
        """Returns (columns of the training examples, those of the validation examples, NaN where a
        number is missing; projection of the inputs). targets: float64 (n, k), for statistics."""
        folds = np.random.default_rng(seed).permutation(len(x)) % FOLDS
        prior, inside = targets.mean(0), np.zeros(self.width, bool)
        for block in self.blocks:
            inside[block] = True
        one_hot = np.float64(x[:, inside])
        ones = np.column_stack([targets - prior, np.ones(len(x))])
        sums = [one_hot[folds == fold].T @ ones[folds == fold] for fold in range(FOLDS)]
        total = np.sum(sums, 0)

        def project(x, sums):
            levels = np.zeros((self.width, targets.shape[1]))
            levels[inside] = sums[:, :-1] / (sums[:, -1:] + SMOOTHING)
            projection = self._project(levels)
            return projection, x @ projection

        combinations = np.empty((len(x), self._count(targets.shape[1])), np.float32)
        for fold in range(FOLDS):
            combinations[folds == fold] = project(x[folds == fold], total - sums[fold])[1]
        projection, val_combinations = project(x_val, total)
        x, x_val = (self._values(inputs) for inputs in (x, x_val))
        return np.hstack([x, combinations]), np.hstack([x_val, val_combinations]), projection

    def _values(self, x):
        values, indicators = x[:, np.array(self.sources, int)], np.array(self.indicators, int)
        values[(indicators >= 0) & (x[:, indicators] > 0.5)] = np.nan
        return values

    def _count(self, targets: int) -> int:
        return len(self.calendars) + targets * len(self.blocks)

    def _project(self, levels) -> np.ndarray:
        """Returns the projection, float32 (width, combinations), with statistics (width, k)."""
        k = levels.shape[1]
        projection = np.zeros((self.width, self._count(k)), np.float32)
        for i, days in enumerate(self.calendars):
            projection[days, i] = np.arange(1, days.stop - days.start + 1)
        for i, block in enumerate(self.blocks):
            start = len(self.calendars) + i * k
            projection[block, start : start + k] = levels[block]
        return projection


def _model(columns: _Columns, trees: list[Nodes], arrays: dict[str, np.ndarray]):
    """Returns (the model, its variables) of the trees of a library."""
    nodes = tree_libraries.join(trees)
    order, depth = tree_libraries.breadth_first(nodes)
    position = np.argsort(order)
    column, missing_left = nodes.column[order], nodes.missing_left[order]
    is_leaf = column < 0
    # a column with missing values stands twice: these are below, or above, all its numbers
    count, indicators = len(columns.sources), np.array(columns.indicators, int)
    with_missing = np.flatnonzero(indicators >= 0)
    above = np.arange(count + arrays["projection"].shape[1]) + len(with_missing)
    above[:count] = np.arange(count)
    below = above.copy()
    above[with_missing] = count + np.arange(len(with_missing))
    inputs = np.append(np.arange(count), with_missing)
    threshold = np.float32(np.minimum(nodes.threshold[order], np.finfo(np.float32).max))
    too_high = threshold > nodes.threshold[order]
    threshold[too_high] = np.nextafter(threshold[too_high], np.float32(-np.inf))
    if not arrays["projection"].size:  # a checkpoint has no array of size zero
        arrays["projection"] = np.zeros((columns.width, 1))
    arrays |= {
        "source": np.array(columns.sources, int)[inputs], "indicator": indicators[inputs],
        "fill": np.repeat([-np.inf, np.inf], [count, len(with_missing)]),
        "root": position[list(nodes.root)],
        "column": np.where(is_leaf, 0, np.where(missing_left, below[column], above[column])),
        "threshold": np.where(is_leaf, np.inf, threshold),
        "left": position[np.where(is_leaf, order, nodes.left[order])], "value": nodes.value[order],
    }  # fmt: skip
    for name, x in arrays.items():
        arrays[name] = x.astype(np.int32 if x.dtype.kind == "i" else np.float32)
    model = Trees(
        width=columns.width, num_inputs=len(inputs), num_combinations=arrays["projection"].shape[1],
        num_trees=len(trees), num_nodes=len(order), depth=depth,
        num_scores=arrays["head"].shape[0], num_values=nodes.value.shape[1],
        num_outputs=arrays["head"].shape[1],
    )  # fmt: skip
    return model, {"params": {}, "trees": arrays}
