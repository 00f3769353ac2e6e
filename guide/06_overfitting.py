# %% [markdown]
# # 6. Overfitting
#
# A network with many parameters and few examples learns the examples by heart: it is perfect on
# what it has seen, and worse than it could be on what it has not. This is *overfitting*. What helps
# against it is called *regularization*.
#
# > **Guess first.** From 100 digits, a network learns to read 1,300 others. Four remedies: dropout,
# > L2, early stopping, and augmentation (the images are shifted, turned and zoomed a little).
# > Which one helps most? And all of them together?

# %%
import matplotlib.pyplot as plt
import numpy as np

from dlflax import data, train
from dlflax.models import MLP
from dlflax.train.augment import Affine
from dlflax.train.layout import use_all_cores
from dlflax.train.population import fit_all

use_all_cores()

# %% [markdown]
# ## The remedies
#
# ```text
# dropout         each hidden unit is switched off with probability p, anew at every step, so that
#                 none can rely on another; the rest are divided by 1 - p
# L2              loss + l2 · (sum of all squared weights): large weights must be worth it
# early stopping  keep the network of the epoch with the lowest validation loss
# augmentation    more examples: a shifted 3 is still a 3
# ```
#
# Dropout and L2 by hand:

# %%
random = np.random.default_rng(0)
hidden = random.normal(size=100_000)
kept = random.random(100_000) >= 0.5
dropped = np.where(kept, hidden / (1 - 0.5), 0)
print(f"mean before and after dropout: {hidden.mean():.2f}, {dropped.mean():.2f}")

weights = {"kernel": random.normal(size=(3, 2)).astype(np.float32)}
print(f"L2 by hand {np.sum(weights['kernel'] ** 2):.4f}, by dlflax {train.losses.l2(weights):.4f}")

# %% [markdown]
# ## All of them at once
#
# The strengths of all remedies are numbers, so networks with other remedies are members of one
# population: five cases under five seeds are 25 networks, and one compiled program.

# %%
digits = data.load("digits", log=lambda sentence: None)
share = 100 / len(digits.train["inputs"])
others, few = data.split(digits.train, share, seed=0)

recipe = train.Recipe(model=MLP(features=(128,)), augment=(Affine(),))
plain = train.Hparams(learning_rate=1e-3)
shifts = {"translate_pixels": 2.0, "rotate_degrees": 12.0, "zoom_fraction": 0.1}
remedies = {
    "nothing": {},
    "dropout": {"dropout": 0.5},
    "L2": {"l2": 1e-3},
    "augmentation": shifts,
    "all together": {**shifts, "dropout": 0.3, "l2": 1e-4},
}
configurations = [plain.replace(**numbers) for numbers in remedies.values()]
epochs = 200
population = fit_all(recipe, configurations, few, others, epochs=epochs, seeds=range(5))

# %%
curves = {}
for name, histories in zip(remedies, population.histories, strict=True):
    curves[name] = {
        column: np.mean([[row[column] for row in history] for history in histories], axis=0)
        for column in ("train_loss", "val_loss", "val_accuracy")
    }
    last = {column: values[-1] for column, values in curves[name].items()}
    print(
        f"{name}: loss {last['train_loss']:.2f} on its own, {last['val_loss']:.2f} on other "
        f"digits, of which {last['val_accuracy']:.1%} are right"
    )
best = int(np.argmin(curves["nothing"]["val_loss"]))
stopped = curves["nothing"]["val_accuracy"][best]
print(f"early stopping: loss {curves['nothing']['val_loss'][best]:.2f}, {stopped:.1%} right")

# %% [markdown]
# ## The figure
#
# Dashed: the loss on the 100 digits, as they are in training (dropped out, shifted). Solid: on the
# others. Without a remedy the first falls to nothing, and the second turns up again at the grey
# line: the gap between them is overfitting. Early stopping stops at that line.

# %%
figure, axes = plt.subplots(1, 5, figsize=(13, 3.2), sharey=True, layout="constrained")
for axis, (name, curve) in zip(axes, curves.items(), strict=True):
    axis.semilogy(curve["train_loss"], "--", label="its own 100 digits")
    axis.semilogy(curve["val_loss"], label="other digits")
    axis.set(title=name, xlabel="epoch", ylim=(1e-3, 3))
axes[0].axvline(best, color="grey", linewidth=1)  # where early stopping stops
axes[0].set_ylabel("loss")
axes[0].legend(loc="lower left")
figure.savefig("overfitting.png", dpi=100)

# %% [markdown]
# Compare the numbers with your guess. Every remedy lowers the loss, which says how sure the network
# is of its mistakes; only one adds more than a trifle to the digits that are right: with few
# examples, what you *know* about the world (a shifted 3 is a 3) is worth more than a general
# remedy. If you know nothing of the kind: more data, then a pretrained network (chapter 8), then
# dropout, L2 and early stopping.
#
# In Keras:
#
# ```python
# import keras
#
# layer = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))
# layer.build((None, 3))
# layer.kernel.assign([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
# print(float(layer.losses[0]))  # 45.5
# ```

# %%
kernel = np.float32([[1, 2], [3, 4], [5, 6]])
print(f"dlflax: {0.5 * float(train.losses.l2({'kernel': kernel}))}")

# %% [markdown]
# ## Change this
#
# How much of each? Bayesian search over the strengths, with trials that stop early when they are
# hopeless:
#
# ```bash
# python -m sweeps.bayes_opt mnist --dataset digits --model mlp --augment affine --space.dropout 0 0.7 --space.l2 1e-6 1e-2 log --space.translate-pixels 0 4 --space.rotate-degrees 0 30 --search halving
# ```
#
# ## Exercises
#
# 1. The validation digits chose the epoch of early stopping. Is its validation score still honest?
# 2. When is augmentation wrong? Turn the images by up to 180 degrees and see.
#
# ## Solutions
#
# **1.** Not quite: the best of 200 epochs was chosen *by* that score, so part of it is luck. An
# honest score comes from test data that chose nothing.
#
# **2.** When it changes the answer: a 6 that is turned by 180 degrees is a 9.

# %%
rotated = [plain.replace(rotate_degrees=180.0)]
turned = fit_all(recipe, rotated, few, others, epochs=epochs, seeds=range(5))
accuracy = np.mean([history[-1]["val_accuracy"] for history in turned.histories[0]])
print(
    f"turned by up to 180 degrees: {accuracy:.0%}, by 12 degrees: "
    f"{curves['augmentation']['val_accuracy'][-1]:.0%}"
)
