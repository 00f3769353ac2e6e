# %% [markdown]
# # 10. The case study: from a folder of photographs to a served model
#
# The article ends with cats and dogs. Here it is done from the raw folder to a model that answers
# over HTTP, with nothing but commands. Put any two folders of photographs into `photos` and run it
# on them: cats and dogs, ripe and unripe, with and without a mask. The photographs below are solar
# cells, sound or defective, because pip can install them (`pip install -e '.[guide]'`; Deitsch et
# al. 2021, CC BY-NC-SA 4.0).
#
# > **Guess first.** There are 600 photographs, one of them broken and one there twice. Which share
# > of the test photographs will be right, and how many of the answers that the network calls "95 %
# > sure" are wrong?

# %%
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def run(command):
    """What a command prints, without colours."""
    words = [sys.executable, *command.split()[1:]]
    plain = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    ran = subprocess.run(words, capture_output=True, text=True, env=plain)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# %% [markdown]
# ## 1. The raw folder
#
# A folder for each class. Real folders are never clean: here are a broken file and a copy, too.

# %%
source = resources.files("elpv_dataset") / "data"
rated = [line.split() for line in (source / "labels.csv").read_text("utf-8").splitlines()]
for rating, name in (("0.0", "sound"), ("1.0", "defective")):
    Path("photos", name).mkdir(parents=True)
    files = [file for file, value, _ in rated if value == rating]
    for k in np.random.default_rng(0).permutation(len(files))[:300]:
        shutil.copy(source / files[k], Path("photos", name))
some = sorted(Path("photos/sound").iterdir())
shutil.copy(some[0], "photos/sound/copy.png")
shutil.copy(some[1], "photos/defective/broken.png")
os.truncate("photos/defective/broken.png", 3000)

# %% [markdown]
# ## 2. Train, and read what it says about the data
#
# A fifth of each class is held out for the test, and a tenth of the rest for validation. Broken
# files and copies are dropped, and the run says so.

# %%
said = run("python -m experiments.image_folder --data photos --run-dir first")
said = said.replace(f"{Path.cwd()}/", "").splitlines()
print("\n".join(line for line in said if "could not" in line or " train, " in line))

# %% [markdown]
# ## 3. Is it good? The baseline, the mistakes, the probabilities

# %%
results = json.loads(Path("first/results.json").read_text("utf-8"))
test = results["test"]
print(f"test: {test['accuracy']:.0%} right; the larger class alone would be "
      f"{results['baselines']['majority class']['accuracy']:.0%}")  # fmt: skip
for name, scores in test["per_class"].items():
    found, true = scores["recall"], scores["precision"]
    print(f"{name}: {found:.0%} of them found, {true:.0%} of those so called are")
print(f"error of its probabilities: {test['calibration_error']:.2f}")

# %% [markdown]
# Which error is worse, a missed defect or a false alarm? That is not a question for the network.
# Look at `first/wrong_predictions.png` and `first/grad_cam.png` (where it looked) before you trust
# any number.
#
# ## 4. Tune
#
# The features are on disk already, so a hundred heads are trained in a few seconds: learning rate,
# dropout and L2.

# %%
run("python -m sweeps.random_search image_folder --data photos --trials 100 --run-dir tuned")
tuned = json.loads(Path("tuned/results.json").read_text("utf-8"))
print("\n".join(tuned["findings"][:1]))
print(f"test: {tuned['test']['accuracy']:.0%} right, before {test['accuracy']:.0%}")

# %% [markdown]
# Is the difference more than chance? With 120 test photographs one of them is nearly a percentage
# point. Let five different fifths be the test:

# %%
run("python -m experiments.image_folder --data photos --folds 5 --run-dir folds")
folds = json.loads(Path("folds/results.json").read_text("utf-8"))
mean, spread = (folds[name]["accuracy"] for name in ("test", "spread"))
print(f"over five fifths: {mean:.1%} +- {spread:.1%}")

# %% [markdown]
# ## 5. Serve it
#
# A page for people, and JSON for programs. (`--port 0` would choose a free port.)

# %%
command = [sys.executable, "-m", "experiments.serve", "tuned", "--port", "8765"]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
url = "http://127.0.0.1:8765"
for _ in range(120):
    try:
        urllib.request.urlopen(f"{url}/health")
        break
    except OSError:
        time.sleep(0.5)

# %%
some_defect = sorted(Path("photos/defective").iterdir())[1]
request = urllib.request.Request(f"{url}/predict", data=some_defect.read_bytes())
request.add_header("Content-Type", "image/png")
(answer,) = json.load(urllib.request.urlopen(request))["answers"]
print(answer["class"], f"{answer['probability']:.1f}")
server.terminate()
print("the server ended with", server.wait())

# %% [markdown]
# ## The figure
#
# Left: the validation loss of a hundred heads against the learning rate. Right: can its
# probabilities be believed? Where it says 90 %, nine of ten should be right. It is too sure of
# itself: 49 validation photographs chose it among a hundred heads, and corrected its probabilities
# as well. More of them (`--val-split 0.3`), or more photographs, is what this model needs most.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
rows = np.genfromtxt("tuned/trials.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
axes[0].loglog(rows["learning_rate"], rows["val_loss"], "o")
axes[0].set(xlabel="learning rate", ylabel="validation loss", title="a hundred heads")
axes[1].imshow(plt.imread("tuned/best/reliability.png"))
axes[1].axis("off")
figure.savefig("case_study.png", dpi=100)

# %% [markdown]
# ## Best practices, as a list with commands
#
# | do this | command |
# |---|---|
# | look at the data first: which files were dropped, how large the classes are | `experiments.image_folder --data photos` says it |
# | begin with a small network and the defaults | `python -m experiments.mnist` |
# | compare with something simple | every run does; `results.json` has it |
# | find the learning rate before anything else | `python -m experiments.find_learning_rate image_folder --data photos` |
# | pretrained weights, where there are any | `--finetune head`, then `--finetune full` |
# | tune by validation data; test once | every sweep does |
# | several seeds before you believe a difference | `--num-seeds 3`, `--folds 5` |
# | regularize by what the curves say | `curves.png`; chapter 6 |
# | keep what made a result | `config.json` in every run's folder; `--resume` |
# | check the probabilities, not only the answers | `reliability.png` |
# | give the model away | `python -m experiments.export tuned --to onnx` |
#
# ## Change this
#
# ```bash
# python -m sweeps.bayes_opt image_folder --data photos --trials auto --num-seeds 3
# ```
#
# ## Exercises
#
# 1. Ask the model about an image of something else, the file `tuned/best/curves.png`. What does it
#    answer, and what do you learn from that?
# 2. Give the model to a program in another language.
#
# ## Solutions
#
# **1.** It answers "sound" or "defective", often quite sure: it has no third answer. Whoever asks
# has to see to it that only solar cells are asked about.

# %%
print(run("python -m experiments.predict tuned tuned/best/curves.png"))

# %% [markdown]
# **2.** `python -m experiments.export tuned --to onnx` (with `pip install -e '.[export]'`), or
# `--to stablehlo`, which needs nothing more:

# %%
print(run("python -m experiments.export tuned --to stablehlo").splitlines()[-1])
