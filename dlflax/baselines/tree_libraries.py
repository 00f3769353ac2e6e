"""Boosted trees of other libraries, fitted with early stopping, as arrays of their nodes."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

PATIENCE = 50  # rounds of boosting without a lower validation loss
SLOW_CLASSES = 4  # of more, whose rounds cost more, the rounds are fewer and larger
MAX_SPEED = 4.0
PARAMETERS: dict[str, dict[str, Any]] = {
    "scikit-learn": {
        "learning_rate": 0.05, "max_leaf_nodes": 15, "l2_regularization": 1.0, "max_features": 0.7,
    },
    "LightGBM": {
        "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 10, "lambda_l2": 1.0,
        "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
    },
    "CatBoost": {"learning_rate": 0.05, "depth": 5},
}  # fmt: skip
LOWEST = -100.0  # a missing number for CatBoost; standardized ones are above -10


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Nodes of one or more trees: arrays (nodes,)."""

    column: np.ndarray
    """-1 for a leaf."""
    threshold: np.ndarray
    """float64: examples up to it go left."""
    missing_left: np.ndarray
    """True if examples with a missing value go left."""
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    """(nodes, values)."""
    root: tuple[int, ...] = (0,)


def join(trees: list[Nodes]) -> Nodes:
    """Returns the nodes of all trees."""
    starts = np.cumsum([0, *(len(tree.column) for tree in trees)])[:-1]
    fields = {
        name: np.concatenate([getattr(tree, name) for tree in trees])
        for name in ("column", "threshold", "missing_left", "value")
    }
    for name in ("left", "right"):
        fields[name] = np.concatenate(
            [getattr(tree, name) + start for tree, start in zip(trees, starts, strict=True)]
        )
    return Nodes(**fields, root=tuple(starts.tolist()))


def breadth_first(nodes: Nodes) -> tuple[np.ndarray, int]:
    """Returns (indices of the nodes, each left child before the right one; depth of the trees)."""
    level, order, depth = np.array(nodes.root), [], 0
    while True:
        order.append(level)
        parents = level[nodes.column[level] >= 0]
        if not len(parents):
            return np.concatenate(order), depth
        level, depth = np.stack([nodes.left[parents], nodes.right[parents]], 1).ravel(), depth + 1


def parameters(library: str, scores: int, max_trees: int) -> tuple[dict[str, Any], int]:
    """Returns (parameters of a library, with the learning rate for this number of scores; rounds
    at most)."""
    speed = min(max(scores / SLOW_CLASSES, 1.0), MAX_SPEED)
    chosen = PARAMETERS[library]
    faster = {"learning_rate": speed * chosen["learning_rate"]}
    return chosen | faster, math.ceil(max_trees / speed)


def fit_sklearn(train, val, scores: int, seed: int, max_trees: int, threads: int):
    from sklearn import ensemble

    kind = "Classifier" if scores else "Regressor"
    chosen, rounds = parameters("scikit-learn", scores, max_trees)
    model = getattr(ensemble, f"HistGradientBoosting{kind}")(
        max_iter=rounds, early_stopping=True, scoring="loss", n_iter_no_change=PATIENCE, tol=0.0,
        random_state=seed, **chosen,
    )  # fmt: skip
    with threadpoolctl.threadpool_limits(threads, "openmp"):
        model.fit(*train, X_val=val[0], y_val=val[1])
    rounds = max(1, int(np.argmax(model.validation_score_)))  # the first is that of no trees
    trees = []
    for predictor in (tree for trees in model._predictors[:rounds] for tree in trees):
        nodes = predictor.nodes
        is_leaf = nodes["is_leaf"].astype(bool)
        trees.append(Nodes(
            np.where(is_leaf, -1, nodes["feature_idx"]), nodes["num_threshold"],
            nodes["missing_go_to_left"].astype(bool), nodes["left"].astype(int),
            nodes["right"].astype(int), np.where(is_leaf, nodes["value"], 0.0)[:, None],
        ))  # fmt: skip
    return trees, np.ravel(model._baseline_prediction)


