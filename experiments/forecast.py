"""Forecast of a year of weekly CO2 at Mauna Loa from two years (Keeling et al. 2004).

python -m experiments.forecast                                   rmse 0.685 ppm

python -m experiments.forecast --bag-folds 0                     0.686 +- 0.013 (3 seeds)

python -m experiments.forecast --bag-folds 0 --model transformer 0.706 +- 0.013

python -m experiments.forecast --bag-folds 0 --model rnn         0.731 +- 0.020

seasonal naive: 1.901; last value: 3.322. The blend of the first command: docs/series.md.
"""

from dlflax import run
from dlflax.data import Series
from dlflax.models import MLP, RNN, Transformer
from dlflax.train import Cosine, Hparams, Recipe
from dlflax.train.tasks import Forecast

ARCHITECTURES = {
    "mlp": MLP(features=(64,)),
    "rnn": RNN(cell="gru", features=(64,)),
    "transformer": Transformer(depth=2, patch_size=13),
}

PRESETS = {
    "default": run.Config(
        recipe=Recipe(model=ARCHITECTURES["mlp"], task=Forecast(), schedule=Cosine()),
        hparams=Hparams(),
        data=Series("co2"),
        epochs=60,
        bag_folds=4,
    ),
}

if __name__ == "__main__":
    run.main("forecast", PRESETS, ARCHITECTURES, description=__doc__)
