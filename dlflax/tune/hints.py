"""Hints at the beginning of a search: a user's guess, and the trials of another study."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlflax.errors import InputError
from dlflax.tune.space import Space, parameter
from dlflax.tune.study import load_trials


def guess(words: Sequence[str], space: Space, recipe, hparams) -> dict[str, Any]:
    """Returns the parameters of NAME=VALUE words (--prior). Raises InputError for one that is not
    in the space."""
    params = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in space.distributions:
            raise InputError(
                f"--prior {word}: give NAME=VALUE of what is searched, which is "
                f"{', '.join(space.distributions)}; such as --prior learning_rate=1e-3."
            )
        if name in params:
            raise InputError(f"--prior {word}: {name} is there twice.")
        params[name] = parameter(name, text, recipe, hparams, space, f"--prior {word}")
        if not is_within(space.distributions[name], params[name]):
            raise InputError(f"--prior {word}: it is outside --space.{name.replace('_', '-')}.")
    return params


def is_within(distribution, value) -> bool:
    """True if a parameter may have the value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def first_trials(space: Space) -> list[dict[str, Any]]:
    """Returns the parameters of the first trials: the defaults, and the guess. The guess has the
    defaults, or else the sampler's suggestions, of all other names."""
    defaults = space.defaults or {}
    return [params for params in (defaults, space.guess and {**defaults, **space.guess}) if params]


def known_trials(
    study: str, space: Space, objective: str, log: Callable[[str], None] = print
) -> list[tuple[dict[str, Any], float]]:
    """Returns (parameters, value) of the trials of another study in this space, lower is better.

    A parameter that the other study did not search has the number of its trials. study: a folder,
    or a name in runs/sweeps. Raises InputError if fewer than two trials can be used.
    """
    folder = Path(study) if Path(study).exists() else Path("runs") / "sweeps" / study
    if not folder.exists():
        raise InputError(
            f"--warm-start {study}: there is neither {study} nor {folder}: give the folder of a "
            "sweep, or its name."
        )
    saved, trials, direction = load_trials(folder)
    its_objective = saved["config"]["objective"]
    if its_objective != objective:
        raise InputError(
            f"--warm-start {study}: its objective is {its_objective}, not {objective}: values of "
            f"different scores do not compare; use --objective {its_objective}."
        )
    fixed, sign = saved["config"].get("hparams", {}), 1 if direction == "minimize" else -1
    pairs = []
    for trial in trials:
        params = {name: trial.params.get(name, fixed.get(name)) for name in space.distributions}
        fits = all(is_within(space.distributions[name], value) for name, value in params.items())
        if trial.value is not None and fits:
            pairs.append((params, sign * trial.value))
    if sum(math.isfinite(value) for _, value in pairs) < 2:
        raise InputError(
            f"--warm-start {study}: fewer than two of its {len(trials)} trials are finished and "
            f"in this space ({', '.join(space.distributions)}): remove the flag."
        )
    log(f"warm start from {len(pairs)} of the {len(trials)} trials of {folder}, those in this "
        "space")  # fmt: skip
    return pairs
