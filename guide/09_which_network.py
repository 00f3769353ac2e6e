# %% [markdown]
# # 9. CNN, RNN, Transformer, autoencoder
#
# Each architecture *assumes* something about its inputs. Where the assumption is true, it needs
# fewer examples; where it is not, it loses.
#
# ```text
# MLP           assumes nothing: every input may go with every other one
# CNN           near pixels belong together, and a thing is the same thing elsewhere in the image
# RNN           things come one after the other; what came before is kept in a memory
# Transformer   every part may look at every other part, and learns at which
# autoencoder   the inputs could be said in fewer numbers
# ```
#
# > **Guess first.** Four of them learn to read from 200 handwritten digits. Then the 784 pixels of
# > every image are shuffled, always in the same way, so that it looks like noise to us. Who
# > suffers most, and who does not notice?

# %%
import csv
import subprocess
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

from dlflax import data, train
from dlflax.models import CNN, MLP, RNN, Autoencoder, Transformer
from dlflax.ops.flops import flops
from dlflax.train.tasks import Reconstruction

digits = data.load("digits", log=lambda sentence: None)
train_set, val_set = data.split(digits.train, 0.2, seed=0)
shuffle = np.random.default_rng(0).permutation(784)


def shuffled(part):
    pixels = part["inputs"].reshape(-1, 784)[:, shuffle]
    return {**part, "inputs": pixels.reshape(part["inputs"].shape)}


# %% [markdown]
# ## Images, and images that are none any more

# %%
networks = {
    "MLP": MLP(features=(128,)),
    "CNN": CNN(features=(16, 32), dense=(64,)),
    "RNN": RNN(cell="gru", features=(64,)),  # reads the rows, from top to bottom
    "Transformer": Transformer(depth=1, hidden_dim=64),  # looks at patches of 7 x 7
}
hparams = train.Hparams(learning_rate=3e-3, warmup_fraction=0.1, clip_norm=1.0)
few = {name: rows[:200] for name, rows in train_set.items()}
right = {}
for name, model in networks.items():
    recipe = train.Recipe(model=model, schedule=train.Cosine())
    right[name] = []
    for change in (lambda part: part, shuffled):
        fit = train.fit(recipe, hparams, change(few), change(val_set), epochs=40)
        right[name].append(max(row["val_accuracy"] for row in fit.history))
    state = fit.state
    one = train.floats(train_set["inputs"][:1])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    work = flops(lambda x, m=model, p=state.params: m.apply({"params": p}, x), one)
    print(f"{name}: {right[name][0]:.0%}, shuffled {right[name][1]:.0%}; {parameters} parameters, "
          f"{work / 1e6:.1f} million operations an image")  # fmt: skip

# %% [markdown]
# To the MLP the order of pixels never meant anything, so it cannot miss it. The CNN was the best,
# and loses what made it so: that neighbours belong together. The RNN and the Transformer are at
# home elsewhere. They read the image in strips, and from 200 of them they do not learn how strips
# make a digit; shuffled, every strip has a little of the whole image, and they even gain.
#
# ## A series: CO2 over Mauna Loa
#
# 104 weeks are known, the next 52 are wanted. `compare` trains several architectures on one task
# and writes a table; `seasonal naive` repeats the last year.

