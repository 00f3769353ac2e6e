"""What a user's program does with the public functions, for the type checker alone: mypy checks
every line of it (see [tool.mypy]), so each of these functions has its types."""

from pathlib import Path

import jax
import numpy as np

import dlflax
from dlflax import data, run, train
from dlflax.models import CNN
from dlflax.train.population import fit_all

mnist: data.Dataset = data.load("mnist")
parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None] = data.split(dict(mnist.train))
train_set, val_set = parts
assert val_set is not None

recipe = train.Recipe(model=CNN(features=(32,)), optimizer=train.Adam(b1=0.95))
hparams = train.Hparams(learning_rate=1e-3, dropout=0.25)
fit: train.Fit = train.fit(recipe, hparams, train_set, val_set, epochs=2, seed=1)
best: train.State | None = fit.best
assert best is not None
loss: float = fit.history[0]["val_loss"]
tested, logits = train.evaluate(recipe, best, hparams, mnist.test)
outputs: jax.Array = train.predict(recipe, best, hparams, mnist.test["inputs"])
shapes: train.State = train.abstract(recipe, hparams, train_set["inputs"])
state, of_step = train.step(recipe, best, hparams, {"inputs": outputs})
following: train.State = state
scores: np.ndarray = fit_all(recipe, [hparams], train_set, val_set, epochs=1).scores("loss")

model = dlflax.load("runs/mnist/first", tta=4)
answers: list[dict] = model.predict(["digit.png"])
measured: dict[str, float] = model.evaluate("new_data")
file: Path = model.export("onnx")
fitted = dlflax.fit("houses.csv", "price", time_limit=60, epochs=3)
probabilities: np.ndarray = fitted.predict_proba([{"rooms": 3}])
board: list[dict] = fitted.leaderboard()
text: str = fitted.summary()
copied: Path = fitted.save("houses")
page: str = fitted.push("me/houses")
estimators = dlflax.DLClassifier(epochs=20), dlflax.DLRegressor(hidden_sizes=(64,))

config = run.Config(recipe, hparams, data.Images("mnist"), epochs=3)
run.main("mine", {"default": config}, {"cnn": CNN()})
results: dict = run.run("mine", config)
