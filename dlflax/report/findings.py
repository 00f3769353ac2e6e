"""A sweep in words: its gain over the defaults, and where it should not be trusted."""

import math

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from dlflax.report import pareto
from dlflax.report.trials import digits, names_of, outcome, ranked

FEW_EXAMPLES = 500  # of validation: below, a score of 95 % is uncertain by 1 % and more


def findings(
    trials: list[FrozenTrial], direction: str, objective: str, validation: int | None = None
) -> list[str]:
    """Sentences, the most important first; [] without a trial that ended well. validation: how many
    examples it has, if that is known."""
    rank = ranked(trials, direction)
    if not rank or outcome(rank[0]) == "diverged":
        return []
    found = [_gain(trials, rank[0], direction, objective)]
    found += pareto.sentence(trials, direction, objective)
    found += _ends_of_ranges(rank)
    if validation is not None and validation < FEW_EXAMPLES:
        found.append(
            f"Validation has {validation:,} examples only: small differences between trials are "
            "chance. A larger --validation share, or --seeds 3, makes the ranking firmer."
        )
    whole, names = sum(outcome(trial) == "complete" for trial in rank), names_of(rank)
    if len(names) > 1 and whole < 10 * len(names):
        found.append(
            f"{whole} whole trials for {len(names)} hyperparameters: take their importances for a "
            f"hint only; {10 * len(names)} or more say more."
        )
    return found


def _gain(trials, best, direction, objective):
    start = next((t for t in trials if t.user_attrs.get("defaults")), None)
    if start is None:
        return "No trial has the experiment's defaults, so how much was gained is not known."
    if start.number == best.number:
        return f"No trial is better than the defaults, trial {start.number}."
    text = f"The best, trial {best.number}, has {objective} {digits(best.value)}; the defaults, "
    if outcome(start) not in ("complete", "pruned"):
        return text + f"trial {start.number}, {outcome(start)}."
    if outcome(start) == "pruned":
        epochs = max(start.intermediate_values, default=0)
        return text + (
            f"trial {start.number}, were stopped after epoch {epochs} with {digits(start.value)}: "
            "how much was gained is not known."
        )
    gain = (start.value - best.value) * (1 if direction == "minimize" else -1)
    share = f"{gain / abs(start.value):.1%}" if start.value else digits(gain)
    text += f"trial {start.number}, have {digits(start.value)}: {share} better."
    seeds = [len(trial.user_attrs["values"]) for trial in (best, start) if "values" in
             trial.user_attrs]  # fmt: skip
    if len(seeds) < 2:
        return text + (
            " Every trial ran under one seed, so how much of it is chance is not known: --seeds 3 "
            "tells."
        )
    variances = [trial.user_attrs["std"] ** 2 for trial in trials if "std" in trial.user_attrs]
    error = math.sqrt(np.mean(variances) * sum(1 / count for count in seeds))
    text += " Between seeds, such a difference has a standard error of "
    text += digits(error) if error >= 100 else f"{error:.2g}"
    return text + (": this may be chance." if gain < 2 * error else ".")


def _ends_of_ranges(rank):
    if len(rank) < 8:  # the best of a few may lie anywhere
        return []
    best, found = rank[0], []
    for name, distribution in best.distributions.items():
        if not isinstance(distribution, FloatDistribution) or distribution.low == distribution.high:
            continue
        low, high, value = distribution.low, distribution.high, best.params[name]
        if distribution.log:
            low, high, value = map(math.log, (low, high, value))
        place = (value - low) / (high - low)
        ends = {"low": (place < 0.02 and distribution.low > 0, distribution.low),
                "high": (place > 0.98, distribution.high)}  # fmt: skip
        found += [
            f"The best {name} lies at the {end} end of its range, {limit:g}: values beyond it may "
            f"be better (--space.{name.replace('_', '-')} under another --study)."
            for end, (there, limit) in ends.items()
            if there
        ]
    return found