# %%
words = ["experiments.compare", "forecast", "--bag-folds", "0", "--epochs", "20"]
words += ["--run-dir", "forecasts"]
ran = subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True)
with open("forecasts/comparison.csv", newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
        print(f"{row['name']}: error {float(row['mean']):.2f} ppm, {row['parameters']} parameters")
table = ran.stdout.splitlines()
naive = next(line.split()[4] for line in table if "the last season again" in line)
print(f"seasonal naive: error {float(naive):.2f} ppm, no parameters")

# %% [markdown]
# All beat the simple forecast, and the smallest network wins: a smooth series needs no memory that
# decides what to keep. **Begin with what is simple.** Every run of dlflax states a simple model
# beside its own score.
#
# ## An autoencoder: digits in eight numbers
#
# No labels here: the network has to give back its own input, through eight numbers in the middle.
# The classic way to do that is PCA: the eight directions in which the images differ most.

# %%
x = digits.train["inputs"].reshape(-1, 784) / np.float32(255)
new = digits.test["inputs"].reshape(-1, 784) / np.float32(255)
mean = x.mean(0)
directions = np.linalg.svd(x - mean[None], full_matrices=False)[2][:8]
by_pca = (new - mean[None]) @ directions.T @ directions + mean[None]

model = Autoencoder(features=(256,), latent_dim=8)
recipe = train.Recipe(model=model, task=Reconstruction(), schedule=train.Cosine())
fit = train.fit(recipe, hparams, {"inputs": digits.train["inputs"]}, epochs=40)
by_network = train.predict(recipe, fit.best, hparams, digits.test["inputs"]).reshape(-1, 784)
errors = [float(np.mean((each - new) ** 2)) for each in (by_pca, by_network)]
print(f"squared error a pixel: PCA {errors[0]:.4f}, autoencoder {errors[1]:.4f}")

# %% [markdown]
# ## The figure
#
# Left: who minds the shuffling. Right: digits, and what eight numbers keep of them.

# %%
figure, (left, last) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
places = np.arange(len(right))
for k, label in enumerate(("images", "shuffled pixels")):
    left.bar(places + 0.4 * k - 0.2, [scores[k] for scores in right.values()], 0.4, label=label)
left.set(xticks=places, xticklabels=list(right), ylim=(0.5, 1), title="validation accuracy")
left.legend(loc="lower left")
rows = [each[:8].reshape(8, 28, 28) for each in (new, by_pca, by_network)]
last.imshow(np.vstack([np.hstack(list(row)) for row in rows]), cmap="gray", vmin=0, vmax=1)
last.set(xticks=[], yticks=[14, 42, 70], yticklabels=["digit", "PCA", "autoencoder"])
figure.savefig("which_network.png", dpi=100)

# %% [markdown]
# In Keras they are layers: `Conv2D`, `GRU`, `MultiHeadAttention`. A GRU of 64 units over rows of 28
# pixels:
#
# ```python
# import keras
#
# layer = keras.layers.GRU(64, reset_after=False)
# layer.build((None, 28, 28))
# print(layer.count_params())  # 17856
# ```
#
# (dlflax has 64 biases more: Flax's GRU adds one to the candidate's recurrent part.)
#
# ## Change this
#
# ```bash
# python -m experiments.compare mnist --num-seeds 3
# python -m experiments.compare sentiment --models rnn transformer
# python -m sweeps.bayes_opt sentiment --model rnn --space.model.cell gru lstm
# ```
#
# ## Exercises
#
# 1. Shift every test digit by 3 pixels. Who loses more, the MLP or the CNN?
# 2. Which architecture would you try first for: X-rays; reviews of films; a table of customers; the
#    sales of next week?
#
# ## Solutions

# %%
moved = {**val_set, "inputs": np.roll(val_set["inputs"], 3, axis=2)}
for name in ("MLP", "CNN"):
    recipe = train.Recipe(model=networks[name], schedule=train.Cosine())
    fit = train.fit(recipe, hparams, few, val_set, epochs=40)
    scores, _ = train.evaluate(recipe, fit.best, hparams, moved)
    after = scores["accuracy"]
    print(f"{name}: {right[name][0]:.0%} before, {after:.0%} when moved")

# %% [markdown]
# **2.** X-rays: a pretrained CNN (chapter 8). Reviews: a pretrained Transformer (`sentiment
# --preset best`). Customers: gradient boosting, then an MLP (`experiments.tabular` shows both).
# Sales: the seasonal naive forecast, then `experiments.forecast`.
