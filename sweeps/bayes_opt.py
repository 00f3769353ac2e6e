"""Bayesian search: the next trials are chosen by a model of what the earlier ones scored.

python -m sweeps.bayes_opt                     tunes experiments.mnist

python -m sweeps.bayes_opt fashion_mnist --trials 32 --epochs 3 --sampler tpe

It continues when it is run again, and ends with the best model tested and saved.
"""

import experiments
from dlflax.tune import cli

if __name__ == "__main__":
    cli.main("bayes_opt", experiments, ("gp", "tpe", "cmaes"), description=__doc__)
