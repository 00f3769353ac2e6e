"""Is a text for or against? IMDB reviews (Maas et al. 2011), or a table or folder of your own.

python -m experiments.sentiment --data-dir rt-polarity

python -m experiments.sentiment --data-dir rt-polarity --model transformer
"""

from dlflax import run
from dlflax.data import Text
from dlflax.models import RNN, Transformer
from dlflax.optim import Hparams
from dlflax.train import Recipe

ARCHITECTURES = {
    "rnn": RNN(cell="gru", features=(64,), bidirectional=True, pooling="max", embedding=64),
    "transformer": Transformer(depth=1, width=64, pooling="max"),
}

PRESETS = {
    "default": run.Config(
        recipe=Recipe(model=ARCHITECTURES["rnn"], batch_size=64),
        hparams=Hparams(dropout=0.5),
        data=Text(),
        epochs=10,
        patience=3,
    ),
}

if __name__ == "__main__":
    run.main("sentiment", PRESETS, ARCHITECTURES, description=__doc__)
