"""Random search (Bergstra and Bengio 2012), or with --sampler qmc its evenly spread relative.

python -m sweeps.random_search                 tunes experiments.mnist

It continues when it is run again, and ends with the best model tested and saved.
"""

import experiments
from dlflax.tune import cli

if __name__ == "__main__":
    cli.main("random_search", experiments, ("random", "qmc"), description=__doc__)
