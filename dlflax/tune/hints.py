"""Hints that a search begins with: a user's guess, and the trials of another study."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlflax.errors import InputError
from dlflax.tune.space import Space, parameter
from dlflax.tune.study import trials_of

Known = list[tuple[dict[str, Any], float]]


def guess(words: Sequence[str], space: Space, recipe, hparams) -> dict[str, Any]:
    """The parameters that NAME=VALUE words give (--prior). InputError for one that is not in the
    space."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in space.distributions:
            raise InputError(
                f"--prior {word}: give NAME=VALUE of what is searched, which is "
                f"{', '.join(space.distributions)}; such as --prior learning_rate=1e-3."
            )
        if name in found:
            raise InputError(f"--prior {word}: {name} is there twice.")
        found[name] = value = parameter(name, text, recipe, hparams, space, f"--prior {word}")
        if not within(space.distributions[name], value):
            raise InputError(f"--prior {word}: it is outside --space.{name.replace('_', '-')}.")
    return found


def within(distribution, value) -> bool:
    """True if a parameter may have the value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def enqueued(space: Space) -> dict[str, Any] | None:
    """Returns the parameters of the trial that has the guess: the others are those of the defaults,
    or the sampler's where there are none. None without a guess."""
    return {**(space.defaults or {}), **space.guess} if space.guess else None


def known_trials(
    study: str, space: Space, objective: str, log: Callable[[str], None] = print
) -> Known:
    """Returns (parameters, value) of the trials of another study that lie in this space. The lowest
    value is the best. A parameter which that study did not search has the number of its trials.
    study: a folder, or a name in runs/sweeps. Raises InputError where there is none to use."""
    folder = Path(study) if Path(study).exists() else Path("runs") / "sweeps" / study
    if not folder.exists():
        raise InputError(
            f"--warm-start {study}: there is neither {study} nor {folder}: give the folder of a "
            "sweep, or its name."
        )
    saved, trials, direction = trials_of(folder)
    theirs = saved["config"]["objective"]
    if theirs != objective:
        raise InputError(
            f"--warm-start {study}: its objective is {theirs}, not {objective}: values of "
            f"different scores do not compare; use --objective {theirs}."
        )
    same: Mapping[str, Any] = saved["config"].get("hparams", {})
    sign = 1 if direction == "minimize" else -1
    found = []
    for trial in trials:
        params = {name: trial.params.get(name, same.get(name)) for name in space.distributions}
        fits = all(within(space.distributions[name], value) for name, value in params.items())
        if trial.value is not None and fits:
            found.append((params, sign * trial.value))
    if sum(math.isfinite(value) for _, value in found) < 2:
        raise InputError(
            f"--warm-start {study}: fewer than two of its {len(trials)} trials are finished and "
            f"in this space ({', '.join(space.distributions)}): leave it out."
        )
    log(f"knows {len(found)} of the {len(trials)} trials of {folder}, those in this space")
    return found
