"""The inputs themselves: autoencoders."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np
from jax import lax

from dlflax.errors import InputError
from dlflax.models.protocols import Decoding, Encoding, Variational
from dlflax.report import figures
from dlflax.train import baselines, losses
from dlflax.train.augment import augment_batch
from dlflax.train.batch import floats, padded_size
from dlflax.train.tasks.task import Asked, Description, Task, Tested, check_outputs, has_images


@dataclasses.dataclass(frozen=True)
class Reconstruction(Task):
    """The inputs themselves: outputs (n, ...) of the inputs' shape, which are uint8 pictures, seen
    as 0..1, or floats. Of a model that has the methods `encode`, inputs -> codes (n, k), and
    `decode`, back, the codes are described too."""

    metrics: ClassVar = ()

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value decides the best epoch: loss."""

    def check_arrays(self, arrays, outputs) -> None:
        inputs = arrays["inputs"]
        if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
            raise InputError(
                f"--task reconstruction needs pictures or floats as inputs, not {inputs.dtype}."
            )
        check_outputs(outputs, tuple(inputs.shape[1:]), "--task reconstruction")

    def model_fields(self, splits) -> dict[str, Any]:
        return {"shape": tuple(splits.train["inputs"].shape[1:])}

    def targets(self, batch):
        return batch["inputs"]

    def baselines(self, model, splits):
        labelled = splits.train.get("targets", np.zeros(0)).dtype.kind in "iu"
        probe = functools.partial(_linear_probe, splits=splits) if labelled else None
        return baselines.of_inputs(splits, _code_size(model, splits), probe)

    def describe(self, tested: Tested) -> Description:
        """How well a linear classifier does on the codes, where there are classes; reconstructions,
        samples, latent space."""
        splits, model, scores, drawn = tested.splits, tested.recipe.model, {}, {}
        labelled = splits.train.get("targets", np.zeros(0)).dtype.kind in "iu"
        if has_images(splits):
            drawn["reconstructions"] = lambda: _reconstructions(tested)
        if isinstance(model, Encoding):
            codes, test_codes = (
                encode(tested.recipe, tested.variables, part["inputs"])
                for part in (splits.train, splits.test)
            )
            if labelled:
                accuracy = _linear_probe(codes, test_codes, splits)
                scores["linear_probe_accuracy"] = accuracy
                drawn["latent"] = lambda: _latent(test_codes, splits)
            if isinstance(model, Decoding) and has_images(splits):
                drawn["samples"] = lambda: _samples(tested, codes)
        return Description(scores, figures=drawn)

    def predictions(self, outputs, batch, target, calibration):
        return {"reconstruction": outputs}

    def answers(self, asked: Asked):
        answers: list = []
        inputs = np.asarray(floats(asked.batch["inputs"]))
        outputs, codes = asked.predictions["reconstruction"], [None] * len(inputs)
        if isinstance(asked.recipe.model, Encoding):
            codes = encode(asked.recipe, asked.variables, asked.batch["inputs"]).tolist()
        for each, x, output, code in zip(asked.inputs, inputs, outputs, codes, strict=True):
            values = {asked.noun: each, "mean_squared_error": float(np.mean((x - output) ** 2))}
            words = f"{each}: mean squared error {values['mean_squared_error']:.4f}"
            if asked.folder and x.ndim == 3:
                figure = figures.reconstructions(x[None], output[None])
                if made := figures.save_prediction(figure, asked.folder, each):
                    values["picture"] = str(made)
                    words += f", reconstruction in {made}"
            answers.append((words, values | ({"code": code} if code is not None else {})))
        return answers


def _code_size(model, splits) -> int | None:
    """Returns the numbers in a code of the model; None where it has no codes."""
    if not isinstance(model, Encoding):
        return None
    x = jax.ShapeDtypeStruct((1, *splits.train["inputs"].shape[1:]), np.float32)
    initialize = functools.partial(model.init_with_output, jax.random.key(0), method="encode")
    return jax.eval_shape(initialize, x)[0].shape[-1]


def encode(recipe, variables, inputs) -> np.ndarray:
    """The codes of all inputs (n, ...): float32 (n, code)."""
    size = padded_size(len(inputs))
    padded = np.concatenate([inputs[:], np.repeat(inputs[:1], size - len(inputs), 0)])
    return np.asarray(_encode(recipe.model, variables, padded))[: len(inputs)]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, inputs):
    def one(x):
        return model.apply(variables, floats(x[None]), method="encode")[0]

    return lax.map(one, inputs, batch_size=256)


def _linear_probe(codes, test_codes, splits) -> float:
    """Accuracy on the test codes of a logistic regression on the training codes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(codes, splits.train["targets"])
    return float(probe.score(test_codes, splits.test["targets"]))


def _reconstructions(tested):
    recipe, shown = tested.recipe, {"inputs": tested.splits.test["inputs"][:12]}
    if not any(getattr(each, "corrupts", False) for each in recipe.augment):
        inputs = np.asarray(floats(shown["inputs"]))
        return figures.reconstructions(inputs, tested.outputs[:12], None)
    draw = jax.jit(augment_batch, static_argnums=0)
    seen = draw(recipe, tested.hparams, shown, jax.random.key(0))
    noisy = np.asarray(seen["inputs"])
    return figures.reconstructions(np.asarray(seen["targets"]), tested.predict(noisy), noisy)


def _samples(tested, codes):
    generator = np.random.default_rng(0)
    model = tested.recipe.model
    if isinstance(model, Variational) and model.variational:
        drawn = generator.normal(size=(50, codes.shape[1]))
    else:  # a plain autoencoder knows no distribution of codes: the normal one that fits them
        spread = np.atleast_2d(np.cov(codes.T))
        drawn = generator.multivariate_normal(codes.mean(0), spread, 50)
    pictures = model.apply(tested.variables, np.float32(drawn), method="decode")
    return figures.samples(np.asarray(pictures))


def _latent(codes, splits):
    points, axes = _plane(codes[:5000])
    return figures.latent(points, splits.test["targets"][:5000], splits.class_names, axes)


def _plane(codes):
    """(codes as points (n, 2), what the axes are)."""
    if codes.shape[1] == 2:
        return codes, "the two numbers of the code"
    if codes.shape[1] == 1:
        return np.column_stack([codes, np.zeros(len(codes))]), "the number of the code"
    centred = codes - codes.mean(0)
    *_, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, f"the first two principal components of {codes.shape[1]}"