def fit_lightgbm(train, val, scores: int, seed: int, max_trees: int, threads: int):
    import lightgbm

    chosen, rounds = parameters("LightGBM", scores, max_trees)
    chosen |= {
        "objective": ["regression", "binary", "multiclass"][min(scores, 2)], "seed": seed,
        "deterministic": True, "force_row_wise": True, "num_threads": threads, "verbosity": -1,
    }  # fmt: skip
    if scores > 1:
        chosen["num_class"] = scores
    data = lightgbm.Dataset(*train, params={"verbosity": -1})
    booster = lightgbm.train(
        chosen, data, rounds, valid_sets=[data.create_valid(*val)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )  # fmt: skip
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    trees = [_read_lightgbm(tree) for tree in text.split("\nTree=")[1:]]
    return trees, np.zeros(max(1, scores))


def _read_lightgbm(text: str) -> Nodes:
    """Returns the nodes of a tree in LightGBM's text format: splits, then leaves."""
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    values = np.array(lines["leaf_value"].split(), float)
    count = len(values) - 1

    def read(name: str, dtype: type = int):
        return np.array(lines[name].split() if count else [], dtype)

    def child(name):
        numbers = read(name)
        return np.concatenate([np.where(numbers < 0, count - 1 - numbers, numbers), leaves])

    leaves, threshold = np.arange(count, 2 * count + 1), read("threshold", float)
    kind = read("decision_type")
    # bit 1: missing values go left; bits 2 and 3: 2 if there were any, else they count as 0
    missing_left = np.where(kind >> 2 == 2, kind & 2 > 0, threshold >= 0)
    return Nodes(
        np.append(read("split_feature"), np.full(count + 1, -1)),
        np.append(threshold, np.zeros(count + 1)),
        np.append(missing_left, np.zeros(count + 1, bool)),
        child("left_child"), child("right_child"), np.append(np.zeros(count), values)[:, None],
    )  # fmt: skip


def fit_catboost(train, val, scores: int, seed: int, max_trees: int, threads: int):
    import catboost

    kind = catboost.CatBoostClassifier if scores else catboost.CatBoostRegressor
    chosen, rounds = parameters("CatBoost", scores, max_trees)
    model = kind(
        iterations=rounds, early_stopping_rounds=PATIENCE, random_seed=seed, thread_count=threads,
        allow_writing_files=False, logging_level="Silent", **chosen,
    )  # fmt: skip
    (x, y), (x_val, y_val) = train, val
    x, x_val = (np.nan_to_num(x, nan=LOWEST) for x in (x, x_val))
    model.fit(x, y, eval_set=(x_val, y_val), use_best_model=True)
    with tempfile.TemporaryDirectory(prefix="dlflax-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        saved = json.loads(path.read_text(encoding="utf-8"))
    scale, base = saved["scale_and_bias"]
    trees = [_read_catboost(tree, scale, max(1, scores)) for tree in saved["oblivious_trees"]]
    return trees, np.array(base)


def _read_catboost(tree: dict[str, Any], scale: float, values: int) -> Nodes:
    """Returns the nodes of an oblivious tree, level by level: a level has one split."""
    splits = tree.get("splits", [])[::-1]  # the last one is the highest bit of a leaf's number
    sizes = 2 ** np.arange(len(splits))
    column = np.repeat([split["float_feature_index"] for split in splits], sizes)
    threshold = np.repeat(np.float32([split["border"] for split in splits]), sizes)
    leaves, inner = 2 ** len(splits), 2 ** len(splits) - 1
    child = np.minimum(2 * np.arange(inner + leaves) + 1, inner + leaves - 1)
    value = scale * np.array(tree["leaf_values"]).reshape(leaves, values)
    return Nodes(
        np.append(column, np.full(leaves, -1)).astype(int), np.append(threshold, np.zeros(leaves)),
        np.ones(inner + leaves, bool), child, np.minimum(child + 1, inner + leaves - 1),
        np.append(np.zeros((inner, values)), value, 0),
    )  # fmt: skip


FITS = {"scikit-learn": fit_sklearn, "LightGBM": fit_lightgbm, "CatBoost": fit_catboost}
