# %% [markdown]
# # 3. Losses
#
# A *loss* is one number for how wrong an answer is. Training makes it small, and nothing else:
# choose the loss, and you have chosen what the network tries to do.
#
# > **Guess first.** Sixty points lie on the line `y = 2 x`, but somebody wrote ten of them down
# > wrongly, far too low. Three lines are fitted, each by another loss. Which slopes do they find?

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from dlflax import train
from dlflax.models import MLP
from dlflax.train import losses
from dlflax.train.tasks import Regression

# %% [markdown]
# ## Regression: the answer is a number
#
# ```text
# squared error   (prediction - target)²         the mean is best; doubt costs little, outliers much
# absolute error  |prediction - target|          the median is best; all errors count by their size
# Huber           squared when small, absolute when large
# ```


# %%
def squared(error):
    return error**2


def absolute(error):
    return np.abs(error)


def huber(error, delta=1.0):
    small = np.abs(error) <= delta
    return np.where(small, error**2 / 2, delta * (np.abs(error) - delta / 2))


random = np.random.default_rng(0)
predictions, targets = random.normal(0, 2, (2, 100, 1)).astype(np.float32)
for by_hand, library in (
    (squared, losses.mean_squared_error),
    (absolute, losses.mean_absolute_error),
    (huber, losses.huber),
):
    theirs = np.asarray(library(predictions, targets))
    difference = np.abs(by_hand(predictions - targets)[:, 0] - theirs).max()
    print(f"{by_hand.__name__}: largest difference {difference:.4f}")

# %% [markdown]
# Now the sixty points. A network without hidden layers is a straight line: one weight, the slope,
# and one bias.

# %%
x = np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
y = 2 * x[:, 0] + random.normal(0, 0.1, 60).astype(np.float32)
wrong = slice(50, 60)
y[wrong] -= 4
choices = {
    "squared": losses.MeanSquaredError(),
    "absolute": losses.MeanAbsoluteError(),
    "huber": losses.Huber(delta=0.5),
}
lines = {}
for name, loss in choices.items():
    recipe = train.Recipe(
        model=MLP(features=(), num_outputs=1), task=Regression(loss=loss), batch_size=60
    )
    hparams = train.Hparams(learning_rate=0.02)
    fit = train.fit(recipe, hparams, {"inputs": x, "targets": y}, epochs=800)
    line = fit.state.params["logits"]
    lines[name] = float(line["kernel"][0, 0]), float(line["bias"][0])
    print(f"{name}: slope {lines[name][0]:.1f}")

# %% [markdown]
# ## Classification: the answer is a class
#
# The network gives each class a probability. The *cross-entropy* is `-log(probability of the right
# class)`: 0 for a sure and right answer, and without limit for a sure and wrong one.

# %%
print("probability of the right class   cross-entropy   squared error")
for probability in (0.99, 0.9, 0.5, 0.1, 0.01):
    cross_entropy = -np.log(probability)
    error = (1 - probability) ** 2
    print(f"{probability:30.2f} {cross_entropy:15.2f} {error:15.2f}")

# %% [markdown]
# From 0.1 to 0.01 the squared error hardly changes, the cross-entropy doubles. What counts in
# training is the slope: with respect to the logits, that of cross-entropy is simply `probabilities
# - one-hot target`, so a network that is sure and wrong is corrected with full force. By hand and
# in the library:

# %%
logits, target = np.float32([[4.0, 0.0, -2.0]]), np.int32([2])
probabilities = np.exp(logits) / np.exp(logits).sum()
by_hand = probabilities - np.float32([[0, 0, 1]])
library = jax.grad(lambda z: losses.cross_entropy(z, target).sum())(logits)
print("slopes:", by_hand.round(3)[0], np.asarray(library).round(3)[0])

# %% [markdown]
# ## The figure
#
# Left: three losses against the error. Right: the squared error cannot bear ten large errors, so
# its line gives way to them; the other two nearly ignore them.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
error = np.linspace(-3, 3, 121)
for name, loss in (("squared", squared), ("absolute", absolute), ("huber", huber)):
    left.plot(error, loss(error), label=name)
    right.plot(x[:, 0], lines[name][0] * x[:, 0] + lines[name][1], label=name)
right.scatter(x[:, 0], y, s=12, c="black", label="points")
left.set(title="loss", xlabel="prediction - target", ylim=(0, 5))
right.set(title="lines", xlabel="x")
right.legend()
figure.savefig("losses.png", dpi=100)

# %% [markdown]
# In Keras a loss is chosen when a model is compiled; it is the same number:
#
# ```python
# import keras
# import numpy as np
#
# loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# print(round(float(loss(np.array([2]), np.array([[4.0, 0.0, -2.0]]))), 4))  # 6.0206
# ```

# %%
print(f"dlflax: {float(losses.cross_entropy(logits, target)[0]):.4f}")

# %% [markdown]
# ## Change this
#
# Predict how far a disease goes in a year, from a table of 442 patients, with three losses.
# (`diabetes.csv` is written by the first line, from scikit-learn.)
#
# ```bash
# python -c "from sklearn.datasets import load_diabetes as d; d(as_frame=True).frame.to_csv('diabetes.csv', index=False)"
# python -m sweeps.grid_search tabular --data diabetes.csv --target target --space.loss mean_squared_error mean_absolute_error huber
# ```
#
# ## Exercises
#
# 1. A friend tells cats from dogs with squared error on 0 and 1. What does the network lose?
# 2. A network says 10 % for each of ten classes. What is its cross-entropy? Keep the number: a
#    network whose loss stays there has learned nothing.
#
# ## Solutions
#
# **1.** Speed, where it is most wrong: with a sigmoid, the squared error's slope goes to 0 when the
# network is sure and wrong, that of the cross-entropy to -1.

# %%
for logit in (0.0, -4.0, -8.0):  # the right answer is 1
    p = 1 / (1 + np.exp(-logit))
    of_square, of_cross_entropy = 2 * (p - 1) * p * (1 - p), p - 1
    print(f"probability {p:.4f}: slopes {of_square:.4f} and {of_cross_entropy:.4f}")

# %%
print(f"exercise 2: {-np.log(0.1):.3f}")
