"""Clothing, Fashion-MNIST (Xiao et al. 2017): 28x28 grey pixels, ten classes.

python -m experiments.fashion_mnist
"""

from dataclasses import replace

from dlflax import run
from experiments.mnist import ARCHITECTURES, PRESETS

PRESETS = {name: replace(config, dataset="fashion_mnist") for name, config in PRESETS.items()}

if __name__ == "__main__":
    run.main("fashion_mnist", PRESETS, ARCHITECTURES, description=__doc__)
