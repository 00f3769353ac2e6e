"""Baselines: reference models scored beside the network, cached on disk for the next run."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from dlflax import cache, train
from dlflax.config.config import Config
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.report.progress import announcement
from dlflax.report.tables import number_text
from dlflax.run.prepare import Setup
from dlflax.train import metrics
from dlflax.train.tasks import Tested

Log = Callable[[str], None]
VERSION = 6  # of the files in the cache: older ones are not read
CHANCE = 0.05  # the difference of two models with a larger p-value may be chance
LINEAR = ("logistic regression", "ridge ")  # prefixes of linear baselines
TUNE = " tune it with sweeps.bayes_opt,"
ADVICE = f"train longer,{TUNE} or use the simpler model."


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Test scores of a baseline."""

    scores: dict[str, float]
    correct: np.ndarray | None
    """bool (n,), of `correct_predictions`."""
    rows: int | None = None
    """Number of training examples that the baseline is fitted on; None: all."""


def compare(config: Config, setup: Setup, tested: Tested, results, brief: bool, log: Log) -> None:
    """Adds the baselines, and findings that compare the network with them, to the results."""
    start, task, findings = setup.start, config.recipe.task, results["findings"]
    baselines = fit_baselines(start.recipe, config.hparams, start.splits, log, findings.append)
    if start.head:
        scores, outputs = start.head()
        head = dataclasses.replace(tested, outputs=outputs, calibration={})
        scores = all_scores(task, scores, head)
        correct = correct_predictions(task, start.splits.test, outputs, scores)
        baselines["the last layer alone"] = Baseline(scores, correct)
    if not baselines:
        return
    results["baselines"] = {name: baseline.scores for name, baseline in baselines.items()}
    correct = correct_predictions(task, start.splits.test, tested.outputs, results["test"])
    results["mcnemar"] = mcnemar_counts(correct, baselines)
    linear = is_linear(setup.abstract.params, start.splits.train["inputs"])
    findings += verdict(results, task, linear, brief)


def fit_baselines(
    recipe: train.Recipe, hparams: train.Hparams, splits, log: Log = print, note: Log | None = None
) -> dict[str, Baseline]:
    """Fits each baseline of the task that is not cached. Failures are logged: they never stop a
    run. note: gets findings about baselines over budget (default: `log`)."""
    task = recipe.task
    arrays = [split for split in (splits.train, splits.val, splits.test) if split is not None]
    fitters = task.baselines(recipe.model, splits)
    if not fitters:
        return {}
    if not all(map(fits_on_device, arrays)):
        log("no baselines: the data do not fit into the device's memory")
        return {}
    path = _cache_path(task, splits, arrays)
    baselines, note = _read(path), note or log
    for name, fit in fitters.items():
        if name in baselines:
            continue
        try:
            with announcement(f"fitting {name} ...", log):
                fitted = fit()
            scores = train.scores(task, hparams, splits.test, fitted.outputs) | fitted.scores
            correct = correct_predictions(task, splits.test, fitted.outputs, scores)
            baselines[name] = Baseline(scores, correct, fitted.rows)
        except InputError as error:
            note(f"No {name} baseline: {error}")
        except Exception as error:  # scikit-learn may raise anything on unusual data
            log(f"warning: the {name} baseline failed ({type(error).__name__}: {error})")
    examples = len(splits.train["inputs"])
    for name, baseline in baselines.items():
        if baseline.rows is not None and baseline.rows < examples:
            note(f"{name} is fitted on {baseline.rows:,} of {examples:,} training examples.")
    _write(path, baselines)
    return baselines


def all_scores(task, scores: dict[str, float], tested: Tested) -> dict[str, float]:
    """Returns the scalar test scores: the metrics, and scores of the task's description."""
    scores = scores | task.describe(tested).scores
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def correct_predictions(task, test, outputs, scores: dict[str, float]) -> np.ndarray | None:
    """Returns bool (n,), True where the predicted class is correct; None unless the first
    metric is the accuracy."""
    targets = test.get("targets")
    if task.metric().name != "accuracy" or np.ndim(targets) != 1 or outputs.ndim > 2:
        return None
    correct = metrics.predictions(np.asarray(outputs)) == targets
    accuracy = scores.get("accuracy", math.nan)
    return correct if math.isclose(correct.mean(), accuracy, abs_tol=1e-5) else None


