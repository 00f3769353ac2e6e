# %% [markdown]
# # 7. Grid, random and Bayesian search
#
# Learning rate, dropout, L2, width: the *hyperparameters* are not learned, somebody has to choose
# them. A *search* (or sweep) trains the network with many choices, and compares them on the
# validation data.
#
# > **Guess first.** Each of three searches may train 25 networks. The grid tries 5 learning rates
# > times 5 dropout rates. Random search rolls dice. Bayesian search learns from the networks that
# > it has seen. How many *different* learning rates does each of them try, and which one finds the
# > best network?

# %%
import csv
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np

# %% [markdown]
# ## One command each
#
# All three get the same network (one hidden layer, on handwritten digits), the same ranges, and 25
# trials of 5 epochs. A trial is a member of one compiled program, so 25 networks take seconds. 30 %
# of the training data are held out for validation: with few validation examples a search chooses by
# luck.

# %%
SAME = "mnist --dataset digits --model mlp --epochs 5 --val-split 0.3 --ensemble-size 0 --space.l2"
SEARCHES = {
    "grid": "sweeps.grid_search --space.learning-rate 1e-5 1e-4 1e-3 1e-2 1e-1 "
    "--space.dropout 0 0.2 0.4 0.6 0.8",
    "random": "sweeps.random_search --trials 25 --space.learning-rate 1e-5 1e-1 log "
    "--space.dropout 0 0.8",
    "bayesian": "sweeps.bayes_opt --trials 25 --population-size 5 --space.learning-rate 1e-5 1e-1 log "
    "--space.dropout 0 0.8",
}


def sweep(name):
    """The trials of a search, as its command writes them: one row a trial."""
    module, *flags = SEARCHES[name].split()
    words = [sys.executable, "-m", module, *SAME.split(), *flags, "--run-dir", name]
    subprocess.run(words, check=True, capture_output=True)
    with open(f"{name}/trials.csv", newline="", encoding="utf-8") as file:
        return [
            {column: float(row[column]) for column in ("learning_rate", "dropout", "val_loss")}
            for row in csv.DictReader(file)
        ]


trials = {name: sweep(name) for name in SEARCHES}
for name, rows in trials.items():
    best = min(rows, key=lambda row: row["val_loss"])
    rates = len({row["learning_rate"] for row in rows})
    print(f"{name}: {len(rows)} trials, {rates} different learning rates, "
          f"best validation loss {best['val_loss']:.2f}")  # fmt: skip

# %% [markdown]
# ## How Bayesian search thinks
#
# ```text
# 1. Draw a smooth surface through the trials seen so far, with its doubt: a Gaussian process.
# 2. Where does it promise most? "Expected improvement" adds up both hopes:
#    a good value is expected here, or nobody has looked here yet.
# 3. Train there. Go to 1.
# ```
#
# The heart of it, expected improvement, fits into three lines: for an expected value `mean`, a
# doubt `std` and the best value so far,

# %%
from scipy.stats import norm


def expected_improvement(mean, std, best):
    z = (best - mean) / std
    return (best - mean) * norm.cdf(z) + std * norm.pdf(z)


print(f"a sure, small gain:    {expected_improvement(mean=0.19, std=0.001, best=0.20):.3f}")
print(f"a doubtful, like mean: {expected_improvement(mean=0.20, std=0.10, best=0.20):.3f}")
print(f"a sure loss:           {expected_improvement(mean=0.30, std=0.001, best=0.20):.3f}")

# %% [markdown]
# ## The figure
#
# Where did they look? Dark points are good networks, the star is the best. The grid spends five
# trials on each learning rate, also on the bad ones. Random search tries another learning rate
# every time, so it is the better choice when one hyperparameter counts more than others (Bergstra
# and Bengio 2012). Bayesian search begins like random search, and then stays where it is dark.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
for axis, (name, rows) in zip(axes, trials.items(), strict=True):
    rate, dropout, loss = np.array([list(row.values()) for row in rows]).T
    drawn = axis.scatter(rate, dropout, c=np.log10(loss), cmap="viridis", vmin=-1.1, vmax=0.4)
    best = np.argmin(loss)
    axis.scatter(rate[best], dropout[best], marker="*", s=200, c="crimson")
    axis.set(title=f"{name}: {loss[best]:.2f}", xscale="log", xlabel="learning rate")
axes[0].set_ylabel("dropout")
figure.colorbar(drawn, label="log10 of the validation loss")
figure.savefig("searching.png", dpi=100)

# %% [markdown]
# With KerasTuner or Optuna each trial builds, compiles and trains a network of its own. Here a
# trial is one more set of numbers for a program that is compiled already.
#
# ## Change this
#
# Let the search decide when more trials are not worth it, and rank each configuration by three
# seeds:
#
# ```bash
# python -m sweeps.bayes_opt mnist --dataset digits --model mlp --trials auto --num-seeds 3
# ```
#
# Its folder has `report.html`: what was gained over the defaults, and what should not be trusted.
#
# ## Exercises
#
# 1. Five hyperparameters, five values each: how many trials has the grid?
# 2. The best of 25 validation losses is a little too good to be true. Why? What does the sweep do
#    about it?
#
# ## Solutions
#
# **1.**

# %%
print(f"{5**5} trials; a search with a budget stops when you say so")

# %% [markdown]
# **2.** Chance differs from trial to trial, and the best trial is also one of the luckiest. So the
# sweep trains the winner again under a seed that no trial had, and scores it once on the test data,
# which chose nothing:

# %%
import json

for name in SEARCHES:
    with open(f"{name}/results.json", encoding="utf-8") as file:
        results = json.load(file)
    again = results["candidates"]["retrained"]
    print(f"{name}: best trial {results['best']['value']:.2f}, trained again "
          f"{again['val']['loss']:.2f}, on test data {again['test']['loss']:.2f}")  # fmt: skip
