"""The end of a sweep: the best model of three candidates, tested and saved; results, report.

The candidates are the best trial as it was trained, its configuration retrained with another seed,
and an ensemble of the best trials. The best validation score decides.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dlflax import run
from dlflax.errors import InputError, RunError
from dlflax.files import write_json
from dlflax.report import tables
from dlflax.report import trials as ranking
from dlflax.report.pareto import front
from dlflax.report.trials import digits, print_findings, print_trials
from dlflax.run.announce import command
from dlflax.run.resume import changes_past_rates
from dlflax.train.history import History, best_epoch, plateau_factor
from dlflax.tune import ensemble, report
from dlflax.tune.bind import Bound
from dlflax.tune.config import Sweep
from dlflax.tune.members import Member, Members
from dlflax.tune.settings import set_aside
from dlflax.tune.study import JOURNAL, Study, without_password
from dlflax.tune.trained import in_folder, save_and_test

WORDS = {
    "trained": "the best trial as it was trained", "retrained": "the best trial retrained",
    "ensemble": "the ensemble",
}  # fmt: skip


def finish(
    sweep: Sweep, bound: Bound, experiment, study: Study, members: Members, saved, traces: int, log
) -> dict[str, Any]:
    """Tests the candidates, saves the best one in `best/`, and writes results.json, figures and
    report, which it prints. Returns the results. Raises RunError where no trial ended well."""
    folder, direction, trials = sweep.run_dir, study.direction, study.finished()
    ranking.write_trials_csv(folder / "trials.csv", trials, direction, sweep.objective)
    best = next(iter(ranking.rank_trials(trials, direction)), None)
    if best is None or not math.isfinite(best.value):
        raise RunError(
            f"all {len(trials)} trials diverged or failed: search over smaller learning rates, for "
            "example --space.learning-rate 1e-5 1e-3 log, under another --study."
        )
    results = {
        **report.facts(saved, trials, direction),
        **_facts(sweep, bound, trials, best, traces, direction),
    }
    chosen = list(members.of(trials))
    candidates = Candidates(sweep, bound, experiment, trials, best, chosen, log)
    for build in (candidates.restore, candidates.retrain, candidates.ensemble):
        build()
        results |= candidates.results()  # a kill costs no more than one of them
        write_json(folder / "results.json", results)
    candidates.save_best()
    report.write(folder, results, trials, direction, log)
    _print(sweep, trials, direction, results, log)
    return results


def _facts(sweep, bound, trials, best, traces, direction) -> dict[str, Any]:
    """Returns what results.json says of the sweep and its best trial."""
    folder = sweep.run_dir
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    address = sweep.storage and without_password(sweep.storage)
    return {
        "structures": len(bound.recipes),
        "traces": traces,  # by this process and its workers
        "seconds": seconds,  # of training the trials
        "trials_per_minute": 60 * len(trials) / max(seconds, 1e-9),
        "best": {
            "number": best.number,
            "value": best.value,
            "std": best.user_attrs.get("std"),
            "best_epoch": ranking.best_epoch(best, direction),
            "hparams": best.params,
            "run_dir": str(folder / "best"),
        },
        "front": [trial.number for trial in front(trials, direction)],
        "commands": {
            "predict": command("experiments.predict", str(folder / "best"), "INPUT..."),
            "tensorboard": f"tensorboard --logdir {folder}",
            "dashboard": f"optuna-dashboard {address or folder / JOURNAL}",
        },
    }


class Candidates:
    """The models that may be the best one, each a run folder of its own, and their results."""

    def __init__(
        self, sweep: Sweep, bound: Bound, experiment, trials: list[FrozenTrial], best: FrozenTrial,
        members: list[Member], log: Callable[[str], None],
    ):  # fmt: skip
        self._sweep, self._bound, self._experiment = sweep, bound, experiment
        self._trials, self._best, self._members, self._log = trials, best, members, log
        recipe, hparams = bound.space.apply(best.params, sweep.recipe, sweep.hparams)
        common = {f.name: getattr(sweep, f.name) for f in dataclasses.fields(run.Config)}
        self._config = run.Config(**{**common, "recipe": recipe, "hparams": hparams})
        self._metric = sweep.objective.removeprefix("val_")
        self._sign = 1 if recipe.task.metric(self._metric).direction == "min" else -1
        self._results: dict[str, dict[str, Any]] = {}
        self._ensemble: dict[str, Any] | None = None

    def restore(self) -> None:
        """Tests the best trial with the weights that it was trained to."""
        mine = [member for member in self._members if member.trial == self._best.number]
        if not mine:
            return
        name = self._sweep.objective
        member = min(mine, key=lambda seed: min(self._sign * row[name] for row in seed.history))
        history = member.history[: best_epoch(member.history, self._config.recipe.task) + 1]
        history = _with_rates(self._config, history)
        self._log(f"testing the best, trial {self._best.number}, as it was trained")
        self._build("trained", lambda folder: save_and_test(
            self._experiment, self._config, folder, member.variables, history, self._bound.dataset,
            self._log,
        ))  # fmt: skip

    def retrain(self) -> None:
        """Trains the best trial's configuration again, and tests it."""
        sweep, config = self._sweep, self._config
        if sweep.retrain_on_all:
            # without a validation score the last epoch counts
            direction = "minimize" if self._sign == 1 else "maximize"
            epochs = ranking.best_epoch(self._best, direction)
            steps = -(-len(self._bound.train["inputs"]) // config.recipe.batch_size)
            if changes_past_rates(config, epochs, steps):
                epochs = config.epochs
            config = dataclasses.replace(
                config, validation=0.0, patience=0, reduce_on_plateau=0, epochs=epochs
            )
        self._log(f"retraining the best, trial {self._best.number}, with a seed that no trial had "
                  f"({sweep.seed})")  # fmt: skip
        self._build("retrained", lambda folder: run.run(
            self._experiment, in_folder(config, folder), self._log, self._bound.dataset, brief=True
        ))  # fmt: skip

    def ensemble(self) -> None:
        """Tests an ensemble of the best trials, if one is better than the best alone."""
        built = None
        if self._sweep.ensemble:
            built = self._build("ensemble", lambda folder: ensemble.build(
                self._sweep, self._bound, self._experiment, self._config, self._members,
                self._trials, self._log,
            ))  # fmt: skip
        if built is None:  # one of fewer trials may be there
            set_aside(self._sweep.run_dir / "ensemble")

    def _build(self, name, build):
        """Builds a candidate; one that fails is a warning."""
        try:
            built = build(self._sweep.run_dir / name)
        except (InputError, RunError, OSError) as error:
            self._log(f"warning: {WORDS[name]} is no candidate: {error}")
            return None
        if name == "ensemble" and built:
            self._ensemble, built = built
        if built:
            self._results[name] = built
        return built

    def winner(self) -> str | None:
        """Returns the name of the best candidate so far. One that was trained on all data has no
        validation score, and is the best by request."""
        if self._sweep.retrain_on_all and "retrained" in self._results:
            return "retrained"
        scores = {name: self._sign * score for name in self._results
                  if (score := self._score(name)) is not None}  # fmt: skip
        return min(scores, key=scores.get, default=None)

    def _validation(self, name: str) -> dict[str, Any] | None:
        """Returns the scores of a candidate on the validation data; of the ensemble those before
        its temperature, which is fitted on these data."""
        if name == "ensemble" and self._ensemble:
            return self._ensemble["uncalibrated"]
        return self._results.get(name, {}).get("val")

    def _score(self, name: str) -> float | None:
        return (self._validation(name) or {}).get(self._metric)

    def results(self) -> dict[str, Any]:
        """Returns what results.json says of the candidates so far."""
        name = self.winner()
        if name is None:
            return {}
        best, trained = self._results[name], self._results.get("trained", {})
        return {
            "model": name,
            "candidates": {
                name: {"val": self._validation(name), "test": results["test"],
                       "run_dir": str(self._sweep.run_dir / name)}
                for name, results in self._results.items()
            },
            "val": best.get("val"),
            "test": best["test"],
            "baselines": best.get("baselines") or trained.get("baselines"),
            "verdict": [*self._selection(), *best.get("findings", [])],
            "ensemble": self._ensemble,
        }  # fmt: skip

    def _selection(self) -> list[str]:
        """Returns a sentence about the part of the best trial's gain that is selection."""
        trained, retrained = self._score("trained"), self._score("retrained")
        if trained is None or retrained is None:
            return []
        text = (f"On validation data the best trial has {self._metric} {digits(trained)} as it was "
                f"trained, and {digits(retrained)} retrained with another seed")  # fmt: skip
        defaults = [t for t in self._trials if t.user_attrs.get("defaults")
                    and t.state == TrialState.COMPLETE]  # fmt: skip
        start = next(iter(defaults), self._best)
        gain, lost = (self._sign * (value - trained) for value in (start.value, retrained))
        if lost <= 0 or not 0 < gain < math.inf:
            return [f"{text}."]
        return [f"{text}: about {min(1, lost / gain):.0%} of its gain over the defaults is "
                "selection, the luck of one seed on these examples."]  # fmt: skip

    def save_best(self) -> None:
        """Puts the best candidate into `best/`. Raises RunError where there is none."""
        name = self.winner()
        if name is None:
            raise RunError(
                "no candidate for the best model could be tested: see the warnings above; the "
                "trials are safe, and the same command tries again."
            )
        folder = self._sweep.run_dir
        self._log(f"best model: {WORDS[name]}")
        new = folder / ".best"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(folder / name, new, copy_function=_link)
        if (folder / "best").exists():
            shutil.rmtree(folder / "best")
        new.rename(folder / "best")


def _with_rates(config: run.Config, history: History) -> History:
    """Returns the rows of a member with the learning rate of an epoch's last step, as a run has."""
    numbers = config.hparams.replace(total_steps=float(config.epochs * history[0]["step"]))
    rows = []
    for i, row in enumerate(history):
        factor = plateau_factor(history[:i], config.recipe.task, config.reduce_on_plateau)
        current = numbers.replace(learning_rate=numbers.learning_rate * factor)
        rate = float(config.recipe.schedule(np.float32(row["step"] - 1), current))
        rows.append({**row, "learning_rate": rate})
    return rows


def _link(source: str, target: str) -> None:
    """Links a file, which takes no room, or copies it where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _print(sweep, trials, direction, results, log) -> None:
    """Prints the best trials, the test scores of the candidates, and what is where."""
    print_trials(trials, direction, sweep.objective)
    beside = {
        WORDS[name]: each["test"]
        for name, each in results["candidates"].items() if name != results["model"]
    }  # fmt: skip
    shown = {**results, "baselines": {**beside, **(results.get("baselines") or {})}}
    tables.print_results(shown, sweep.verbose)
    for sentence in results.get("verdict", ()):
        log(sentence)
    print_findings(results["findings"])
    log(f"report: {sweep.run_dir / 'report.html'}")
    for name, line in results["commands"].items():
        log(f"{name}: {line}")