def mcnemar_counts(network: np.ndarray | None, baselines: dict[str, Baseline]) -> dict[str, Any]:
    """Returns the counts of McNemar's test for each baseline: examples that only the network, or
    only the baseline, predicts right. network: as `Baseline.correct`."""
    return {
        name: {
            "network_alone": int(np.sum(network & ~baseline.correct)),
            "baseline_alone": int(np.sum(baseline.correct & ~network)),
            "examples": len(network),
        }
        for name, baseline in baselines.items()
        if network is not None and baseline.correct is not None
    }


def mcnemar_p(counts: dict[str, int]) -> float:
    """Returns the p-value of McNemar's exact test, two-sided."""
    from scipy.special import bdtr  # scipy.stats takes 0.7 s more to import

    alone = counts["network_alone"], counts["baseline_alone"]
    return min(1.0, 2 * float(bdtr(min(alone), sum(alone), 0.5)))


def is_linear(params, inputs: np.ndarray) -> bool:
    """True if the network is a single linear layer on the inputs (n, ...)."""
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return len(kernels) == 1 and kernels[0][:-1] == (math.prod(inputs.shape[1:]),)


def verdict(
    results: dict[str, Any], task, linear: bool = False, in_sweep: bool = False
) -> list[str]:
    """Returns a finding that compares the network with the best baseline by the task's first
    metric, if there is one. linear: the network is linear, so `LINEAR` baselines are skipped;
    in_sweep: the network is the best trial of a sweep, so the finding does not advise tuning."""
    subject, advice = "network", f": {ADVICE.replace(TUNE, '') if in_sweep else ADVICE}"
    if results.get("members"):  # a member alone is no advice
        subject, advice = "ensemble", "."
    name = task.metric().name
    sign = 1 if task.metric().direction == "min" else -1
    network_score = results["test"].get(name)
    others = {
        other: scores[name] for other, scores in results["baselines"].items()
        if name in scores and not (linear and other.startswith(LINEAR))
    }  # fmt: skip
    if network_score is None or not others:
        return []
    best = min(others, key=lambda n: sign * others[n])
    score, a, b = name.replace("_", " "), number_text(network_score), number_text(others[best])
    if f"{network_score:.4g}" == f"{others[best]:.4g}":
        return [f"The {subject} is as good as {best}, {score} {b}{advice}"]
    better = sign * network_score < sign * others[best]
    counts = results.get("mcnemar", {}).get(best)
    if counts and (p := mcnemar_p(counts)) > CHANCE:
        return [
            f"The {subject}, {score} {a}, and {best}, {b}, are not different on "
            f"{counts['examples']:,} examples (McNemar's test, p = {p:.2g})"
            + ("." if better else advice)
        ]
    if better and linear:  # the remaining baselines are trivial
        return []
    end = f"is better than {best}, {b}." if better else f"is not better than {best}, {b}{advice}"
    return [f"The {subject}, {score} {a}, {end}"]


def _cache_path(task, splits, arrays) -> Path:
    """Returns the path of the cache entry of all that baselines depend on."""
    parts = [VERSION, repr(task), repr(task.metrics), repr(splits.encoder)]
    for split in arrays:
        for name in sorted(split):
            parts += [name, np.asarray(split[name])]
    for name, examples in splits.examples.items():
        for column, values in examples.columns.items():
            if isinstance(values, pa.Array):
                parts.append(bytes(pa.record_batch([values], [column]).serialize()))
            elif values.dtype == object:
                parts.append(repr((name, column, values.tolist())))
    return cache.cache_folder() / "baselines" / cache.digest(*parts)


def _read(path: Path) -> dict[str, Baseline]:
    values, arrays = cache.read(path) or ({}, {})
    return {
        name: Baseline(scores, arrays.get(f"correct{i}"), rows)
        for i, (name, (scores, rows)) in enumerate(values.items())
    }


def _write(path: Path, baselines: dict[str, Baseline]) -> None:
    rows = enumerate(baselines.values())
    arrays = {f"correct{i}": [b.correct] for i, b in rows if b.correct is not None}
    cache.write(path, {name: (b.scores, b.rows) for name, b in baselines.items()}, arrays)
