"""The end of a sweep: the best model of three candidates, tested and saved; results, report.

The candidates are the best trial as it was trained, its configuration retrained with another seed,
and an ensemble of the best trials. The best validation score decides. With folds the ensemble is
the only one: the blend of a run, with the bags of the best trials in place of its own.
"""

import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dlflax import parallel, run, train
from dlflax.config.resume import changes_past_rates, differences
from dlflax.config.run_folder import begin, load_config, load_results
from dlflax.errors import InputError, RunError
from dlflax.files import write_json
from dlflax.report import tables
from dlflax.report.sweep import trials as ranking
from dlflax.report.sweep.pareto import front
from dlflax.report.sweep.trials import digits, print_findings, print_trials
from dlflax.run import average, blend
from dlflax.run.announce import command
from dlflax.run.prepare import prepare
from dlflax.run.time_limit import PLAN, read_plan
from dlflax.train import checkpoint_files
from dlflax.train.bag import held_out_folds, held_out_outputs
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.history import History, best_epoch, plateau_factor
from dlflax.train.recipe import init_on_devices
from dlflax.tune import ensemble_selection
from dlflax.tune.begin import set_aside
from dlflax.tune.bind import Bound
from dlflax.tune.pool import sweep_report
from dlflax.tune.pool.trial_models import Members
from dlflax.tune.study import JOURNAL, Study, without_password

WORDS = {
    "trained": "the best trial as it was trained", "retrained": "the best trial retrained",
    "ensemble": "the ensemble",
}  # fmt: skip
TRIAL = "trial"  # and its number: the name of its bag
NO_TRIAL = ("The ensemble has no trial but the defaults, trial 0: the others gain no more than "
            "chance on held-out folds, two standard errors.")  # fmt: skip


def finish(
    bound: Bound, study: Study, traces: int, log, others: list[average.Members] | None = None
) -> dict[str, Any]:
    """Tests the candidates, saves the best one in `best/`, and writes results.json, figures and
    report, which it prints. Returns the results. others: as in `blend.Trained`. Raises RunError
    where all trials diverged or failed."""
    sweep, folder, direction = bound.sweep, bound.sweep.run_dir, study.direction
    trials, objective = study.finished_trials(), study.saved["config"]["objective"]
    ranking.write_trials_csv(folder / "trials.csv", trials, direction, objective)
    best = next(iter(ranking.rank_trials(trials, direction)), None)
    if best is None or not math.isfinite(best.value):
        raise RunError(
            f"all {len(trials)} trials diverged or failed: search over smaller learning rates, for "
            "example --space.learning-rate 1e-5 1e-3 log, under another --study."
        )
    candidates = Candidates(bound, trials, best, log, others)
    candidates.test()
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    address = sweep.storage and without_password(sweep.storage)
    results = {
        **sweep_report.facts(study.saved, trials, direction),
        "structures": len(bound.recipes),
        "traces": traces,  # by this process and its workers
        "seconds": seconds,  # of training the trials
        "trials_per_minute": 60 * len(trials) / max(seconds, 1e-9),
        "best": {
            "number": best.number,
            "value": best.value,
            "std": best.user_attrs.get("std"),
            "best_epoch": ranking.best_epoch_number(best, direction),
            "hparams": best.params,
            "run_dir": str(folder / "best"),
        },
        "front": [trial.number for trial in front(trials, direction)],
        "commands": {
            "predict": command(
                "experiments.predict", str(folder / "best"), "INPUT...", *bound.experiment.options
            ),
            "tensorboard": f"tensorboard --logdir {folder}",
            "dashboard": f"optuna-dashboard {address or folder / JOURNAL}",
        },
        **candidates.save_best(),
    }
    write_json(folder / "results.json", results)
    sweep_report.write(folder, results, trials, direction, log)
    print_trials(trials, direction, objective)
    others = {
        WORDS[name]: candidate["test"]
        for name, candidate in results["candidates"].items() if name != results["model"]
    }  # fmt: skip
    shown = {**results, "baselines": {**others, **(results["baselines"] or {})}}
    tables.print_results(shown, sweep.verbose)
    for sentence in results["verdict"]:
        log(sentence)
    print_findings(results["findings"])
    log(f"report: {folder / 'report.html'}")
    for name, line in results["commands"].items():
        log(f"{name}: {line}")
    return results


