"""Trials that are trained some epochs at a time and wait in host memory in between."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from optuna.trial import FrozenTrial

from dlflax import parallel
from dlflax.report.trials import digits
from dlflax.tune.checkpoint import outcome_of
from dlflax.tune.encoding import Encoding
from dlflax.tune.freeze_thaw import Curve, decide
from dlflax.tune.objective import Objective
from dlflax.tune.plan import params_text
from dlflax.tune.search import suggest
from dlflax.tune.space import Space
from dlflax.tune.trial import Outcome, Trial, frozen


@dataclasses.dataclass
class Waiting:
    """A trial that was begun."""

    trial: Trial
    outcome: Outcome
    """So far: pruned, until it is finished."""
    over: bool
    """It is finished or diverged."""
    arrays: list[np.ndarray]
    """Leaves of its members in `Population.saved`, (seeds, ...); [] once over."""
    records: list
    """Records of its seeds, as `Population.saved` has them."""
    seconds: float = 0.0


class Frozen:
    """All trials of a freeze-thaw search.

    The States of those that are not in training wait in host memory; going on with one puts it
    into a lane of the same compiled program. Everything is in the batch's checkpoint, so a search
    that was killed goes on with the same decisions.
    """

    def __init__(self, objective: Objective, space: Space, seed: int):
        self._objective, self._space, self._seed = objective, space, seed
        self._encoding = Encoding(space.distributions)
        self.trials: list[Waiting] = []
        self.rounds = 0

    @property
    def spent(self) -> int:
        """Epochs of trials so far."""
        return sum(len(each.records[0][0]) for each in self.trials)

    def advance(self, lanes: int, epochs: int) -> bool:
        """Decides what goes on, and trains it for so many more epochs. False where all of a finite
        space is trained."""
        whole, sign = self._objective.sweep.epochs, self._objective.sign
        if not self.trials:
            first = list(range(min(lanes, self._encoding.size() or lanes)))
            direction = self._objective.direction
            chosen = suggest("qmc", self._space, self._seed, direction, [], first)
        else:
            curves = [
                Curve(
                    each.trial.params,
                    [sign * value for value in each.outcome.intermediate.values()],
                    each.over,
                )
                for each in self.trials
            ]
            seed = int(np.random.SeedSequence([self._seed, self.rounds]).generate_state(1)[0])
            picks = decide(self._encoding, curves, whole, lanes, seed, epochs)
            chosen, begun = [], len(self.trials)
            for pick in picks:
                if isinstance(pick, int):
                    chosen.append(self.trials[pick].trial)
                else:
                    chosen.append(Trial(begun, pick))
                    begun += 1
        if chosen:
            self._train(chosen, epochs)
        self.rounds += 1
        return bool(chosen)

    def as_trials(self) -> list[FrozenTrial]:
        """All of them, as Optuna has them."""
        found = []
        for each in self.trials:
            made = frozen(each.trial, self._space.distributions, each.outcome)
            made.number = each.trial.index
            found.append(made)
        return found

    def best(self) -> Waiting:
        """The one with the best value so far, the first on a tie."""
        sign = self._objective.sign
        return min(self.trials, key=lambda each: (sign * each.outcome.value, each.trial.index))

    def told(self) -> str:
        """A line about how far it is."""
        best, whole = self.best(), self._objective.sweep.epochs
        over = sum(each.over for each in self.trials)
        done = len(best.outcome.intermediate)
        return (
            f"{self.spent:,} epochs: {len(self.trials)} trials begun, {over} to their end; best so "
            f"far {digits(best.outcome.value)} after {done} of {whole} epochs, trial "
            f"{best.trial.index}: {params_text(best.trial.params)}"
        )

    def finish_best(self) -> None:
        """Trains the best one, if it is not over, to its end: a sweep has one whole trial."""
        best = self.best()
        if not best.over:
            self._train([best.trial], self._objective.sweep.epochs)

    def _train(self, chosen, epochs):
        clock = time.perf_counter()
        groups, hparams = self._objective.grouped(chosen)
        trained = {}
        for recipe, group in groups.items():
            trials, numbers = [chosen[p] for p in group], [hparams[p] for p in group]
            trained |= self._train_group(recipe, numbers, trials, epochs)
        seconds = (time.perf_counter() - clock) / len(chosen)
        for trial in chosen:
            each = trained[trial.index]
            if trial.index < len(self.trials):
                each.seconds = self.trials[trial.index].seconds
                self.trials[trial.index] = each
            else:
                self.trials.append(each)
            each.seconds += seconds

    def _train_group(self, recipe, numbers, trials, epochs):
        """{index: Waiting} of trials of one structure after so many more epochs."""
        objective = self._objective
        members = objective.population(recipe, numbers, trials)
        self._thaw(members, trials)
        done = [len(row[0]) for row in members.histories]
        members.train([min(objective.sweep.epochs, epoch + epochs) for epoch in done])

        tree, notes = members.saved()
        arrays = [np.asarray(leaf) for leaf in parallel.gathered(_data(tree))]
        places = {lane: place for place, lane in enumerate(notes["places"]) if lane is not None}
        found = {}
        for k, trial in enumerate(trials):
            records = notes["trainings"][k]
            over = k in members.diverged or all(each.finished() for each in members.trainings[k])
            lanes = [places[k, seed] for seed in range(len(records))]
            kept = [] if over else [leaf[lanes] for leaf in arrays]
            outcome = objective.outcome(members, k, pruned=not over)
            found[trial.index] = Waiting(trial, outcome, over, kept, records)
        objective.keep(members, [(trial.index, found[trial.index].outcome) for trial in trials])
        return found

    def _thaw(self, members, trials):
        """Puts those that waited into their lanes."""
        waiting = {
            k: self.trials[t.index] for k, t in enumerate(trials) if t.index < len(self.trials)
        }
        if not waiting:
            return
        tree, notes = members.saved()
        arrays = [np.array(leaf) for leaf in parallel.gathered(_data(tree))]
        for place, lane in enumerate(notes["places"]):
            if lane is not None and lane[0] in waiting:
                for leaf, value in zip(arrays, waiting[lane[0]].arrays, strict=True):
                    leaf[place] = value[lane[1]]
        for k, each in waiting.items():
            notes["trainings"][k] = each.records
        keys = [_is_key(leaf) for leaf in jax.tree.leaves(tree)]
        arrays = [
            jax.random.wrap_key_data(leaf) if is_key else leaf
            for leaf, is_key in zip(arrays, keys, strict=True)
        ]
        members.restore(jax.tree.unflatten(jax.tree.structure(tree), arrays), notes)

    def save(self) -> None:
        """Writes a checkpoint, if it is time for one."""
        checkpoint = self._objective.checkpoint
        if checkpoint is None or not checkpoint.due():
            return
        saved, tree = [], {}
        for each in self.trials:
            if not each.over:
                tree[str(each.trial.index)] = each.arrays
            saved.append({
                "trial": dataclasses.asdict(each.trial),
                "outcome": dataclasses.asdict(each.outcome),
                "shapes": [[list(leaf.shape), leaf.dtype.name] for leaf in each.arrays],
                "over": each.over, "records": each.records, "seconds": each.seconds,
            })  # fmt: skip
        checkpoint.write(tree or {"none": np.zeros(1)}, {"rounds": self.rounds, "trials": saved})

    def load(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        checkpoint = self._objective.checkpoint
        notes = checkpoint and checkpoint.newest()
        if not notes or "rounds" not in notes:
            return
        abstract = {
            str(each["trial"]["index"]): [
                jax.ShapeDtypeStruct(tuple(shape), dtype) for shape, dtype in each["shapes"]
            ]
            for each in notes["trials"] if not each["over"]
        }  # fmt: skip
        tree = checkpoint.read(abstract or {"none": jax.ShapeDtypeStruct((1,), "float64")})
        if tree is None:
            return
        self.rounds = notes["rounds"]
        for each in notes["trials"]:
            trial = Trial(**each["trial"])
            arrays = [np.asarray(leaf) for leaf in tree.get(str(trial.index), [])]
            self.trials.append(
                Waiting(
                    trial, outcome_of(each["outcome"]), each["over"], arrays, each["records"],
                    each["seconds"],
                )
            )  # fmt: skip


def search(
    objective: Objective,
    space: Space,
    store,
    *,
    trials: int,
    population: int,
    seed: int,
    recorded: Callable[[list[FrozenTrial]], None] = lambda trials: None,
) -> None:
    """Spends the epochs of `trials` whole trials on as many trials as `decide` begins, `population`
    of them at a time, each for `sweep.slice` epochs. All are recorded in `store` at the end: those
    that were not trained to their end as pruned. recorded gets all trials so far after each round.
    """
    if store.trials():
        return
    sweep, pool = objective.sweep, Frozen(objective, space, seed)
    pool.load()
    budget, told = trials * sweep.epochs, pool.spent
    while pool.spent < budget and pool.advance(population, sweep.slice):
        pool.save()
        recorded(pool.as_trials())
        tells = pool.spent - told >= budget / 8 or pool.spent >= budget
        objective.tell(pool.spent / sweep.epochs, pool.told() if tells else None)
        told = pool.spent if tells else told
    pool.finish_best()
    done = pool.trials
    for each in done:
        objective.draw(each.trial, each.outcome)
    outcomes = [dataclasses.replace(each.outcome, seconds=each.seconds) for each in done]
    store.record([each.trial for each in done], outcomes)


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(tree):
    """The leaves, with the numbers of typed keys."""
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
