"""Bayesian optimization: a model of the earlier trials' scores suggests the next trials.

python -m sweeps.bayes_opt                     tunes experiments.mnist

python -m sweeps.bayes_opt fashion_mnist --trials 32 --epochs 3 --sampler tpe

The same command continues a stopped sweep. At its end the best model is tested and saved.
"""

import experiments
from dlflax.tune import sweep_command

if __name__ == "__main__":
    sweep_command.main("bayes_opt", experiments, ("gp", "tpe", "cmaes"), description=__doc__)
