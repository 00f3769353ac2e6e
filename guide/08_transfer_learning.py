# %% [markdown]
# # 8. Transfer learning
#
# A network that was trained on a million photographs has learned edges, textures and shapes. Most
# of that is of use for *your* photographs, too. *Transfer learning* keeps the trained network and
# replaces its last layer.
#
# > **Guess first.** Photographs of solar cells, sound or defective; two thirds are sound, so a
# > blind guess is right in 68 %. How many of 600 others are right after training on 50 photographs:
# > from scratch, and from a network that was trained on ImageNet (cats, cars, coffee pots, but no
# > solar cells)?
#
# This chapter needs two packages: `pip install -e '.[guide]'`.

# %%
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from dlflax import train
from dlflax.models import CNN, MLP, EfficientNetLite0
from dlflax.train.layout import use_all_cores
from dlflax.transfer.backbone import read
from dlflax.transfer.features import Features

use_all_cores()

# %% [markdown]
# ## The photographs
#
# 2,624 electroluminescence photographs of solar cells (Deitsch et al. 2021, licence CC BY-NC-SA
# 4.0), as experts rated them. Those of which the experts were sure are drawn in a random order: the
# first 1,000 are for training, the next 600 for the test.

# %%
folder = resources.files("elpv_dataset") / "data"
rated = [line.split() for line in (folder / "labels.csv").read_text("utf-8").splitlines()]
sure = [(name, int(float(rating))) for name, rating, _ in rated if float(rating) in (0, 1)]
order = np.random.default_rng(0).permutation(len(sure))[:1600]


def photographs(size):
    with_sizes = (Image.open(folder / sure[i][0]).convert("L").resize((size, size)) for i in order)
    return np.stack([np.asarray(image)[..., None] for image in with_sizes])


small = photographs(64)  # for the network from scratch
large = photographs(160).repeat(3, axis=-1)  # ImageNet's photographs have three colours
targets = np.int32([sure[i][1] for i in order])
test = slice(1000, 1600)
print(f"{len(sure)} rated for sure; of the test's {targets[test].size}, "
      f"{1 - targets[test].mean():.0%} are sound")  # fmt: skip

# %% [markdown]
# ## Features: what the trained network sees
#
# EfficientNet-Lite0 turns a photograph into 1,280 numbers, its *features*, and its last layer turns
# these into classes. We keep everything but the last layer, *frozen*. A frozen network says the
# same of a photograph in every epoch, so dlflax computes its features once, and keeps them on disk.

# %%
backbone = EfficientNetLite0(num_outputs=2)
variables, checksum = read("imagenet", backbone, large[:1], lambda sentence: None)
features = Features(backbone, variables, checksum, lambda sentence: None)(large)
print(f"a photograph of {large[0].size} numbers becomes {features[0].size} features")

# %% [markdown]
# The new last layer, the *head*, is all that is trained: 1,280 weights and a bias for each class.


# %%
def accuracy(model, inputs, count, draw, epochs, dropout=0.0):
    """Trained on `count` of the first 1,000, of the test photographs so many are right."""
    chosen = np.random.default_rng(draw).permutation(1000)[:count]
    recipe = train.Recipe(model=model, schedule=train.Cosine())
    hparams = train.Hparams(learning_rate=1e-3, dropout=dropout)
    few = {"inputs": inputs[chosen], "targets": targets[chosen]}
    fit = train.fit(recipe, hparams, few, epochs=epochs, seed=draw)
    others = {"inputs": inputs[test], "targets": targets[test]}
    return train.evaluate(recipe, fit.best, hparams, others)[0]["accuracy"]


head = MLP(features=(), num_outputs=2)
scratch = CNN(features=(16, 32, 64), num_outputs=2)
counts, draws = (50, 200, 1000), range(2)
right = {"pretrained": [], "from scratch": []}
for count in counts:
    many, some = max(20, 5000 // count), max(8, 1500 // count)
    right["pretrained"].append([accuracy(head, features, count, d, many) for d in draws])
    right["from scratch"].append([accuracy(scratch, small, count, d, some, 0.25) for d in draws])
for name, scores in right.items():
    for count, each in zip(counts, scores, strict=True):
        print(f"{name}, {count} photographs: {np.mean(each):.0%}")

# %% [markdown]
# ## The figure
#
# Fifty photographs and a head are worth more than a thousand photographs and a network from
# scratch, at a fraction of the time. The advantage shrinks as examples are added.

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, scores in right.items():
    axis.semilogx(counts, np.mean(scores, axis=1), "o-", label=name)
    axis.fill_between(counts, np.min(scores, axis=1), np.max(scores, axis=1), alpha=0.2)
axis.axhline(1 - targets[test].mean(), color="grey", linestyle=":", label="always sound")
axis.set(xlabel="photographs to train on", ylabel="test accuracy", xticks=counts)
axis.set_xticklabels(counts)
axis.legend()
figure.savefig("transfer_learning.png", dpi=100)

# %% [markdown]
# In Keras, the same idea: `base.trainable = False`, and a new `Dense` layer on top. As each epoch
# computes the frozen layers anew there, a hundred epochs cost a hundred times as much; here they
# cost it once.
#
# ## Change this
#
# With your own photographs, a folder a class, it is one command; a sweep over a hundred heads is a
# second one:
#
# ```bash
# python -m experiments.image_folder --data photos
# python -m sweeps.random_search image_folder --data photos --trials 100
# ```
#
# ## Exercises
#
# 1. How many numbers does the head train? And the whole EfficientNet-Lite0?
# 2. `--finetune full` trains the frozen layers, too, with a tenth of the learning rate. When is that
#    worth it?
#
# ## Solutions

# %%
import jax

whole = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
print(f"head {features.shape[1] * 2 + 2}, frozen {whole}")

# %% [markdown]
# **2.** When there are many examples, or they look quite unlike ImageNet's, and an hour of
# computing does not matter. With few examples it overfits (chapter 6). Try the head first: it is
# the baseline.
