"""Random search (Bergstra and Bengio 2012), or with --sampler qmc quasi-random search.

python -m sweeps.random_search                 tunes experiments.mnist

The same command continues a stopped sweep. At its end the best model is tested and saved.
"""

import experiments
from dlflax.tune import sweep_command

if __name__ == "__main__":
    sweep_command.main("random_search", experiments, ("random", "qmc"), description=__doc__)
