"""Handwritten digits, MNIST (LeCun et al. 1998): 28x28 grey pixels, ten classes.

python -m experiments.mnist                   98.63 +- 0.12 % test accuracy (3 seeds), 5 epochs

python -m experiments.mnist --model rnn             98.86 +- 0.10 % (3 seeds), an LSTM over the rows

python -m experiments.mnist --model transformer     98.42 +- 0.09 % (3 seeds), 12 epochs

python -m experiments.mnist --preset article  98.6 % (seed 0), 5 epochs: as in Keras, no dropout,
no validation split

python -m experiments.mnist --preset fast     99.14 +- 0.03 % (5 seeds), 3 epochs

python -m experiments.mnist --preset best     99.55 +- 0.03 % (3 seeds), 12 epochs

python -m experiments.mnist --preset digits   99.0 +- 0.4 % (5 seeds), 20 epochs, on scikit-learn's
digits: the default if MNIST cannot be downloaded
"""

from dataclasses import replace

from dlflax import run
from dlflax.data import Images
from dlflax.models import CNN, MLP, RNN, Transformer
from dlflax.train import AdamW, Cosine, Hparams, Recipe
from dlflax.train.augment import Affine

ARCHITECTURES = {"cnn": CNN(), "mlp": MLP(), "rnn": RNN(), "transformer": Transformer()}

# the classic first network: Adam 1e-3, batch 32, 5 epochs
DEFAULT = run.Config(recipe=Recipe(model=CNN()), hparams=Hparams(dropout=0.25))

PRESETS = {
    "default": DEFAULT,
    "rnn": replace(
        DEFAULT,
        recipe=Recipe(model=ARCHITECTURES["rnn"], schedule=Cosine(), batch_size=64),
        hparams=Hparams(learning_rate=3e-3, dropout=0.1, warmup_fraction=0.1, clip_norm=1.0),
    ),
    "transformer": replace(
        DEFAULT,
        recipe=Recipe(
            model=ARCHITECTURES["transformer"], optimizer=AdamW(), schedule=Cosine(), batch_size=128
        ),
        hparams=Hparams(learning_rate=3e-3, dropout=0.05, weight_decay=0.01, warmup_fraction=0.1),
        epochs=12,
    ),
    # the first program of the article that this project follows, which is Keras' first example: its
    # defaults, no dropout, no validation split
    "article": replace(
        DEFAULT, recipe=Recipe(model=CNN(padding="valid")), hparams=Hparams(), val_split=0.0
    ),
    # 99 % in a few seconds on two cores: benchmarks/speedrun.py
    "fast": run.Config(
        recipe=Recipe(
            model=CNN(features=(16, 32), dense=(128,), dropout_after="all"),
            schedule=Cosine(),
            batch_size=128,
            ema=True,
        ),
        hparams=Hparams(learning_rate=4e-3, dropout=0.1, warmup_fraction=0.05),
        epochs=3,
    ),
    "best": run.Config(
        recipe=Recipe(
            model=CNN(features=(32, 64, 128), dense=(128,), dropout_after="all"),
            schedule=Cosine(),
            batch_size=128,
            augment=(Affine(),),
            ema=True,
        ),
        hparams=Hparams(
            learning_rate=2e-3, dropout=0.2, warmup_fraction=0.05,
            translate_pixels=2.0, rotate_degrees=12.0, zoom_fraction=0.1,
        ),
        epochs=12,
    ),
    # the default if MNIST cannot be downloaded
    "digits": replace(
        DEFAULT,
        recipe=Recipe(model=CNN(), schedule=Cosine(), augment=(Affine(),)),
        hparams=Hparams(
            learning_rate=2e-3, dropout=0.25, warmup_fraction=0.05,
            translate_pixels=2.0, rotate_degrees=10.0, zoom_fraction=0.1,
        ),
        data=Images("digits"),
        epochs=20,
    ),
}  # fmt: skip

if __name__ == "__main__":
    run.main("mnist", PRESETS, ARCHITECTURES, description=__doc__)
