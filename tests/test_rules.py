"""Rules: who trains next, from the learning curves alone."""

import itertools
import math

import pytest

from dlflax.errors import InputError
from dlflax.tune.pool.rules import Budget, Curve, FreezeThaw, Full, Go, Halving, Stop, halving_rungs


def curves(*values, over=(), busy=()):
    return [Curve(i, {}, each, i in over, i in busy) for i, each in enumerate(values)]


def test_halving_rungs():
    assert halving_rungs(9, 3) == halving_rungs(10, 3) == [1, 3]
    assert halving_rungs(8, 2) == [1, 2, 4]
    assert halving_rungs(3, 4) == []


def test_full_fills_a_population_and_ends():
    budget = Budget(7, 3)
    assert Full().decide([], 4, budget) == [Go(None, 3)] * 4
    assert Full().decide(curves([], [], over=(0, 1)), 4, budget) == [Go(None, 3)] * 2
    four = [[1.0] * 3] * 4
    assert Full().decide(curves(*four), 4, budget) == [Go(None, 3)] * 3
    assert Full().decide(curves(*[[1.0] * 3] * 7), 4, budget) == []
    assert Full().decide(curves(*four), 4, budget._replace(size=5)) == [Go(None, 3)]


def train(rule, values, budget, free=4):
    """Returns number -> epochs that trials had, and those that were stopped. values: of each trial
    at its end; a curve falls to it."""
    known, stopped = [], []
    for _ in range(1000):
        steps = rule.decide(known, free, budget)
        if not steps:
            return {c.number: len(c.values) for c in known}, stopped
        for step in steps:
            if isinstance(step, Stop):
                stopped.append(step.trial)
                known[step.trial] = known[step.trial]._replace(is_over=True)
                continue
            if step.trial is None:
                number = len(known)
                known.append(Curve(number, {}, []))
            else:
                number = step.trial
            curve = [values[number] + 1 / epoch for epoch in range(1, step.until + 1)]
            known[number] = Curve(number, {}, curve, step.until >= budget.epochs)
    raise AssertionError("without end")


def test_halving_trains_the_best_of_every_population():
    values = [3, 1, 4, 2, 9, 8, 7, 6, 5]
    epochs, stopped = train(Halving(2), values, Budget(9, 8))
    assert [epochs[i] for i in range(9)] == [1, 8, 1, 2, 1, 1, 2, 8, 8]
    assert sorted(stopped) == [0, 2, 3, 4, 5, 6]


def test_ties_go_to_the_earlier_trial():
    epochs, _ = train(Halving(2), [1, 1, 1, 1], Budget(4, 4))
    assert list(epochs.values()) == [4, 2, 1, 1]


def test_halving_waits_for_a_population_and_works_on_another():
    at_rung = [[3.0], [1.0], [4.0], [2.0]]
    budget = Budget(8, 4)
    assert Halving(2).decide(curves(*at_rung[:3], [], busy=(3,)), 4, budget) == [Go(None, 1)] * 4
    assert Halving(2).decide(curves(*at_rung), 4, budget) == [Stop(0), Stop(2)]
    active = curves(*at_rung, over=(0, 2))
    assert Halving(2).decide(active, 4, budget) == [Go(1, 2), Go(3, 2)]


def test_freeze_thaw_spends_its_budget_on_the_best():
    values = list(itertools.islice(itertools.cycle([5, 3, 8, 1, 9, 7]), 60))
    budget = Budget(6, 8)
    epochs, stopped = train(FreezeThaw(), values, budget)
    assert budget.trials * budget.epochs <= sum(epochs.values()) <= 48 + 8
    assert len(epochs) > 6 and 8 in epochs.values()
    best = min(epochs, key=lambda i: (values[i] + 1 / epochs[i], i))
    assert epochs[best] == 8 and best not in stopped
    assert {*stopped} == {i for i in epochs if epochs[i] < 8}
    mean = {value: [epochs[i] for i in epochs if values[i] == value] for value in (1, 9)}
    assert sum(mean[1]) / len(mean[1]) > sum(mean[9]) / len(mean[9])


def test_freeze_thaw_continues_what_is_between_rungs_then_the_better_half():
    waiting = curves([4.0], [3.0], [2.0], [1.0], [9.0, 8.0, 7.0])
    steps = FreezeThaw().decide(waiting, 4, Budget(10, 8))
    assert steps == [Go(4, 4), Go(3, 2), Go(2, 2), Go(None, 1)]
    busy = [curve._replace(is_busy=curve.number == 3) for curve in waiting]
    assert Go(3, 2) not in FreezeThaw().decide(busy, 4, Budget(10, 8))


def test_freeze_thaw_of_a_finite_space():
    epochs, _ = train(FreezeThaw(2), [4, 3, 2, 1], Budget(10, 4, size=4))
    assert list(epochs.values()) == [4, 4, 4, 4]


def test_a_diverged_trial_is_never_the_best():
    done = curves([math.inf], [5.0, 4.0], over=(0,))
    assert Stop(1) not in Halving(2).decide(done, 2, Budget(2, 2))
    paused = curves([math.inf], [5.0], over=(0,))
    assert Halving(2).decide(paused, 2, Budget(2, 2)) == [Go(1, 2)]


@pytest.mark.parametrize("factor", [1, 0, -1, 4])
def test_factors_without_a_rung_are_refused(factor):
    with pytest.raises(InputError, match=f"--reduction-factor {factor} must be from 2"):
        Halving(factor).check(3)


def test_rounds_without_an_epoch_are_refused():
    with pytest.raises(InputError, match="--epochs-per-round 0 must be 1"):
        FreezeThaw(0).check(3)