class Candidates:
    """The models that may be the best one, each a run folder of its own, and their results."""

    def __init__(
        self, bound: Bound, trials: list[FrozenTrial], best: FrozenTrial,
        log: Callable[[str], None], others: list[average.Members] | None,
    ):  # fmt: skip
        self._others = others
        self._bound, self._trials, self._best, self._log = bound, trials, best, log
        sweep, sign = bound.sweep, bound.job.sign
        self._folder, self._metric, self._sign = sweep.run_dir, bound.job.metric, sign
        self._members = list(Members(sweep.run_dir, sign).read(trials))
        recipe, hparams = bound.job.space.apply(best.params, sweep.recipe, sweep.hparams)
        common = {f.name: getattr(sweep, f.name) for f in dataclasses.fields(run.Config)}
        common["time_limit"] = 0.0
        self._config = run.Config(**{**common, "recipe": recipe, "hparams": hparams})
        self._results: dict[str, dict[str, Any]] = {}
        self._ensemble: dict[str, Any] | None = None

    def test(self) -> None:
        """Tests each candidate; a failure is a warning."""
        builds = {"trained": self._restore, "retrained": self._retrain, "ensemble": self._combine}
        if self._bound.job.has_folds:
            builds = {"ensemble": self._blend}
        elif self._bound.sweep.time_limit:
            self._log("time limit: the best trial is not retrained")
            del builds["retrained"]
        for name, build in builds.items():
            try:
                results = build(self._folder / name)
            except (InputError, RunError, OSError) as error:
                self._log(f"warning: {WORDS[name]} is no candidate: {error}")
                results = None
            if results:
                self._results[name] = results
            elif name == "ensemble":  # one of fewer trials may be there
                set_aside(self._folder / name)

    def _restore(self, folder):
        """Tests the best trial with its trained weights."""
        seeds = [member for member in self._members if member.trial == self._best.number]
        if not seeds:
            return None
        name, config = f"val_{self._metric}", self._config
        member = min(seeds, key=lambda seed: min(self._sign * row[name] for row in seed.history))
        history = member.history[: best_epoch(member.history, config.recipe.task) + 1]
        self._log(f"testing the best, trial {self._best.number}, as it was trained")
        return self._save_and_test(config, folder, member.variables, _with_rates(config, history))

    def _retrain(self, folder):
        """Trains the best trial's configuration again, and tests it."""
        config = self._config
        if self._bound.sweep.refit_full:
            # without a validation score the last epoch counts
            epochs = ranking.best_epoch_number(self._best, self._bound.direction)
            examples = len(self._bound.arrays["train"]["inputs"])
            if changes_past_rates(config, epochs, -(-examples // config.recipe.batch_size)):
                epochs = config.epochs
            config = dataclasses.replace(
                config, val_split=0.0, patience=0, plateau_patience=0, epochs=epochs
            )
        self._log(f"retraining the best, trial {self._best.number}, with a seed that no trial had "
                  f"({config.seed})")  # fmt: skip
        return self._run(in_folder(config, folder))

    def _combine(self, folder):
        """Tests an ensemble of the best trials, if one is better than the best alone."""
        size, job = self._bound.sweep.ensemble_size, self._bound.job
        params = {trial.number: trial.params for trial in self._trials}
        structures = [
            job.space.apply(params[member.trial], job.recipe, job.hparams)
            for member in self._members
        ]
        built = size and ensemble_selection.build(
            size, self._config, self._members, structures, self._bound.arrays["val"], self._log
        )
        if not built:
            return None
        entry, config, variables, row = built
        results = self._save_and_test(config, folder, variables, [row])
        scores = {"val": results.get("val"), "test": results.get("test")}
        self._ensemble = {**entry, **scores, "run_dir": str(folder)}
        return results

    def _blend(self, folder):
        """Tests the ensemble of the best trials' bags, a linear model and trees."""
        sweep, bags = self._bound.sweep, self._bags()
        config = dataclasses.replace(self._config, recipe=sweep.recipe, hparams=sweep.hparams)
        done = load_results(config, folder, True, self._log) or {}
        tested = [row["name"] for row in done.get("members", []) if row["name"].startswith(TRIAL)]
        if not (bags or done):
            raise RunError("no models of the trials are in members/.")
        if bags and done and tested != [bag.name for bag in bags]:  # there are more trials
            set_aside(folder)
        if (plan := read_plan(sweep.run_dir)) and not folder.exists():
            folder.mkdir()
            write_json(folder / PLAN, plan)  # the trees that fit into the time
        return self._run(
            dataclasses.replace(config, run_dir=folder, resume=(folder / "config.json").exists()),
            trained=blend.Trained(bags, self._others),
        )

    def _bags(self) -> list[average.Members]:
        """Returns the bags of the best trials, and that of trial 0, which has the defaults."""
        job, size = self._bound.job, self._bound.sweep.ensemble_size
        folds = held_out_folds(self._bound.arrays["fold_of"])
        params = {trial.number: trial.params for trial in self._trials}
        trials = itertools.groupby(self._members, lambda member: member.trial)
        bags = []
        for i, (number, networks) in enumerate(trials):
            if i < max(1, size) or (size and number == 0):
                recipe, hparams = job.space.apply(params[number], job.recipe, job.hparams)
                variables, outputs = zip(*((m.variables, m.outputs) for m in networks), strict=True)
                bags.append(average.Members(
                    f"{TRIAL} {number}", recipe.model, list(variables),
                    held_out_outputs(folds, outputs), hparams=hparams, trial=number,
                ))  # fmt: skip
        return bags

    def _save_and_test(self, config, folder, variables, history) -> dict[str, Any]:
        """Saves variables of the last row of history as a finished run, as if a run had trained
        them, and tests it once."""
        config = dataclasses.replace(config, epochs=len(history), patience=0, plateau_patience=0)
        config = in_folder(config, folder)
        folder.mkdir(exist_ok=True)
        if not checkpoint_files.steps(folder / "checkpoints"):
            bound = self._bound
            _save(bound.experiment, config, variables, history, bound.dataset, self._log)
        return self._run(dataclasses.replace(config, resume=True))

    def _run(self, config, **more) -> dict[str, Any]:
        experiment, dataset = self._bound.experiment, self._bound.dataset
        return run.run(experiment, config, self._log, dataset, brief=True, **more)

    def _validation(self, name: str) -> dict[str, Any] | None:
        """Returns the validation scores of a candidate; of the ensemble those before its
        temperature, which is fitted on these data."""
        if name == "ensemble" and self._ensemble:
            return self._ensemble["uncalibrated"]
        return self._results.get(name, {}).get("val")

    def _score(self, name: str) -> float | None:
        return (self._validation(name) or {}).get(self._metric)

    def _selection(self) -> list[str]:
        """Returns a sentence about the part of the best trial's gain that is selection."""
        if self._bound.job.has_folds:
            rows = self._results.get("ensemble", {}).get("members", [])
            names = {row["name"] for row in rows if row["weight"] and row["name"].startswith(TRIAL)}
            return [NO_TRIAL] if names <= {f"{TRIAL} 0"} else []
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

    def save_best(self) -> dict[str, Any]:
        """Copies the best candidate to `best/`, and returns the part of results.json about it. One
        that was trained on all data has no validation score, and is the best by request. Raises
        RunError where there is no candidate."""
        scores = {name: self._sign * score for name in self._results
                  if (score := self._score(name)) is not None}  # fmt: skip
        name = min(scores, key=scores.get, default=None)
        if self._bound.sweep.refit_full and "retrained" in self._results:
            name = "retrained"
        if name is None:
            raise RunError(
                "no candidate for the best model could be tested: see the warnings above; the "
                "trials are safe, and the same command tries again."
            )
        self._log(f"best model: {WORDS[name]}")
        new, folder = self._folder / ".best", self._folder / "best"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self._folder / name, new, copy_function=_link)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
        best, trained = self._results[name], self._results.get("trained", {})
        return {
            "model": name,
            "candidates": {
                name: {"val": self._validation(name), "test": results["test"],
                       "run_dir": str(self._folder / name)}
                for name, results in self._results.items()
            },
            "val": best.get("val"),
            "test": best["test"],
            "baselines": best.get("baselines") or trained.get("baselines"),
            "verdict": [*self._selection(), *best.get("findings", [])],
            "ensemble": self._ensemble,
        }  # fmt: skip


def _with_rates(config: run.Config, history: History) -> History:
    """Returns the rows of a member with the learning rate of an epoch's last step, as a run has."""
    numbers = config.hparams.replace(total_steps=float(config.epochs * history[0]["step"]))
    rows = []
    for i, row in enumerate(history):
        factor = plateau_factor(history[:i], config.recipe.task, config.plateau_patience)
        current = numbers.replace(learning_rate=numbers.learning_rate * factor)
        rate = float(config.recipe.schedule(np.float32(row["step"] - 1), current))
        rows.append({**row, "learning_rate": rate})
    return rows


def _link(source: str, target: str) -> None:
    """Links a file, which takes no space, or copies it to a disk that has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _save(experiment, config, variables, history, dataset, log) -> None:
    """Writes the run folder, with a fresh optimizer."""
    _, job = prepare(config, dataset, lambda _: None)
    begin(experiment, config, job.dataset, job.examples, config.run_dir, lambda _: None)
    unknown = {"learning_rate": 0.0, "seconds": 0.0, "examples_per_second": 0.0}
    history = [{**unknown, **row} for row in history]
    checkpoints = Checkpoints(config.run_dir / "checkpoints", config.recipe.task, log)
    start, step = job.start, np.int32(history[-1]["step"])
    inputs, numbers = start.splits.train["inputs"][:1], train.as_float32(config.hparams)
    # placed like any run, on any number of devices
    with parallel.use_devices(parallel.num_devices(config.devices, config.recipe.batch_size)):
        fresh = init_on_devices(
            start.recipe, numbers, inputs, np.uint32(config.seed), start.pretrained
        )
        state = _with_variables(fresh, variables, step)
        checkpoints.save(train.Checkpoint(state, history))


@jax.jit
def _with_variables(state, variables, step):
    collections = dict(variables)
    params = collections.pop("params")
    ema = None if state.ema is None else params
    averages = None if state.ema_collections is None else collections
    state = train.State(step, params, collections, state.opt_state, ema, state.key, averages)
    return parallel.constrain_state(state)


def in_folder(config: run.Config, folder: Path) -> run.Config:
    """Returns the Config for its run folder, which it continues if it is the same run; another run
    there is moved aside."""
    here = dataclasses.replace(config, run_dir=folder, resume=(folder / "config.json").exists())
    if here.resume:
        old = load_config(folder)
        # the sweep has compared the data
        if differences(old, {**old, "config": run.to_json(here)}, here):
            set_aside(folder)
            here = dataclasses.replace(here, resume=False)
    return here
