"""Rules, which select the trials to train next: pure functions of the learning curves so far."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from dlflax.errors import InputError

ETA = 2  # freeze-thaw: the best 1 in ETA continue from a rung


class Curve(NamedTuple):
    """The learning curve of a trial, so far."""

    number: int
    params: Mapping[str, Any]
    values: Sequence[float]
    """After each epoch, lower is better; +inf once it diverged."""
    is_over: bool = False
    """The trial is finished, diverged or stopped."""
    is_busy: bool = False
    """A worker trains it."""

    def best(self, epoch: int | None = None) -> float:
        """Returns the best value up to an epoch, by default of all epochs."""
        return min(self.values[:epoch], default=math.inf)


class Go(NamedTuple):
    """Train a trial, or with `trial` None a new one, until it has `until` epochs."""

    trial: int | None
    until: int
    params: Mapping[str, Any] | None = None
    """Parameters of a new trial; None asks the sampler."""
    parent: int | None = None
    """A paused trial whose State a new one begins with."""


class Stop(NamedTuple):
    """Train a trial no further."""

    trial: int


class Budget(NamedTuple):
    """The trials and epochs that a search may spend."""

    trials: int
    epochs: int
    """The epochs of a whole trial."""
    size: int | None = None
    """Configurations of a finite space."""

    @property
    def most(self) -> int:
        """The number of trials that may be begun."""
        return min(self.trials, self.size or self.trials)


class Rule(Protocol):
    """The selection of the trials to train next."""

    is_narrow: ClassVar[bool] = False
    """True: trials that continue get a narrower program, to save time."""
    sampler: ClassVar[str] = ""
    """The sampler of new trials; "" for that of the sweep."""

    def check(self, epochs: int) -> None:
        """Raises InputError for fields that contradict the epochs of a trial."""

    def decide(self, curves: Sequence[Curve], free: int, budget: Budget) -> list[Go | Stop]:
        """Returns the trials of one order, at most `free`, and the trials to stop; [] while all are
        busy, and at the end. curves: of all trials, in number order."""


@dataclasses.dataclass(frozen=True)
class Full(Rule):
    """Every trial is trained to its end."""

    def decide(self, curves: Sequence[Curve], free: int, budget: Budget) -> list[Go | Stop]:
        """Returns new trials, as many as a population has left."""
        return _begin(curves, free, budget.most, budget.epochs)


@dataclasses.dataclass(frozen=True)
class Halving(Rule):
    """Only the best of a population continue after a share of the epochs: successive halving
    (Karnin, Koren and Somekh 2013; Jamieson and Talwalkar 2016)."""

    is_narrow: ClassVar[bool] = True

    reduction_factor: int = 3
    """The best 1 in N continue after 1/N, 1/N^2, ... of the epochs."""

    def check(self, epochs: int) -> None:
        """Raises InputError where there is no epoch to stop after."""
        if not 2 <= self.reduction_factor <= epochs:
            raise InputError(
                f"--reduction-factor {self.reduction_factor} must be from 2 to the epochs of a "
                f"trial, --epochs {epochs}."
            )

    def decide(self, curves: Sequence[Curve], free: int, budget: Budget) -> list[Go | Stop]:
        """Returns the next steps of the first population that waits, or a new population."""
        rungs = [*halving_rungs(budget.epochs, self.reduction_factor), budget.epochs]
        for start in range(0, len(curves) // free * free + 1, free):
            population = curves[start : start + free]
            if len(population) < free and len(curves) < budget.most:
                break  # it is incomplete: a kill came before its other trials
            if steps := self._next_rung(population, rungs):
                return steps
        return _begin(curves, free, budget.most, rungs[0])

    def _next_rung(self, population, rungs) -> list[Go | Stop]:
        active = list(population)
        for rung in rungs:
            behind = [c for c in active if not c.is_over and len(c.values) < rung]
            if behind:
                return [Go(c.number, rung) for c in behind if not c.is_busy]
            # ties go to the earlier trial, whatever structure was trained first
            rank = sorted(active, key=lambda curve: (curve.best(rung), curve.number))
            active = rank[: math.ceil(len(rank) / self.reduction_factor)]
            stopped = [c for c in rank[len(active) :] if not c.is_over and not c.is_busy]
            if rung < rungs[-1] and stopped:
                return [Stop(curve.number) for curve in stopped]
            active.sort(key=lambda curve: curve.number)
        return []


@dataclasses.dataclass(frozen=True)
class FreezeThaw(Rule):
    """The epochs of --trials full trials go to as many trials as are worth beginning: trials pause
    at rungs, and those that rank well continue.

    Successive halving without rounds (Li et al. 2020, ASHA), in the setting of Swersky, Snoek and
    Adams 2014.
    """

    sampler: ClassVar[str] = "qmc"  # better beginnings by a model were tried, and were not better

    epochs_per_round: int = 1
    """Epochs of a trial between two decisions."""

    def check(self, epochs: int) -> None:
        """Raises InputError for rounds of less than an epoch."""
        if self.epochs_per_round < 1:
            raise InputError(f"--epochs-per-round {self.epochs_per_round} must be 1 or more.")

    def decide(self, curves: Sequence[Curve], free: int, budget: Budget) -> list[Go | Stop]:
        """Returns the trials that continue, then new trials while the budget lasts. After that the
        best trial is trained to its end."""
        idle = [c for c in curves if not c.is_over and not c.is_busy]
        spent, most = sum(len(c.values) for c in curves), budget.size or math.inf
        new, chosen = int(min(free, most - len(curves))), []
        if spent < budget.trials * budget.epochs:
            chosen = self._resumable(curves, budget.epochs)[:free]
            new = min(new, free - len(chosen))
            others = [c for c in idle if c not in chosen]
            others.sort(key=lambda curve: (curve.best(), curve.number))
            chosen += others[: free - len(chosen) - new]  # a finite space may have no new ones
        if chosen or (new and spent < budget.trials * budget.epochs):
            rounds = [min(budget.epochs, len(c.values) + self.epochs_per_round) for c in chosen]
            going = [Go(c.number, until) for c, until in zip(chosen, rounds, strict=True)]
            return going + [Go(None, min(budget.epochs, self.epochs_per_round))] * new
        if any(curve.is_busy for curve in curves) or not curves:
            return []
        best = min(curves, key=lambda curve: (curve.best(), curve.number))
        if not best.is_over:
            return [Go(best.number, budget.epochs)]
        return [Stop(curve.number) for curve in idle]

    def _resumable(self, curves, epochs) -> list[Curve]:
        """Returns the paused trials to resume, in order.

        Trials between two rungs come before those at a rung, of which the best 1 in ETA of all that
        reached it are resumed.
        """
        at_rung: dict[int, list[Curve]] = {r: [] for r in halving_rungs(epochs, ETA)[::-1]}
        ranked = []
        for curve in curves:
            done = len(curve.values)
            rung = next((r for r in at_rung if r <= done), 0)
            if not curve.is_over and not curve.is_busy:
                waits = rung and done < rung + self.epochs_per_round
                (at_rung[rung] if waits else ranked).append(curve)
        ranked.sort(key=lambda curve: (-len(curve.values), curve.number))
        for rung, waiting in at_rung.items():
            rank = [curve for curve in curves if len(curve.values) >= rung]
            rank.sort(key=lambda curve: (curve.best(rung), curve.number))
            ranked += [curve for curve in rank[: len(rank) // ETA] if curve in waiting]
        return ranked


RULES: dict[str, Rule] = {"full": Full(), "halving": Halving(), "freeze-thaw": FreezeThaw()}


def _begin(curves, free, most, until) -> list[Go]:
    """Returns new trials: each population begins at a multiple of its size, also after a kill."""
    return [Go(None, until)] * max(0, min(free - len(curves) % free, most - len(curves)))


def halving_rungs(epochs: int, eta: int) -> list[int]:
    """Returns the epochs after which all but one in `eta` stop: [1, 3] of 9 epochs with eta 3."""
    rungs = []
    while epochs := epochs // eta:
        rungs.insert(0, epochs)
    return rungs
