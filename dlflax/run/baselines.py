"""The simple models that a run states beside its network, kept on disk for the next run."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax import train
from dlflax.data.stream import fits
from dlflax.errors import InputError
from dlflax.files import cache_folder, read_json, write_json
from dlflax.train.tasks import Tested

VERSION = 2  # another one forgets what is on disk


def computed(
    recipe: train.Recipe, hparams: train.Hparams, splits, log: Callable[[str], None] = print
) -> dict[str, dict[str, float]]:
    """Name -> scores on the test data of each simple model that the task has. What fails is said
    and left out: none of it may stop a run."""
    task = recipe.task
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    if not hasattr(task, "baselines"):
        return {}
    if not all(map(fits, parts)):
        log("no simple models beside it: the data do not fit into memory")
        return {}
    names = {name: recipe.task.SCORES.get(name) for name in recipe.task.SCORES}
    known = [VERSION, type(task).__qualname__, repr(task.loss), names, list(splits.class_names)]
    path = cache_folder() / "baselines" / f"{_digest(known, splits, parts)}.json"
    found = _read(path)
    for name, fitted in task.baselines(recipe.model, splits).items():
        if name in found:
            continue
        try:
            baseline = fitted()
            scores = train.scores(recipe, hparams, splits.test, baseline.outputs)
            found[name] = {**scores, **baseline.scores}
        except Exception as error:  # scikit-learn's, on data that no test has seen
            log(f"warning: no {name} beside it ({type(error).__name__}: {error})")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    except OSError:
        pass  # it is computed again
    return found


def described(task, tested: Tested) -> dict[str, float]:
    """All test scores that are numbers."""
    scores = task.summary(tested.sums) | task.describe(tested).scores
    return {name: value for name, value in scores.items() if isinstance(value, float)}


ADVICE = "train longer, tune it with sweeps.bayes_opt, or take what is simpler."


def verdict(results: dict[str, Any], task, advice: str = ADVICE) -> list[str]:
    """A sentence where a simple model is as good as the network by the task's first score; else
    []."""
    name = next(iter(task.SCORES))
    sign = 1 if task.SCORES[name] == "min" else -1
    mine = results["test"].get(name)
    others = {n: each[name] for n, each in results["baselines"].items() if name in each}
    if mine is None or not others:
        return []
    best = min(others, key=lambda n: sign * others[n])
    if sign * mine < sign * others[best]:
        return []
    score = name.replace("_", " ")
    return [
        f"The network, {score} {mine:.4g}, is not better than {best}, {others[best]:.4g}: {advice}"
    ]


def _read(path) -> dict[str, dict[str, float]]:
    try:
        found = read_json(path)
        return {n: {k: float(v) for k, v in each.items()} for n, each in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, InputError):
        return {}


def _digest(known, splits, parts) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for part in parts:
        for name in sorted(part):
            array = np.ascontiguousarray(part[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.view(np.uint8).data if array.size else b"")
    for values in splits.plain.values():
        for name, each in values.items():
            digest.update(repr((name, list(each))).encode())
    return digest.hexdigest()
