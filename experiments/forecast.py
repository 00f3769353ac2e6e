"""A year of weekly CO2 at Mauna Loa from the two years before (Keeling et al. 2004): regression.

python -m experiments.forecast
"""

from dlflax import run
from dlflax.data import Series
from dlflax.models import MLP, RNN, Transformer
from dlflax.optim import Hparams
from dlflax.train import Recipe

ARCHITECTURES = {
    "mlp": MLP(features=(64,)),
    "rnn": RNN(cell="gru", features=(64,)),
    "transformer": Transformer(depth=2, patch=13),
}

PRESETS = {
    "default": run.Config(
        recipe=Recipe(model=ARCHITECTURES["mlp"], loss="mean_squared_error", schedule="cosine"),
        hparams=Hparams(),
        data=Series("co2"),
        epochs=60,
    ),
}

if __name__ == "__main__":
    run.main("forecast", PRESETS, ARCHITECTURES, description=__doc__)
