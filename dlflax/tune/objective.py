"""Trains batches of trials: what the search loop calls."""

import dataclasses
import functools
import importlib
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from optuna.trial import TrialState

from dlflax import parallel, train
from dlflax.report import trials as ranking
from dlflax.report.loggers import Loggers, TensorBoard
from dlflax.report.progress import SweepProgress
from dlflax.report.trials import digits
from dlflax.train import population
from dlflax.tune.cost import cost
from dlflax.tune.members import MOST_OUTPUTS
from dlflax.tune.plan import layouts, params_text
from dlflax.tune.search import halving_rungs, trial_seeds
from dlflax.tune.trial import Outcome, Trial


class Objective:
    """Trains batches of trials, as `search.search` wants it. A context manager."""

    def __init__(
        self, sweep, space, recipes, splits, direction, trials, *,
        pretrained=None, members=None, checkpoint=None, log=print,
    ):  # fmt: skip
        self.sweep, self.space, self.direction = sweep, space, direction
        self.pretrained, self.members, self.checkpoint = pretrained, members, checkpoint
        self._log = log
        self.layouts = layouts(sweep, recipes, splits)
        inputs = splits[0]["inputs"]
        self._costs = {
            recipe: cost(sweep.cost, recipe, sweep.hparams, inputs)
            for recipe in (recipes if sweep.cost else ())
        }
        self.splits = population.put_on_devices(self.layouts[recipes[0]], *splits)
        self.progress = SweepProgress(sweep.trials, len(trials))
        self._traces = population.traces
        self.sign = 1 if direction == "minimize" else -1
        best = ranking.ranked(trials, direction)[:1]
        self._best = best and (self.sign * best[0].value, best[0].number, best[0].params)
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
        saved = self.checkpoint and self.checkpoint.notes(batch)
        groups, hparams = self.grouped(batch)
        rungs = halving_rungs(sweep.epochs, sweep.prune) if sweep.prune else []
        # Halving compares the structures of a batch with each other, so they are trained in step.
        # Without it one comes after the other, and only one is in memory.
        teams = [groups] if rungs else [{recipe: group} for recipe, group in groups.items()]
        outcomes: dict[int, Outcome] = dict(saved["outcomes"]) if saved else {}
        for team in teams:
            active = {place for group in team.values() for place in group}
            if active <= outcomes.keys():  # before the kill
                continue
            trained = {
                recipe: self.population(
                    recipe, [hparams[p] for p in group], [batch[p] for p in group]
                )
                for recipe, group in team.items()
            }
            stages = [*rungs, sweep.epochs]
            if saved and self.checkpoint.restore(saved, list(trained.values())):
                active, stages = set(saved["active"]), stages[saved["stage"] :]
                clock -= saved["seconds"]
                self._log(f"continuing in the middle of trials {_numbers(batch)}")
            saved = None
            for stage, until in enumerate(stages, len(rungs) + 1 - len(stages)):
                on_epoch = self._on_epoch(batch, clock, outcomes, trained, active, stage)
                for members in trained.values():
                    members.train(until, on_epoch)
                if until in rungs:
                    active = self._survivors(team, trained, active)
                    for recipe, group in team.items():
                        trained[recipe].continue_with(
                            [k for k, p in enumerate(group) if p in active]
                        )
            for recipe, group in team.items():
                for k, place in enumerate(group):
                    outcomes[place] = self.outcome(trained[recipe], k, pruned=place not in active)
                self.keep(trained[recipe], [(batch[p].index, outcomes[p]) for p in group])
        seconds = time.perf_counter() - clock
        ordered = [
            dataclasses.replace(outcomes[place], seconds=seconds / len(batch))
            for place in range(len(batch))
        ]
        self._end(batch, ordered, seconds)
        return ordered

    def traces(self) -> int:
        """Number of training programs that this process has compiled for the sweep."""
        return population.traces - self._traces

    def grouped(self, trials: list[Trial]):
        """({structure: the places of its trials}, the numbers of each trial)."""
        groups: dict[train.Recipe, list[int]] = {}
        hparams = []
        for place, trial in enumerate(trials):
            recipe, numbers = self.space.apply(trial.params, self.sweep.recipe, self.sweep.hparams)
            groups.setdefault(recipe, []).append(place)
            hparams.append(numbers)
        return groups, hparams

    def population(self, recipe, hparams, trials):
        """A population of these trials, with the numbers of each, at their beginning."""
        sweep = self.sweep
        return population.Population(
            recipe, hparams, [trial_seeds(sweep.seed, t.index, sweep.seeds) for t in trials],
            *self.splits, epochs=sweep.epochs, layout=self.layouts[recipe],
            patience=sweep.patience, reduce_on_plateau=sweep.reduce_on_plateau,
            pretrained=self.pretrained, keep_best=self.members is not None,
            objective=sweep.objective.removeprefix("val_"),
        )  # fmt: skip

    def _on_epoch(self, batch, clock, outcomes, trained, active, stage):
        """The callback that moves the bar, in trials, and saves where the batch stands."""
        epochs, done, teammates = self.sweep.epochs, len(outcomes), list(trained.values())

        def on_epoch():
            rows = sum(len(row[0]) for members in teammates for row in members.histories)
            self.progress.update(done + rows / epochs, f"training {len(batch)} trials")
            if self.checkpoint and self.checkpoint.due():
                seconds = time.perf_counter() - clock
                self.checkpoint.save(
                    batch, outcomes, teammates, active=sorted(active), stage=stage, seconds=seconds
                )

        return on_epoch

    def keep(self, trained, trials):
        """Keeps the models of those trials, (index, Outcome) each, that are among the best."""
        if self.members is None:
            return
        wanted = parallel.from_main(
            lambda: [
                k for k, (_, each) in enumerate(trials)
                if each.state == TrialState.COMPLETE and self.members.wants(each.value)
            ]
        )  # fmt: skip
        if not wanted:
            return
        numbers = (self.sweep.hparams, self.splits[0]["inputs"][:1])
        size = math.prod(train.output_shape(trained.recipe, *numbers).shape)
        lanes = trained.best(max(1, MOST_OUTPUTS // size))
        full = False
        try:
            for k in wanted if parallel.is_main() else ():
                index, each = trials[k]
                own = [lanes[k, seed] for seed in range(self.sweep.seeds)]
                self.members.add(index, each.value, own)
        except OSError as error:
            full = True
            self._log(f"warning: no ensemble, its models cannot be kept ({error.strerror})")
        if parallel.any_host(full):
            self.members = None

    def _values(self, members):
        """(what each configuration counts, the scores of its seeds): float (n,), (n, seeds)."""
        scores = members.scores(self.sweep.objective.removeprefix("val_"))
        values = scores.mean(1)
        if self.sweep.rank == "cautious" and self.sweep.seeds > 1:
            finite = np.isfinite(values)
            values[finite] += self.sign * scores[finite].std(1, ddof=1)
        return values, scores

    def _survivors(self, team, trained, active):
        """The best of the active places; ties go to the earlier trial, so that nothing depends on
        the order in which the structures were trained."""
        values = {
            place: value
            for recipe, group in team.items()
            for place, value in zip(group, self._values(trained[recipe])[0], strict=True)
        }
        ranked = sorted(active, key=lambda place: (self.sign * values[place], place))
        return set(ranked[: math.ceil(len(ranked) / self.sweep.prune)])

    def outcome(self, members, k, pruned):
        """What came of configuration k of a population."""
        values, scores = self._values(members)
        worst = self.sign * math.inf
        # the seeds' rows by epoch, as far as all came: patience may have stopped one earlier
        rows = zip(*members.histories[k], strict=False)
        curve = [float(np.mean([row[self.sweep.objective] for row in each])) for each in rows]
        curve = [value if math.isfinite(value) else worst for value in curve]
        attrs: dict[str, Any] = {}
        if self.sweep.cost:
            attrs[self.sweep.cost] = self._costs[members.recipe]
        if k in members.diverged:
            attrs["diverged_at"], pruned = members.diverged[k], False
        elif self.sweep.seeds > 1:
            attrs["values"] = scores[k].tolist()
            attrs["std"] = float(scores[k].std(ddof=1))
        intermediate = {epoch + 1: value for epoch, value in enumerate(curve)}
        return Outcome(float(values[k]), intermediate, pruned, attrs=attrs)

    def _end(self, batch, outcomes, seconds):
        for trial, outcome in zip(batch, outcomes, strict=True):
            best = (self.sign * outcome.value, trial.index)
            if not outcome.pruned and (not self._best or best < self._best[:2]):
                self._best = (*best, trial.params)
            self.draw(trial, outcome)
        value, index, params = self._best
        rate, numbers = 60 * len(batch) / seconds, _numbers(batch)
        lost = sum(not math.isfinite(o.value) for o in outcomes)
        self.progress.population_end(
            len(batch),
            f"trials {numbers}: {seconds:.1f} s, {rate:,.{0 if rate > 20 else 1}f} trials/min"
            + (f", {lost} diverged" if lost else "")
            + f"; best so far {digits(self.sign * value)}, trial {index}: {params_text(params)}",
        )

    def tell(self, trials: float, line: str | None) -> None:
        """Moves the bar to so many whole trials; prints the line, if there is one."""
        self.progress.update(trials, "training")
        if line:
            self.progress.population_end(0, line)

    def draw(self, trial, outcome):
        """Writes a trial for TensorBoard, in another thread."""
        if parallel.is_main():
            self._boards.submit(self._write_board, trial, outcome)

    def _write_board(self, trial, outcome):
        folder, name = self.sweep.run_dir / "tensorboard", f"trial_{trial.index:04d}"
        shutil.rmtree(folder / name, ignore_errors=True)  # of the same trial, before a kill
        start = functools.partial(TensorBoard, "", folder, name=name)
        board = Loggers({"TensorBoard": start}, self._log)
        for epoch, value in outcome.intermediate.items():
            board.scalars({self.sweep.objective: value}, epoch)
        board.hparams(trial.params, {self.sweep.objective: outcome.value})
        board.close()


def _numbers(batch):
    return f"{batch[0].index}" + (f" to {batch[-1].index}" if len(batch) > 1 else "")
