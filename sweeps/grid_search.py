"""Grid search: every combination of the values, in order, the last parameter fastest.

python -m sweeps.grid_search                   tunes experiments.mnist

python -m sweeps.grid_search --space.learning-rate 1e-3 3e-3 --space.dropout 0 0.2 --space.l2

The same command continues a stopped sweep. At its end the best model is tested and saved.
"""

import experiments
from dlflax.tune import sweep_command

if __name__ == "__main__":
    sweep_command.main("grid_search", experiments, ("grid",), description=__doc__)
