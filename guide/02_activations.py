# %% [markdown]
# # 2. Activations
#
# Between two layers stands an *activation*: a bend. Without bends, a stack of layers is one layer
# (chapter 1, exercise 1). Which bend is best?
#
# > **Guess first.** A network of 8 hidden layers reads handwritten digits; there are ten of them,
# > so a blind guess is right in 10 %. After the same training, how many digits are right with ReLU,
# > with tanh, and with the sigmoid, which was everybody's choice until about 2010?

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from dlflax import data, train
from dlflax.models import MLP

# %% [markdown]
# ## The formulas
#
# ```text
# relu(x)       = max(0, x)
# sigmoid(x)    = 1 / (1 + exp(-x))                  between 0 and 1
# tanh(x)       = 2 sigmoid(2 x) - 1                 between -1 and 1
# softmax(x)[i] = exp(x[i]) / sum of all exp(x[j])   probabilities, which sum to 1
# ```
#
# The first three act between layers. Softmax stands at the end of a classifier and turns its
# outputs, the *logits*, into probabilities. By hand, beside the library:


# %%
def relu(x):
    return np.maximum(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def tanh(x):
    return 2 * sigmoid(2 * x) - 1


def softmax(x):
    powers = np.exp(x - x.max())  # the largest is subtracted, so that nothing overflows
    return powers / powers.sum()


x = np.linspace(-5, 5, 201, dtype=np.float32)
for by_hand, library in ((relu, jax.nn.relu), (sigmoid, jax.nn.sigmoid), (tanh, jax.nn.tanh)):
    difference = np.abs(by_hand(x) - library(x)).max()
    print(f"{by_hand.__name__}: largest difference {difference:.4f}")
logits = np.float32([2.0, 1.0, -1.0])
print("softmax of 2, 1, -1:", softmax(logits).round(3), np.asarray(jax.nn.softmax(logits)).round(3))

# %% [markdown]
# ## Why it matters: the slope
#
# Backpropagation multiplies the slopes of all activations on its way back. The sigmoid's slope is
# at most 0.25, so after 8 layers at most `0.25 ** 8` of the gradient is left, one part in 65,536:
# the first layers stand still. This is the *vanishing gradient*. ReLU's slope is 1 wherever it is
# open.

# %%
digits = data.load("digits", log=lambda sentence: None)
train_set, val_set = data.split(digits.train, 0.2, seed=0)
depths, activations = (1, 4, 8), ("relu", "tanh", "sigmoid")
hparams = train.Hparams(learning_rate=1e-3)
right, slopes = {}, {}
for activation in activations:
    for depth in depths:
        model = MLP(features=(64,) * depth, activation=activation)
        recipe = train.Recipe(model=model)
        fit = train.fit(recipe, hparams, train_set, val_set, epochs=8)
        right[activation, depth] = max(row["val_accuracy"] for row in fit.history)
    first = train.init(recipe, hparams, train_set["inputs"][:1], jax.random.key(0))
    batch = {name: rows[:256] for name, rows in train_set.items()}

    def loss(params, model=model, batch=batch):
        outputs = model.apply({"params": params}, train.floats(batch["inputs"]))
        return train.losses.cross_entropy(outputs, batch["targets"]).mean()

    gradient = jax.grad(loss)(first.params)
    slopes[activation] = [
        float(np.abs(gradient[f"dense{layer}"]["kernel"]).mean()) for layer in range(1, 9)
    ]
for activation in activations:
    shown = ", ".join(f"{depth} layers {right[activation, depth]:.0%}" for depth in depths)
    print(f"{activation}: {shown}")

# %% [markdown]
# ## The figure
#
# Left: the activations. Middle: how large the gradient is in each layer of the untrained network,
# on a logarithmic scale: with the sigmoid nearly nothing reaches the first layers. Right: what that
# does to the score.

# %%
figure, (left, middle, last) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for activation, function in (("relu", relu), ("tanh", tanh), ("sigmoid", sigmoid)):
    left.plot(x, function(x), label=activation)
    middle.semilogy(range(1, 9), slopes[activation], "o-", label=activation)
    last.plot(depths, [right[activation, depth] for depth in depths], "o-", label=activation)
left.set(title="activation", xlabel="input", ylim=(-1.2, 3))
middle.set(title="gradient at the start", xlabel="layer")
last.set(title="validation accuracy", xlabel="hidden layers", ylim=(0, 1))
left.legend()
figure.savefig("activations.png", dpi=100)

# %% [markdown]
# In Keras the activation is a word as well:
#
# ```python
# import keras
#
# layers = [keras.layers.Dense(64, activation="sigmoid") for _ in range(8)]
# network = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])
# print(network.count_params())  # 80010
# ```

# %%
model = MLP(features=(64,) * 8, activation="sigmoid")
shapes = train.abstract(train.Recipe(model=model), hparams, train_set["inputs"][:1])
print(f"dlflax: {sum(leaf.size for leaf in jax.tree.leaves(shapes.params))} parameters")

# %% [markdown]
# ## Change this
#
# Let a sweep try the activations of a shallow network, and see how little they differ there:
#
# ```bash
# python -m sweeps.grid_search mnist --dataset digits --model mlp --space.model.activation relu sigmoid tanh gelu
# ```
#
# ## Exercises
#
# 1. What is the slope of ReLU, of tanh and of the sigmoid at 0? And at 5?
# 2. A ReLU unit whose input is negative for every example has slope 0 everywhere: it is *dead*.
#    Which activation of `MLP` cannot die?
#
# ## Solutions
#
# **1.** JAX computes slopes of any function. (ReLU has a corner at 0, where JAX says 0.)

# %%
for function in (jax.nn.relu, jax.nn.tanh, jax.nn.sigmoid):
    at_0, at_5 = (float(jax.grad(function)(point)) for point in (0.0, 5.0))
    print(f"{function.__name__}: {at_0:.4f} at 0, {at_5:.4f} at 5")

# %% [markdown]
# **2.** `gelu`: for negative inputs it is slightly below 0, so its slope is not 0 there.

# %%
print(f"slope of gelu at -1: {float(jax.grad(jax.nn.gelu)(-1.0)):.3f}")
