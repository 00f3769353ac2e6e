# %% [markdown]
# # 5. The first program
#
# All that came so far, together: images of handwritten digits, a network, a loss, an optimizer,
# and a test on digits that it has never seen.
#
# > **Guess first.** In five passes over some 1,200 images, which takes seconds: how many of 360
# > new digits will the network read correctly?

# %%
import matplotlib.pyplot as plt

from dlflax import data, train
from dlflax.models import CNN

# %% [markdown]
# ## The data, in three parts
#
# - **Training** data change the parameters.
# - **Validation** data choose: which epoch, which learning rate, which network.
# - **Test** data are looked at once, at the end. Whoever chooses by the test data fools themselves.
#
# The images are real digits, 1,797 of them, that come with scikit-learn, at 28 x 28 pixels.
# `data.load("mnist")` downloads MNIST, 70,000 digits, in their place.

# %%
digits = data.load("digits", log=lambda sentence: None)
train_set, val_set = data.split(digits.train, 0.1, seed=0)
for name, part in (("train", train_set), ("validation", val_set), ("test", digits.test)):
    print(f"{name}: {len(part['inputs'])} images of {part['inputs'].shape[1:]}")

# %% [markdown]
# ## The program
#
# Four words carry the library. The **model** is the network. The **hparams** are the numbers
# (learning rate, dropout, ...). The **recipe** is everything that is not a number: the model, the
# optimizer, how many examples make a batch. The **state** is what changes: the parameters.
#
# `CNN` slides small filters over the image (chapter 9 says why). An *epoch* is one pass over all
# training data, a *batch* of 32 images at a time.

# %%
recipe = train.Recipe(model=CNN(features=(32,), dense=(64,)), optimizer=train.Adam(), batch_size=32)
hparams = train.Hparams(learning_rate=1e-3, dropout=0.25)
fit = train.fit(recipe, hparams, train_set, val_set, epochs=5, seed=0)
for epoch, row in enumerate(fit.history, 1):
    print(
        f"epoch {epoch}: loss {row['train_loss']:.2f}, of validation {row['val_accuracy']:.1%} right"
    )
_, logits = train.evaluate(recipe, fit.best, hparams, digits.test)
right = (logits.argmax(1) == digits.test["targets"]).sum()
print(f"test: {right} of {len(logits)} right")

# %% [markdown]
# ## The figure
#
# The loss falls on both parts: the network has learned something that holds for images that it
# was not trained on. When the validation loss turns up again, it is time to stop (chapter 6).

# %%
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for part in ("train", "val"):
    axis.plot(range(1, 6), [row[f"{part}_loss"] for row in fit.history], "o-", label=part)
axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
axis.legend()
figure.savefig("the_first_program.png", dpi=100)

# %% [markdown]
# The classic first program in Keras is this network, on MNIST's 28 x 28 pixels, with as many
# parameters:
#
# ```python
# import keras
#
# model = keras.Sequential([
#     keras.Input((28, 28, 1)),
#     keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
#     keras.layers.MaxPooling2D(),
#     keras.layers.Flatten(),
#     keras.layers.Dense(64, activation="relu"),
#     keras.layers.Dropout(0.25),
#     keras.layers.Dense(10, activation="softmax"),
# ])
# model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
# print(model.count_params())  # 402442
# # model.fit(x_train, y_train, epochs=5, batch_size=32, validation_split=0.1)
# ```

# %%
shapes = train.abstract(recipe, hparams, train_set["inputs"][:1])
print(f"dlflax: {sum(leaf.size for leaf in shapes.params['dense1'].values())} in the dense layer")

# %% [markdown]
# ## The same as a command
#
# Nobody writes this program twice. One command does all of it, and leaves a folder with the scores,
# figures of mistakes, and checkpoints; after a `kill -9` the same command with `--resume` continues
# from the last checkpoint and ends with bit-identical results:
#
# ```bash
# python -m experiments.mnist
# python -m experiments.mnist --resume --epochs 10
# ```
#
# ## Change this
#
# How many filters, and how many stages of them? Each choice is a program of its own, and is
# compiled once:
#
# ```bash
# python -m sweeps.grid_search mnist --dataset digits --space.model.features 8 32 16,32
# ```
#
# ## Exercises
#
# 1. The network has 402,442 parameters. In which layer are nearly all of them?
# 2. Train with another `seed`. Is the score the same? How large a difference between two networks
#    would you believe?
#
# ## Solutions
#
# **1.** In the first dense layer: each of its 64 units sees all 14 x 14 x 32 numbers.

# %%
for layer, leaves in shapes.params.items():
    print(f"{layer}: {sum(leaf.size for leaf in leaves.values())}")

# %% [markdown]
# **2.** It changes by about a percentage point from seed to seed, so one percentage point between
# two networks, one run each, means nothing. Take several seeds: `--num-seeds 3` in a sweep and in
# `compare`.

# %%
scores = []
for seed in range(3):
    fit = train.fit(recipe, hparams, train_set, val_set, epochs=5, seed=seed)
    scores_of_test, _ = train.evaluate(recipe, fit.best, hparams, digits.test)
    scores.append(scores_of_test["accuracy"])
print("test accuracy:", ", ".join(f"{score:.1%}" for score in scores))
