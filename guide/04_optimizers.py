# %% [markdown]
# # 4. Optimizers and the learning rate
#
# The gradient says which way is down. The *optimizer* decides how far to go, and the *learning
# rate* is its most important number.
#
# > **Guess first.** Plain gradient descent (SGD), the same with momentum, and Adam, each have a
# > best learning rate. Is it the same for all three? And if the rate is ten times too large, is the
# > network a little worse, or useless?

# %%
import matplotlib.pyplot as plt
import numpy as np

from dlflax import data, train
from dlflax.models import MLP
from dlflax.train import SGD, Adam
from dlflax.train.layout import use_all_cores
from dlflax.train.population import fit_all

use_all_cores()

# %% [markdown]
# ## One step of each, by hand
#
# ```text
# SGD        parameter = parameter - rate · gradient
#
# momentum   speed     = 0.9 · speed + gradient             a ball that rolls
#            parameter = parameter - rate · speed
#
# Adam       mean      = 0.9 · mean + 0.1 · gradient        where to
#            square    = 0.999 · square + 0.001 · gradient² how steep it usually is
#            parameter = parameter - rate · (mean / c1) / (√(square / c2) + 0.00000001)
#            c1 = 1 - 0.9^step, c2 = 1 - 0.999^step         mean and square began at 0
# ```
#
# Adam divides by the usual size of the gradient: every parameter moves at about the learning rate,
# whatever its gradient is. Ten steps down the curve `x⁴`, beside the library's optimizers:

# %%
hparams = train.Hparams(learning_rate=0.01, momentum=0.9)


def slope(x):
    return 4 * x**3


def momentum_by_hand(x, steps, rate=0.01):
    speed = 0.0
    for _ in range(steps):
        speed = 0.9 * speed + slope(x)
        x = x - rate * speed
    return x


def adam_by_hand(x, steps, rate=0.01):
    mean = square = 0.0
    for step in range(1, steps + 1):
        mean = 0.9 * mean + 0.1 * slope(x)
        square = 0.999 * square + 0.001 * slope(x) ** 2
        x = x - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return x


def by_library(optimizer, x, steps):
    optimizer = optimizer(0.01, hparams)
    state = optimizer.init(x)
    for _ in range(steps):
        change, state = optimizer.update(slope(x), state, x)
        x = x + change
    return float(x)


start = np.float32(1.5)
for name, by_hand, optimizer in (
    ("momentum", momentum_by_hand, SGD()),
    ("Adam", adam_by_hand, Adam()),
):
    ours, theirs = by_hand(start, 10), by_library(optimizer, start, 10)
    print(f"{name}: {ours:.4f} by hand, {theirs:.4f} by dlflax")

# %% [markdown]
# ## All learning rates at once
#
# A learning rate is a number, and dlflax compiles a training for *any* numbers. So we train 13
# learning rates side by side, as members of one program: `fit_all` does that. Momentum is a number,
# too, so SGD with and without it are 26 members.

# %%
digits = data.load("digits", log=lambda sentence: None)
train_set, val_set = data.split(digits.train, 0.2, seed=0)
rates = np.logspace(-5, 1, 13)
model = MLP(features=(64,))

sgd = [train.Hparams(learning_rate=rate, momentum=m) for m in (0.0, 0.9) for rate in rates]
adam = [train.Hparams(learning_rate=rate) for rate in rates]
found = {}
for recipe, hparams in (
    (train.Recipe(model=model, optimizer=SGD()), sgd),
    (train.Recipe(model=model, optimizer=Adam()), adam),
):
    population = fit_all(recipe, hparams, train_set, val_set, epochs=4)
    found[type(recipe.optimizer)] = population.scores("accuracy")[:, 0]
accuracy = {
    "SGD": found[SGD][:13],
    "SGD, momentum 0.9": found[SGD][13:],
    "Adam": found[Adam],
}
for name, scores in accuracy.items():
    best = int(np.argmax(scores))
    beyond = max(scores[min(best + 4, 12)], 0.0)  # two steps of half a power of ten each
    print(f"{name}: best {scores[best]:.0%}, with a rate 100 times as large {beyond:.0%}")

# %% [markdown]
# ## The figure
#
# Each curve is a hill with a cliff on its right: too small a rate is slow, too large a one
# destroys. The three hills stand at different places: **a learning rate has no meaning without its
# optimizer**. Look for it on a logarithmic scale.

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for name, scores in accuracy.items():
    axis.semilogx(rates, np.where(np.isfinite(scores), scores, 0), "o-", label=name)
axis.set(xlabel="learning rate", ylabel="validation accuracy", ylim=(0, 1))
axis.legend()
figure.savefig("optimizers.png", dpi=100)

# %% [markdown]
# In Keras the optimizer is an object, too, with the same defaults:
#
# ```python
# import keras
#
# weight = keras.Variable(1.5)
# optimizer = keras.optimizers.Adam(learning_rate=0.01)
# optimizer.build([weight])
# for _ in range(10):
#     optimizer.apply([4 * weight.value**3])
# print(round(float(weight.value), 4))  # 1.4007
# ```
#
# ## Change this
#
# Find the learning rate of a network without training it to the end, or sweep over optimizers, each
# with its own rates:
#
# ```bash
# python -m experiments.find_learning_rate mnist --dataset digits
# python -m sweeps.random_search mnist --dataset digits --model mlp --space.optimizer sgd adam muon --trials 24
# ```
#
# ## Exercises
#
# 1. Adam's very first step: how far does a parameter move, whatever its gradient is?
# 2. Often the rate shrinks during training: a *schedule*. Compare `Recipe(schedule=Cosine())` with
#    a constant rate at Adam's best learning rate times 3.
#
# ## Solutions
#
# **1.** By the learning rate: `mean / c1` is the gradient, `√(square / c2)` its size.

# %%
for x in (0.1, 1.5, 10.0):
    print(f"from {x}: {abs(adam_by_hand(x, 1) - x):.4f}")

# %% [markdown]
# **2.** The steps get smaller towards the end, so a larger rate does no harm there.

# %%
rate = 3 * float(rates[np.argmax(accuracy["Adam"])])
for schedule in (train.Constant(), train.Cosine()):
    recipe = train.Recipe(model=model, schedule=schedule)
    members = fit_all(
        recipe, [train.Hparams(learning_rate=rate)], train_set, val_set, epochs=4, seeds=range(4)
    )
    print(f"{type(schedule).__name__}: {members.scores('accuracy').mean():.0%}")
