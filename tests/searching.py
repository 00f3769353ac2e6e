"""A search in which nothing is trained: the loop of a sweep, with a function in its place."""

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.samplers import make_sampler

SPACE = {
    "x": FloatDistribution(-5, 10),
    "y": FloatDistribution(1e-3, 15, log=True),
    "z": CategoricalDistribution([0.5, 2.0, 7.0]),
}
GRID = {name: CategoricalDistribution(values) for name, values in
        {"x": [0.0, 3.0, 8.0], "y": [1.0, 2.0], "z": [0.5, 2.0, 7.0]}.items()}  # fmt: skip


def begun(study):
    """Returns the trials that were asked for."""
    return [trial for trial in study.trials() if trial.state != TrialState.WAITING]


def ask(study, space, sampler, count, seed=0):
    """Returns the next trials, as a sweep that has this space asks for them."""
    study.settings({}, [] if sampler == "grid" else space.first_trials())
    return study.ask(make_sampler(sampler, space, seed), space.distributions, [None] * count)


def search(study, space, function, sampler="gp", trials=64, population=1, seed=0):
    """Continues until there are so many trials. function: parameters -> (value, attributes)."""
    most = min(trials, Encoding(space.distributions).size() or trials)
    while (done := len(begun(study))) < most:
        count = min(population - done % population, most - done)
        batch = ask(study, space, sampler, count, seed)
        with study.writing():
            for trial in batch:
                value, attrs = function(trial.params)
                study.tell(trial.number, TrialState.COMPLETE, value, attrs)
