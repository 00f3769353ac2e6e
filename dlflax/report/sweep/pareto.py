"""Pareto front of a sweep with two objectives."""

from optuna.trial import FrozenTrial

from dlflax.report.sweep.trials import COSTS, cost_text, digits, outcome


def cost_name(trials: list[FrozenTrial]) -> str | None:
    """Returns the second objective, or None if there is one only."""
    return next((n for n in COSTS if any(n in t.user_attrs for t in trials)), None)


def front(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Returns the Pareto front of the complete trials, the cheapest first; of equal trials one."""
    if (name := cost_name(trials)) is None:
        return []
    sign = 1 if direction == "minimize" else -1
    complete = [trial for trial in trials if outcome(trial) == "complete"]
    cheapest, members = float("inf"), []
    for trial in sorted(complete, key=lambda t: (sign * t.value, t.user_attrs[name], t.number)):
        if trial.user_attrs[name] < cheapest:
            cheapest = trial.user_attrs[name]
            members.append(trial)
    return members[::-1]


def findings(trials: list[FrozenTrial], direction: str, objective: str) -> list[str]:
    """Returns a sentence about the front; [] with one objective."""
    if not (members := front(trials, direction)):
        return []
    name = cost_name(trials)
    shown = "; ".join(
        f"trial {t.number} ({cost_text(t.user_attrs[name])}, {digits(t.value)})" for t in members
    )
    return [f"No other trial is better in both {name} and {objective} than these: {shown}."]
