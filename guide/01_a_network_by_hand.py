# %% [markdown]
# # 1. A network by hand
#
# A neural network is a function with many numbers in it, its *parameters*. Training changes the
# parameters, a little at a time, until the function gives the answers that we want.
#
# Here are points on two rings. No straight line separates the inner ring from the outer one.
#
# > **Guess first.** A hidden unit draws one straight line. How many hidden units does a network
# > need to tell the two rings apart: 1, 2, 3, or more than 10?

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from dlflax import train
from dlflax.models import MLP

random = np.random.default_rng(0)
count = 600
ring = random.integers(0, 2, count)  # 0: the inner ring, 1: the outer one
angle = random.uniform(0, 2 * np.pi, count)
radius = 1 + ring + random.normal(0, 0.15, count)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
answers = ring[:, None].astype(np.float32)

# %% [markdown]
# ## Forward: from the inputs to a probability
#
# A layer multiplies its inputs by *weights*, adds *biases*, and passes the sum through an
# *activation* (here ReLU, which cuts off what is negative). Two layers make our network:
#
# ```text
# hidden      = relu(inputs · W1 + b1)
# logit       = hidden · W2 + b2
# probability = 1 / (1 + exp(-logit))
# ```


# %%
def forward(parameters, inputs):
    hidden = np.maximum(inputs @ parameters["W1"] + parameters["b1"], 0)
    logit = hidden @ parameters["W2"] + parameters["b2"]
    return 1 / (1 + np.exp(-logit)), hidden


# %% [markdown]
# ## Backward: which way to change each parameter
#
# The *loss* says how wrong the network is: `-log(probability of the right answer)`, averaged over
# the points. Its *gradient* says, for each parameter, how the loss changes when the parameter
# grows. The chain rule gives it, from the last layer back to the first: this is *backpropagation*.


# %%
def gradient(parameters, inputs, targets):
    probability, hidden = forward(parameters, inputs)
    d_logit = (probability - targets) / len(targets)
    d_hidden = d_logit @ parameters["W2"].T * (hidden > 0)
    return {
        "W1": inputs.T @ d_hidden,
        "b1": d_hidden.sum(0),
        "W2": hidden.T @ d_logit,
        "b2": d_logit.sum(0),
    }


def first_parameters(hidden_units, seed):
    random = np.random.default_rng(seed)
    return {
        "W1": random.normal(0, 1, (2, hidden_units)).astype(np.float32),
        "b1": np.zeros(hidden_units, np.float32),
        "W2": random.normal(0, 1, (hidden_units, 1)).astype(np.float32),
        "b2": np.zeros(1, np.float32),
    }


# %% [markdown]
# Training is one line, repeated: *go a small step against the gradient*. How small the step is, is
# called the *learning rate*. A network may get stuck, so each size has five tries.


# %%
def trained(hidden_units, seed, steps=2000, learning_rate=0.5):
    parameters = first_parameters(hidden_units, seed)
    for _ in range(steps):
        slope = gradient(parameters, points, answers)
        parameters = {name: parameters[name] - learning_rate * slope[name] for name in parameters}
    return parameters


def accuracy(parameters):
    return np.mean((forward(parameters, points)[0] > 0.5) == answers)


sizes = (1, 2, 3, 8)
networks = {size: max((trained(size, seed) for seed in range(5)), key=accuracy) for size in sizes}
for size, parameters in networks.items():
    print(f"{size} hidden units: {accuracy(parameters):.0%} of the points are right")

# %% [markdown]
# ## The figure
#
# The colour is the probability of the outer ring. One unit cuts the plane once. Three are the
# fewest whose lines can close around the inner ring; more make it rounder.

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
line = np.linspace(-3, 3, 80, dtype=np.float32)
plane = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
for axis, (size, parameters) in zip(axes, networks.items(), strict=True):
    probability = forward(parameters, plane)[0].reshape(80, 80)
    axis.contourf(line, line, probability, levels=20, vmin=0, vmax=1, cmap="RdBu")
    for which, colour in enumerate(("darkred", "navy")):
        axis.scatter(*points[ring == which][:100].T, s=6, c=colour)
    axis.set_title(f"{size} hidden: {accuracy(parameters):.0%}")
    axis.set(xticks=[], yticks=[])
figure.savefig("a_network_by_hand.png", dpi=100)

# %% [markdown]
# ## The same in dlflax
#
# `MLP` is this network ("multilayer perceptron"). With the same parameters it gives the same
# outputs, and JAX finds the same gradient by itself. From here on we leave both to the library.

# %%
by_hand = first_parameters(hidden_units=8, seed=0)
network = MLP(features=(8,), num_outputs=1)
parameters = {
    "dense1": {"kernel": by_hand["W1"], "bias": by_hand["b1"]},
    "logits": {"kernel": by_hand["W2"], "bias": by_hand["b2"]},
}


def loss(parameters):
    logits = network.apply({"params": parameters}, points)
    return train.losses.binary_cross_entropy(logits, answers).mean()


ours, theirs = gradient(by_hand, points, answers), jax.grad(loss)(parameters)
difference = np.abs(ours["W1"] - theirs["dense1"]["kernel"]).max()
print(f"parameters: {sum(each.size for each in jax.tree.leaves(parameters))}")
print(f"largest difference between the two gradients: {difference:.4f}")

# %% [markdown]
# In Keras the network is the same, with as many parameters:
#
# ```python
# import keras
#
# network = keras.Sequential([
#     keras.Input((2,)),
#     keras.layers.Dense(8, activation="relu"),
#     keras.layers.Dense(1, activation="sigmoid"),
# ])
# print(network.count_params())  # 33
# ```
#
# ## Change this
#
# How wide should the network be? Ask a sweep, on handwritten digits:
#
# ```bash
# python -m sweeps.grid_search mnist --dataset digits --model mlp --space.model.features 2 8 32 128
# ```
#
# ## Exercises
#
# 1. Leave the activation out (`hidden = inputs @ W1 + b1`). How many of the points can 100 hidden
#    units then get right? Why?
# 2. Start with all parameters at zero. What happens, and why?
#
# ## Solutions
#
# **1.** About half, or a little more: layers without an activation between them are one layer. One
# straight line is all that is left, however many units there are.

# %%
product = (first_parameters(100, 0)["W1"] @ first_parameters(100, 0)["W2"]).shape
print(f"(2, 100) times (100, 1) is one matrix of {product}: a single line")

# %% [markdown]
# **2.** Nothing but the last bias ever moves. Where all hidden units are 0, the gradient of `W2` is
# 0; where `W2` is 0, that of `W1` is 0. Random numbers make the units differ from each other.

# %%
zeros = {name: 0 * value for name, value in first_parameters(8, 0).items()}
for name, slope in gradient(zeros, points, answers).items():
    print(f"{name}: largest slope {np.abs(slope).max():.3f}")
