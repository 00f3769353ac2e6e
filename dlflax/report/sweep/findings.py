"""Findings of a sweep: its gain over the defaults, and its limits."""

import math

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from dlflax.report.sweep import pareto
from dlflax.report.sweep.trials import digits, outcome, param_names, rank_trials

FEW_EXAMPLES = 500  # of the validation split: with fewer, 95 % has a standard error over 1 %


def findings(
    trials: list[FrozenTrial], direction: str, objective: str, validation: int | None = None
) -> list[str]:
    """Returns sentences, the most important first; [] if no trial has a finite value. validation:
    number of validation examples, 0 where folds take their place."""
    rank = rank_trials(trials, direction)
    if not rank or outcome(rank[0]) == "diverged":
        return []
    sentences = [_gain(trials, rank[0], direction, objective, validation == 0)]
    sentences += pareto.findings(trials, direction, objective)
    sentences += _ends_of_ranges(rank)
    if validation and validation < FEW_EXAMPLES:
        sentences.append(
            f"The validation split has {validation:,} examples only: small differences between "
            "trials are chance. A larger --val-split or --num-seeds 3 makes the ranking more "
            "reliable."
        )
    complete, names = sum(outcome(trial) == "complete" for trial in rank), param_names(rank)
    if len(names) > 1 and complete < 10 * len(names):
        sentences.append(
            f"{complete} complete trials for {len(names)} hyperparameters: their importances are "
            f"uncertain with fewer than {10 * len(names)}."
        )
    return sentences


def _gain(trials, best, direction, objective, has_folds):
    start = next((t for t in trials if t.user_attrs.get("defaults")), None)
    if start is None:
        return "No trial has the experiment's defaults: the gain over them is unknown."
    if start.number == best.number:
        return f"No trial is better than the defaults, trial {start.number}."
    text = f"The best, trial {best.number}, has {objective} {digits(best.value)}; the defaults, "
    if outcome(start) not in ("complete", "pruned"):
        return text + f"trial {start.number}, {outcome(start)}."
    if outcome(start) == "pruned":
        epochs = max(start.intermediate_values, default=0)
        return text + (
            f"trial {start.number}, were pruned after epoch {epochs} with {digits(start.value)}: "
            "the gain is unknown."
        )
    gain = (start.value - best.value) * (1 if direction == "minimize" else -1)
    share = f"{gain / abs(start.value):.1%}" if start.value else digits(gain)
    text += f"trial {start.number}, have {digits(start.value)}: {share} better."
    seeds = [len(trial.user_attrs["values"]) for trial in (best, start) if "values" in
             trial.user_attrs]  # fmt: skip
    if has_folds:
        return f"{text} All examples are held out once: part of the gain may be chance."
    if len(seeds) < 2:
        return (
            f"{text} All trials have one seed: --num-seeds 3 shows how much of the gain is chance."
        )
    variances = [trial.user_attrs["std"] ** 2 for trial in trials if "std" in trial.user_attrs]
    error = math.sqrt(np.mean(variances) * sum(1 / count for count in seeds))
    text += " Its standard error over the seeds is "
    text += digits(error) if error >= 100 else f"{error:.2g}"
    return text + (": the gain may be chance." if gain < 2 * error else ".")


def _ends_of_ranges(rank):
    if len(rank) < 8:  # the best of a few may be anywhere
        return []
    best, sentences = rank[0], []
    for name, distribution in best.distributions.items():
        if not isinstance(distribution, FloatDistribution) or distribution.low == distribution.high:
            continue
        low, high, value = distribution.low, distribution.high, best.params[name]
        if distribution.log:
            low, high, value = map(math.log, (low, high, value))
        fraction = (value - low) / (high - low)
        ends = {"low": (fraction < 0.02 and distribution.low > 0, distribution.low),
                "high": (fraction > 0.98, distribution.high)}  # fmt: skip
        sentences += [
            f"The best {name} is at the {end} end of its range, {limit:g}: values beyond it may be "
            f"better (--space.{name.replace('_', '-')} under another --study)."
            for end, (is_near, limit) in ends.items()
            if is_near
        ]
    return sentences
