"""Trains batches of trials: what the search loop calls."""

import dataclasses
import importlib
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dlflax import parallel, train
from dlflax.report import trials as ranking
from dlflax.report.progress import SweepProgress
from dlflax.report.tensorboard import TensorBoard
from dlflax.tune import population
from dlflax.tune.plan import layouts, params_text
from dlflax.tune.search import halving_rungs, trial_seeds
from dlflax.tune.trial import Outcome, Trial


class Objective:
    """Trains batches of trials, as `search.search` wants it. A context manager."""

    def __init__(self, sweep, space, recipes, splits, direction, trials, pretrained=None):
        self.sweep, self.space, self.direction = sweep, space, direction
        self.pretrained = pretrained
        self.layouts = layouts(sweep, recipes, splits)
        self.splits = population.put_on_devices(self.layouts[recipes[0]], *splits)
        self.progress = SweepProgress(sweep.trials, len(trials))
        self._traces = population.traces
        self._sign = 1 if direction == "minimize" else -1
        best = ranking.ranked(trials, direction)[:1]
        self._best = best and (self._sign * best[0].value, best[0].number, best[0].params)
        self._boards = ThreadPoolExecutor(1)  # event files are written while the devices work

    def __enter__(self):
        # half a second, while the first program is compiled
        self._boards.submit(importlib.import_module, "tensorboardX.summary")
        self.progress.__enter__()
        return self

    def __exit__(self, *_):
        self.progress.__exit__()
        self._boards.shutdown()

    def __call__(self, batch: list[Trial]) -> list[Outcome]:
        """The Outcome of every trial, in the batch's order."""
        clock, sweep = time.perf_counter(), self.sweep
        groups: dict[train.Recipe, list[int]] = {}
        hparams = []
        for place, trial in enumerate(batch):
            recipe, numbers = self.space.apply(trial.params, sweep.recipe, sweep.hparams)
            groups.setdefault(recipe, []).append(place)
            hparams.append(numbers)
        rungs = halving_rungs(sweep.epochs, sweep.prune) if sweep.prune else []
        # Halving compares the structures of a batch with each other, so they are trained in step.
        # Without it one comes after the other, and only one is in memory.
        teams = [groups] if rungs else [{recipe: group} for recipe, group in groups.items()]
        outcomes: dict[int, Outcome] = {}
        for team in teams:
            trained = {
                recipe: population.Population(
                    recipe, [hparams[place] for place in group],
                    [trial_seeds(sweep.seed, batch[p].index, sweep.seeds) for p in group],
                    *self.splits, epochs=sweep.epochs, layout=self.layouts[recipe],
                    patience=sweep.patience, reduce_on_plateau=sweep.reduce_on_plateau,
                    pretrained=self.pretrained,
                )
                for recipe, group in team.items()
            }  # fmt: skip
            active = {place for group in team.values() for place in group}
            for until in [*rungs, sweep.epochs]:
                for members in trained.values():
                    members.train(until, self._show(len(outcomes), len(batch), trained))
                if until in rungs:
                    active = self._survivors(team, trained, active)
                    for recipe, group in team.items():
                        trained[recipe].continue_with(
                            [k for k, p in enumerate(group) if p in active]
                        )
            for recipe, group in team.items():
                for k, place in enumerate(group):
                    outcomes[place] = self._outcome(trained[recipe], k, pruned=place not in active)
        seconds = time.perf_counter() - clock
        ordered = [
            dataclasses.replace(outcomes[place], seconds=seconds / len(batch))
            for place in range(len(batch))
        ]
        self._end(batch, ordered, seconds)
        return ordered

    def traces(self) -> int:
        """How many training programs this process has compiled for the sweep."""
        return population.traces - self._traces

    def _show(self, done, of, trained):
        """The callback that moves the bar: epochs of this team, in trials."""
        epochs = self.sweep.epochs

        def on_epoch(_):
            rows = sum(len(row[0]) for members in trained.values() for row in members.histories)
            self.progress.update(done + rows / epochs, f"training {of} trials")

        return on_epoch

    def _values(self, members):
        """(what each configuration counts, the scores of its seeds): float (n,), (n, seeds)."""
        scores = members.scores(self.sweep.objective.removeprefix("val_"))
        values = scores.mean(1)
        if self.sweep.rank == "cautious" and self.sweep.seeds > 1:
            finite = np.isfinite(values)
            values[finite] += self._sign * scores[finite].std(1, ddof=1)
        return values, scores

    def _survivors(self, team, trained, active):
        """The best of the active places; ties go to the earlier trial, so that nothing depends on
        the order in which the structures were trained."""
        values = {
            place: value
            for recipe, group in team.items()
            for place, value in zip(group, self._values(trained[recipe])[0], strict=True)
        }
        ranked = sorted(active, key=lambda place: (self._sign * values[place], place))
        return set(ranked[: math.ceil(len(ranked) / self.sweep.prune)])

    def _outcome(self, members, k, pruned):
        values, scores = self._values(members)
        worst = self._sign * math.inf
        # the seeds' rows by epoch, as far as all came: patience may have stopped one earlier
        rows = zip(*members.histories[k], strict=False)
        curve = [float(np.mean([row[self.sweep.objective] for row in each])) for each in rows]
        curve = [value if math.isfinite(value) else worst for value in curve]
        attrs: dict[str, Any] = {}
        if k in members.diverged:
            attrs["diverged_at"], pruned = members.diverged[k], False
        elif self.sweep.seeds > 1:
            attrs["values"] = scores[k].tolist()
            attrs["std"] = float(scores[k].std(ddof=1))
        intermediate = {epoch + 1: value for epoch, value in enumerate(curve)}
        return Outcome(float(values[k]), intermediate, pruned, attrs=attrs)

    def _end(self, batch, outcomes, seconds):
        for trial, outcome in zip(batch, outcomes, strict=True):
            best = (self._sign * outcome.value, trial.index)
            if not outcome.pruned and (not self._best or best < self._best[:2]):
                self._best = (*best, trial.params)
            if parallel.is_main():
                self._boards.submit(self._write_board, trial, outcome)
        value, index, params = self._best
        numbers = f"{batch[0].index}" + (f" to {batch[-1].index}" if len(batch) > 1 else "")
        rate = 60 * len(batch) / seconds
        lost = sum(not math.isfinite(o.value) for o in outcomes)
        self.progress.population_end(
            len(batch),
            f"trials {numbers}: {seconds:.1f} s, {rate:,.{0 if rate > 20 else 1}f} trials/min"
            + (f", {lost} diverged" if lost else "")
            + f"; best so far {self._sign * value:.4f}, trial {index}: {params_text(params)}",
        )

    def _write_board(self, trial, outcome):
        folder = self.sweep.run_dir / "tensorboard" / f"trial_{trial.index:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of the same trial, before a kill
        board = TensorBoard(folder)
        for epoch, value in outcome.intermediate.items():
            board.scalars({self.sweep.objective: value}, epoch)
        board.hparams(trial.params, {self.sweep.objective: outcome.value})
        board.close()
