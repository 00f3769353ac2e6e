"""Sentiment of texts: IMDB reviews (Maas et al. 2011), or a table or folder of your own.

python -m experiments.sentiment                    IMDB: not scored yet, there was no network

python -m experiments.sentiment --data rt-polarity              the default blend: docs/texts.md

The next four at a constant rate, before the cosine schedule:

python -m experiments.sentiment --data rt-polarity --model rnn --bag-folds 0   77.3 +- 0.5 %

the same with --embeddings glove                                            79.1 +- 0.7 %

the same with --model transformer --bag-folds 0                             75.5 +- 0.3 %

the same with --embeddings glove                                            76.2 +- 2.2 %

python -m experiments.sentiment --data rt-polarity --preset minilm --bag-folds 0  75.8 % (1 seed)

the same with --preset best                                                 82.9 +- 0.4 % (3 seeds)

200 labels, --preset few (benchmarks/few_labels.py, 10 draws)               74.2 +- 1.3 %

rt-polarity: 10,662 sentences of film reviews (Pang and Lee 2005), a fixed tenth held out for the
test; Kim 2014 reports 76.1 % for a CNN from random vectors (10-fold).
"""

from dataclasses import replace

from dlflax import run
from dlflax.data import Text
from dlflax.models import RNN, MiniLM, Transformer
from dlflax.train import Cosine, Hparams, Recipe
from dlflax.train.tasks import Classification
from dlflax.transfer import Transfer
from dlflax.transfer.weights import is_on_disk

ARCHITECTURES = {
    "rnn": RNN(cell="gru", features=(64,), bidirectional=True, pooling="max", embedding_dim=64),
    "transformer": Transformer(depth=1, hidden_dim=64, pooling="max"),
    "minilm": MiniLM(),
}

# networks on words from scratch, blended with linear models
WORDS = run.Config(
    recipe=Recipe(model=ARCHITECTURES["rnn"], schedule=Cosine(), batch_size=64),
    hparams=Hparams(learning_rate=2e-3, dropout=0.5),
    data=Text(),
    epochs=16,
    bag_folds=3,
)

# heads on cached features of a frozen text encoder, blended with linear models
HEADS = run.Config(
    recipe=Recipe(model=ARCHITECTURES["minilm"], schedule=Cosine()),
    hparams=Hparams(dropout=0.2, warmup_fraction=0.1),
    data=Text(tokenizer="minilm"),
    transfer=Transfer(weights="minilm"),
    epochs=20,
    bag_folds=5,
)

PRESETS = {
    "default": HEADS if is_on_disk("minilm") else WORDS,
    "minilm": HEADS,
    "rnn": WORDS,
    "transformer": replace(
        WORDS, recipe=replace(WORDS.recipe, model=ARCHITECTURES["transformer"])
    ),
    # full fine-tuning; more epochs overfit
    "best": run.Config(
        recipe=Recipe(
            model=ARCHITECTURES["minilm"], task=Classification(monitor="accuracy"),
            schedule=Cosine(), batch_size=64, compute_dtype="bfloat16",
        ),
        hparams=Hparams(dropout=0.2, warmup_fraction=0.1),
        data=Text(tokenizer="minilm"),
        transfer=Transfer(weights="minilm", finetune="full"),
        epochs=2,
    ),
    # for a few hundred labels: contrastive fine-tuning of the text encoder first
    "few": run.Config(
        recipe=Recipe(model=ARCHITECTURES["minilm"], schedule=Cosine(), batch_size=32),
        hparams=Hparams(
            learning_rate=1e-2, backbone_lr_scale=0.005, warmup_fraction=0.1, clip_norm=1.0
        ),
        data=Text(tokenizer="minilm"),
        transfer=Transfer(weights="minilm", finetune="contrastive"),
        epochs=20,
    ),
}  # fmt: skip

if __name__ == "__main__":
    run.main("sentiment", PRESETS, ARCHITECTURES, description=__doc__)
