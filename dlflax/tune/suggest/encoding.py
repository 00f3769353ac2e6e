"""Parameters of a trial as a point of the unit cube, and back."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

MOST_LEVELS = 64  # of a number in steps; one with more counts as continuous


class Encoding:
    """The columns of the parameters: one for a number, on its scale; one for numeric choices,
    evenly spaced; one for each of other choices (one-hot)."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]):
        self.distributions = dict(distributions)
        self._levels = {name: _levels(d) for name, d in self.distributions.items()}
        self._columns: dict[str, slice] = {}
        continuous: list[bool] = []
        one_hot: list[bool] = []
        for name, levels in self._levels.items():
            is_choice = bool(levels) and not _are_numbers(levels)
            width = len(levels) if is_choice else 1
            self._columns[name] = slice(len(continuous), len(continuous) + width)
            continuous += [not levels] * width
            one_hot += [is_choice] * width
        # bool (width,): columns with any value from 0 to 1, and columns of one-hot choices
        self.continuous, self.one_hot = np.array(continuous), np.array(one_hot)
        self.width = len(continuous)

    def size(self) -> int | None:
        """Returns the number of configurations; None in a continuous space."""
        is_finite = all(self._levels.values())
        return math.prod(map(len, self._levels.values())) if is_finite else None

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Yields all configurations of a finite space, the last parameter changing fastest."""
        for values in itertools.product(*self._levels.values()):
            yield dict(zip(self._levels, values, strict=True))

    def key(self, params: Mapping[str, Any]) -> tuple:
        """Returns a tuple that is equal for equal configurations."""
        return tuple(params[name] for name in self.distributions)

    def first_new(self, tried: set[tuple]) -> dict[str, Any] | None:
        """Returns the first configuration whose key is new; None without one, or if the space is
        continuous."""
        configurations = self.configurations() if self.size() else ()
        return next((params for params in configurations if self.key(params) not in tried), None)

    def encode(self, trials: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns the points of parameters, float64 (trials, width)."""
        points = np.zeros((len(trials), self.width))
        for row, params in zip(points, trials, strict=True):
            for name, distribution in self.distributions.items():
                columns, levels = self._columns[name], self._levels[name]
                if not levels:
                    row[columns] = _share(distribution, params[name])
                elif _are_numbers(levels):
                    index = np.argmin([abs(level - params[name]) for level in levels])
                    row[columns] = index / max(1, len(levels) - 1)
                else:
                    row[columns.start + levels.index(params[name])] = 1
        return points

    def decode(self, point: np.ndarray) -> dict[str, Any]:
        """Returns the parameters that are nearest to a point (width,)."""
        params = {}
        for name, distribution in self.distributions.items():
            column, levels = point[self._columns[name]], self._levels[name]
            if not levels:
                params[name] = _number(distribution, float(column[0]))
            elif _are_numbers(levels):
                params[name] = levels[round(float(column[0]) * (len(levels) - 1))]
            else:
                params[name] = levels[int(np.argmax(column))]
        return params

    def spread(self, uniform: np.ndarray) -> list[dict[str, Any]]:
        """Returns the parameters at points (n, parameters) from 0 to 1, where all choices have
        equal shares."""

        def value_at(name, share):
            if levels := self._levels[name]:
                return levels[min(int(share * len(levels)), len(levels) - 1)]
            return _number(self.distributions[name], float(share))

        names = list(self.distributions)
        return [dict(zip(names, map(value_at, names, row), strict=True)) for row in uniform]

    def neighbours(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns all configurations in which one choice is another, with the same numbers."""
        return [
            {**params, name: level}
            for name, levels in self._levels.items() for level in levels if level != params[name]
        ]  # fmt: skip


def sobol(encoding: Encoding, seed: int, index: int) -> dict[str, Any]:
    """Returns a point of a scrambled Sobol sequence (Owen 1998), which covers the space evenly."""
    points = _sobol(len(encoding.distributions), seed, max(4, index.bit_length()))
    return encoding.spread(points[index : index + 1])[0]


@functools.lru_cache(maxsize=2)
def _sobol(width: int, seed: int, exponent: int) -> np.ndarray:
    from scipy.stats import qmc  # start-up time counts

    return qmc.Sobol(width, rng=np.random.default_rng(seed)).random_base2(exponent)


def _levels(distribution) -> tuple:
    """Returns the values of a parameter, numbers in ascending order; () for a range, or a number in
    more than MOST_LEVELS steps."""
    if isinstance(distribution, CategoricalDistribution):
        choices = tuple(distribution.choices)
        return tuple(sorted(choices)) if _are_numbers(choices) else choices
    step, width = distribution.step, distribution.high - distribution.low
    if not step or width / step >= MOST_LEVELS:
        return ()
    return tuple(_on_grid(distribution, distribution.low + i * step)
                 for i in range(round(width / step) + 1))  # fmt: skip


def _are_numbers(levels) -> bool:
    return all(isinstance(level, int | float) for level in levels)


def _share(distribution, value) -> float:
    """Returns the position of a number in its range, from 0 to 1."""
    low, high = distribution.low, distribution.high
    if high == low:
        return 0.0
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _number(distribution, share: float) -> float:
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** share if distribution.log else low + share * (high - low)
    return _on_grid(distribution, min(max(value, low), high))


def _on_grid(distribution, value: float) -> float:
    """Returns the nearest value that a number in steps can have."""
    if not distribution.step:
        return value
    steps = round((value - distribution.low) / distribution.step)
    return type(distribution.low)(distribution.low + steps * distribution.step)
