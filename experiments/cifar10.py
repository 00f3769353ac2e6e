"""CIFAR-10 (Krizhevsky 2009): 32x32 colour photographs, ten classes.

python -m experiments.cifar10                 not scored yet: the data were not available
"""

from dlflax import run
from dlflax.data import Images
from dlflax.models import CNN, MLP, SmallResNet, Transformer
from dlflax.train import SGD, Cosine, Hparams, Recipe
from dlflax.train.augment import Crop, Cutout, Flip

ARCHITECTURES = {
    "resnet": SmallResNet(),
    "cnn": CNN(features=(32, 64, 128), dense=(128,), dropout_after="all"),
    "transformer": Transformer(patch_size=4, hidden_dim=128, depth=6, mlp_dim=256),
    "mlp": MLP(features=(512, 256)),
}

PRESETS = {
    "default": run.Config(
        recipe=Recipe(
            model=ARCHITECTURES["resnet"],
            optimizer=SGD(nesterov=True),
            schedule=Cosine(),
            batch_size=128,
            augment=(Crop(), Flip(), Cutout()),
        ),
        hparams=Hparams(
            learning_rate=0.05, l2=2.5e-4, warmup_fraction=0.1, label_smoothing=0.1,
            crop_pixels=4.0, cutout_fraction=0.25,
        ),
        data=Images("cifar10"),
        epochs=20,
    ),
}  # fmt: skip

SPACE = {
    "learning_rate": ("5e-3", "0.2", "log"),
    "l2": ("1e-5", "1e-3", "log"),
    "cutout_fraction": ("0", "0.5"),
}
GRID = {"learning_rate": ("0.02", "0.05", "0.1"), "l2": ("1e-4", "2.5e-4", "5e-4")}

if __name__ == "__main__":
    run.main("cifar10", PRESETS, ARCHITECTURES, description=__doc__)
