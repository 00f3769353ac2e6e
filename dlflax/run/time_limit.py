"""--time-limit: the number of epochs that fit, planned once from measured seconds.

The plan is saved as plan.json in the run folder, so a resumed run trains the same epochs.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlflax import train
from dlflax.config.config import Config
from dlflax.errors import InputError
from dlflax.files import read_json, write_json
from dlflax.run.prepare import Setup

PLAN = "plan.json"
END, END_SHARE = 4.0, 0.1  # seconds, and share of the limit, for tests, tables and figures
MEASURED, EPOCHS = 0.05, 5  # share of the limit, and epochs at most, to measure an epoch in


@dataclasses.dataclass(frozen=True)
class Clock:
    """Seconds of a limit, 0 for none, since `started` of time.perf_counter."""

    limit: float
    started: float

    def remaining(self) -> float:
        """Returns the seconds for training, without those of the end, which takes longer on a busy
        machine."""
        spent = time.perf_counter() - self.started
        busy = min(2.0, max(1.0, spent / max(time.process_time(), 1e-9)))
        return max(0.0, self.limit - busy * (END + END_SHARE * self.limit) - spent)


def plan_epochs(
    config: Config, folder: Path, clock: Clock, measure: Callable[[], float],
    log: Callable[[str], None], more: dict[str, Any] | None = None,
) -> Config:  # fmt: skip
    """Returns the Config with the epochs that fit into the time limit, which are saved in the run
    folder. measure: trains a little, and returns the seconds of one epoch; more: other entries of
    the plan."""
    if not config.time_limit:
        return config
    plan = read_plan(folder)
    if not plan:
        seconds = measure()
        epochs = max(1, min(config.epochs, int(clock.remaining() / max(seconds, 1e-9))))
        plan = {"epochs": epochs, "seconds_per_epoch": seconds, **(more or {})}
        write_json(folder / PLAN, plan)
    if plan["epochs"] < config.epochs:
        log(f"time limit of {config.time_limit:g} s: {plan['epochs']:,} of {config.epochs:,} "
            "epochs")  # fmt: skip
    return dataclasses.replace(config, epochs=plan["epochs"])


def read_plan(folder: Path) -> dict[str, Any]:
    """Returns plan.json of a run folder; {} without one. Raises InputError for a damaged file."""
    path = folder / PLAN
    if not path.exists():
        return {}
    try:
        plan = read_json(path)
        if isinstance(plan["epochs"], int) and plan["epochs"] > 0:
            return plan
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged: it is not the plan that a run writes; start a new run.")


def measure_epoch(config: Config, setup: Setup) -> float:
    """Returns the seconds of the fastest epoch in a small share of the limit, validation included.
    The first epochs also transfer data."""
    start, limit = setup.start, MEASURED * config.time_limit
    first, steps = [], 0

    def count(epoch, done, sums):
        nonlocal steps
        first.append(time.perf_counter())
        steps = done

    def should_stop():
        return bool(first) and time.perf_counter() - first[0] > limit

    fit = train.fit(
        start.recipe, config.hparams, start.splits.train, start.splits.val, epochs=EPOCHS,
        seed=config.seed, pretrained=start.pretrained, should_stop=should_stop, on_steps=count,
    )  # fmt: skip
    if fit.history:
        return min(row["seconds"] for row in fit.history)
    total = -(-len(start.splits.train["inputs"]) // start.recipe.batch_size)
    return (first[-1] - first[0]) / max(steps - 1, 1) * total
