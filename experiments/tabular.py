"""Classification or regression of a table's rows, from columns of any type.

python -m experiments.tabular                       breast cancer: 97.2 +- 0.4 % (5 splits)

python -m experiments.tabular --dataset wine        97.8 +- 1.0 %

python -m experiments.tabular --dataset diabetes    rmse 53.6 +- 1.8

with LightGBM and CatBoost installed; scikit-learn's gradient boosting on the same rows: 96.5 %,
98.9 %, 60.3 (docs/tables.md).

python -m experiments.tabular --data houses.csv --target price

The encoding of each column is described in `data/table/source.py`.
"""

from dlflax import run
from dlflax.data import Table
from dlflax.models import MLP
from dlflax.train import AdamW, Cosine, Hparams, Recipe
from dlflax.train.tasks import Auto

PRESETS = {
    "default": run.Config(
        recipe=Recipe(
            model=MLP(features=(128, 128)), task=Auto(), optimizer=AdamW(), schedule=Cosine(),
            batch_size=32,
        ),
        hparams=Hparams(learning_rate=1e-3, dropout=0.2, weight_decay=0.01, warmup_fraction=0.05),
        data=Table(),
        epochs=100,
        patience=20,
        val_split=0.15,
        bag_folds=5,
    ),
}  # fmt: skip

SPACE = {
    "learning_rate": ("3e-4", "1e-2", "log"),
    "dropout": ("0", "0.5"),
    "weight_decay": ("1e-4", "1", "log"),
}

if __name__ == "__main__":
    run.main("tabular", PRESETS, description=__doc__)
