"""Two objectives: the trials that no other one beats in both."""

from optuna.trial import FrozenTrial

from dlflax.report.trials import COSTS, cost_text, digits, outcome


def cost_name(trials: list[FrozenTrial]) -> str | None:
    """What the second objective is; None where there is only one."""
    return next((n for n in COSTS if any(n in t.user_attrs for t in trials)), None)


def front(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """The whole trials of which no other one is as good and cheaper, or better and as cheap (the
    Pareto front): the cheapest first."""
    name = cost_name(trials)
    if name is None:
        return []
    sign = 1 if direction == "minimize" else -1
    whole = [t for t in trials if outcome(t) == "complete"]
    cheapest, found = float("inf"), []
    for trial in sorted(whole, key=lambda t: (sign * t.value, t.user_attrs[name], t.number)):
        if trial.user_attrs[name] < cheapest:
            cheapest = trial.user_attrs[name]
            found.append(trial)
    return found[::-1]


def sentence(trials: list[FrozenTrial], direction: str, objective: str) -> list[str]:
    """What the front is, in words; [] with one objective."""
    found, name = front(trials, direction), cost_name(trials)
    if not found:
        return []
    each = "; ".join(
        f"trial {t.number} ({cost_text(t.user_attrs[name])}, {digits(t.value)})" for t in found
    )
    return [f"No other trial is better in both {name} and {objective} than these: {each}."]
