"""The simple models that a run states beside its network, kept on disk for the next run."""

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from dlflax import train
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.files import cache_folder, read_json, write_json
from dlflax.report.progress import announcement
from dlflax.report.tables import number_text
from dlflax.run.config import Config
from dlflax.run.prepare import Job
from dlflax.train import metrics
from dlflax.train.tasks import Tested

Log = Callable[[str], None]
VERSION = 5  # another one forgets what is on disk
CHANCE = 0.05  # a difference with a larger p is not stated as one
LINEAR = ("logistic regression", "ridge ")  # beginnings of the names of linear models of the inputs
TUNE = " tune it with sweeps.bayes_opt,"
ADVICE = f"train longer,{TUNE} or take what is simpler."


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The test scores of a simple model."""

    scores: dict[str, float]
    correct: np.ndarray | None
    """bool (n,), as `correct_predictions` returns it."""
    rows: int | None = None
    """Training examples that it is fitted on; None: all of them."""


def compare(config: Config, job: Job, tested: Tested, results, brief: bool, log: Log) -> None:
    """Adds baselines, and what they say of the network, to the results."""
    start, task, findings = job.start, config.recipe.task, results["findings"]
    beside = fit_baselines(start.recipe, config.hparams, start.splits, log, findings.append)
    if start.head:
        scores, outputs = start.head()
        head = dataclasses.replace(tested, outputs=outputs, calibration={})
        scores = all_scores(task, scores, head)
        correct = correct_predictions(task, start.splits.test, outputs, scores)
        beside["the last layer alone"] = Baseline(scores, correct)
    if not beside:
        return
    results["baselines"] = {name: baseline.scores for name, baseline in beside.items()}
    correct = correct_predictions(task, start.splits.test, tested.outputs, results["test"])
    results["mcnemar"] = mcnemar_counts(correct, beside)
    linear = is_linear(job.abstract.params, start.splits.train["inputs"])
    findings += verdict(results, task, linear, brief)


def fit_baselines(
    recipe: train.Recipe, hparams: train.Hparams, splits, log: Callable[[str], None] = print,
    note: Callable[[str], None] | None = None,
) -> dict[str, Baseline]:  # fmt: skip
    """Fits each simple model that the task has, unless it is on disk. What fails is said and
    dropped: none of it may stop a run. note, or `log`, gets a sentence on what was too much work.
    """
    task = recipe.task
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    fits_of = task.baselines(recipe.model, splits)
    if not fits_of:
        return {}
    if not all(map(fits_on_device, parts)):
        log("no simple models beside it: the data do not fit into memory")
        return {}
    known = [VERSION, repr(task), repr(task.metrics), repr(splits.encoder)]
    path = cache_folder() / "baselines" / f"{_digest(known, splits, parts)}.json"
    found, note = _read(path, len(splits.test["inputs"])), note or log
    for name, fit in fits_of.items():
        if name in found:
            continue
        try:
            with announcement(f"fitting {name} ...", log):
                simple = fit()
            scores = train.scores(task, hparams, splits.test, simple.outputs) | simple.scores
            correct = correct_predictions(task, splits.test, simple.outputs, scores)
            found[name] = Baseline(scores, correct, simple.rows)
        except InputError as error:
            note(f"No {name} stands beside the network: {error}")
        except Exception as error:  # scikit-learn's, on data that no test has seen
            log(f"warning: no {name} beside it ({type(error).__name__}: {error})")
    examples = len(splits.train["inputs"])
    for name, baseline in found.items():
        if baseline.rows is not None and baseline.rows < examples:
            note(f"{name} is fitted on {baseline.rows:,} of {examples:,} training examples.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: _to_json(baseline) for name, baseline in found.items()})
    except OSError:
        pass  # it is computed again
    return found


def all_scores(task, scores: dict[str, float], tested: Tested) -> dict[str, float]:
    """Returns all test scores that are numbers: those of the metrics, and what the task
    describes."""
    scores = scores | task.describe(tested).scores
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def correct_predictions(task, test, outputs, scores: dict[str, float]) -> np.ndarray | None:
    """Returns bool (n,), the test examples whose class is right; None where the task's first score
    is not their share."""
    targets = test.get("targets")
    if task.metric().name != "accuracy" or np.ndim(targets) != 1 or outputs.ndim > 2:
        return None
    correct = metrics.predictions(np.asarray(outputs)) == targets
    accuracy = scores.get("accuracy", math.nan)
    return correct if math.isclose(correct.mean(), accuracy, abs_tol=1e-5) else None


def mcnemar_counts(network: np.ndarray | None, baselines: dict[str, Baseline]) -> dict[str, Any]:
    """Returns for each baseline what McNemar's test goes by: how many examples the network alone
    predicts right, and how many the baseline alone. network: as `Baseline.correct`."""
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
    from scipy.stats import binomtest

    alone = counts["network_alone"], counts["baseline_alone"]
    return float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


def is_linear(params, inputs: np.ndarray) -> bool:
    """True if a network with these parameters is one linear layer on the inputs (n, ...), as
    logistic and ridge regressions are."""
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return len(kernels) == 1 and kernels[0][:-1] == (math.prod(inputs.shape[1:]),)


def verdict(
    results: dict[str, Any], task, linear: bool = False, in_sweep: bool = False
) -> list[str]:
    """Returns a sentence on whether the network is better than the best simple model, by the task's
    first score and beyond chance; none where there is nothing to compare. linear: the network is
    itself such a model as `LINEAR` names; in_sweep: whether it is the winner of a search."""
    advice = ADVICE.replace(TUNE, "") if in_sweep else ADVICE
    name = task.metric().name
    sign = 1 if task.metric().direction == "min" else -1
    mine = results["test"].get(name)
    others = {
        other: scores[name] for other, scores in results["baselines"].items()
        if name in scores and not (linear and other.startswith(LINEAR))
    }  # fmt: skip
    if mine is None or not others:
        return []
    best = min(others, key=lambda n: sign * others[n])
    score, a, b = name.replace("_", " "), number_text(mine), number_text(others[best])
    if f"{mine:.4g}" == f"{others[best]:.4g}":
        return [f"The network is as good as {best}, {score} {b}: {advice}"]
    better = sign * mine < sign * others[best]
    counts = results.get("mcnemar", {}).get(best)
    if counts and (p := mcnemar_p(counts)) > CHANCE:
        return [
            f"The network, {score} {a}, and {best}, {b}, are not different on "
            f"{counts['examples']:,} examples (McNemar's test, p = {p:.2g})"
            + ("." if better else f": {advice}")
        ]
    if better and linear:  # what is left is too simple to be better than
        return []
    end = f"is better than {best}, {b}." if better else f"is not better than {best}, {b}: {advice}"
    return [f"The network, {score} {a}, {end}"]


def _to_json(baseline: Baseline) -> dict[str, Any]:
    correct = baseline.correct
    if correct is not None:
        correct = base64.b64encode(np.packbits(correct).tobytes()).decode()
    return {"scores": baseline.scores, "correct": correct, "rows": baseline.rows}


def _read(path, examples: int) -> dict[str, Baseline]:
    """Reads what `_to_json` wrote; {} where it is not there or damaged."""
    try:
        return {name: _of_json(saved, examples) for name, saved in read_json(path).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError):
        return {}


def _of_json(saved, examples: int) -> Baseline:
    scores, correct = {k: float(v) for k, v in saved["scores"].items()}, saved["correct"]
    if correct is not None:
        packed = np.frombuffer(base64.b64decode(correct, validate=True), np.uint8)
        if len(packed) != -(-examples // 8):
            raise ValueError("of other examples")
        correct = np.unpackbits(packed, count=examples).astype(bool)
    rows = saved["rows"]
    return Baseline(scores, correct, None if rows is None else int(rows))


def _digest(known, splits, parts) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for part in parts:
        for name in sorted(part):
            array = np.ascontiguousarray(part[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.view(np.uint8).data if array.size else b"")
    for name, part in splits.examples.items():
        for column, values in part.columns.items():
            if isinstance(values, pa.Array):
                digest.update(pa.record_batch([values], [column]).serialize())
            elif values.dtype == object:
                digest.update(repr((name, column, values.tolist())).encode())
    return digest.hexdigest()
