"""Reconstruction of the inputs by autoencoders."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np
from jax import lax

from dlflax.baselines import reference_models
from dlflax.errors import InputError
from dlflax.models.protocols import Decoding, Encoding, Variational
from dlflax.report import figures
from dlflax.train import losses
from dlflax.train.augment import augment_batch
from dlflax.train.batch import floats, padded_size
from dlflax.train.tasks.task import Asked, Description, Task, Tested, check_outputs, has_images


@dataclasses.dataclass(frozen=True)
class Reconstruction(Task):
    """Reconstruction of the inputs: outputs (n, ...) of the inputs' shape, uint8 images as 0..1, or
    floats. The report has the codes of models with the methods `encode`, inputs -> codes (n, k),
    and `decode`."""

    metrics: ClassVar = ()

    loss: losses.Loss = losses.MeanSquaredError()
    monitor: str = "loss"
    """Metric whose validation value selects the best epoch: loss."""

    def check_arrays(self, arrays, outputs) -> None:
        inputs = arrays["inputs"]
        if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
            raise InputError(
                f"--task reconstruction needs images or floats as inputs, not {inputs.dtype}."
            )
        check_outputs(outputs, tuple(inputs.shape[1:]), "--task reconstruction")

    def model_fields(self, splits) -> dict[str, Any]:
        return {"shape": tuple(splits.train["inputs"].shape[1:])}

    def targets(self, batch):
        return batch["inputs"]

    def baselines(self, model, splits):
        probe = functools.partial(_linear_probe, splits=splits) if _has_classes(splits) else None
        return reference_models.reconstruction(splits, _code_size(model, splits), probe)

    def describe(self, tested: Tested) -> Description:
        """Returns the linear-probe accuracy of the codes, if there are classes, and figures of
        reconstructions, samples and latent space."""
        splits, model, scores, plots = tested.splits, tested.recipe.model, {}, {}
        if has_images(splits):
            plots["reconstructions"] = lambda: _reconstructions(tested)
        if isinstance(model, Encoding):
            codes, test_codes = (
                encode(tested.recipe, tested.variables, part["inputs"])
                for part in (splits.train, splits.test)
            )
            if _has_classes(splits):
                scores["linear_probe_accuracy"] = _linear_probe(codes, test_codes, splits)
                plots["latent"] = lambda: _latent(test_codes, splits)
            if isinstance(model, Decoding) and has_images(splits):
                plots["samples"] = lambda: _samples(tested, codes)
        return Description(scores, figures=plots)

    def predictions(self, outputs, batch, target, calibration):
        return {"reconstruction": outputs}

    def answers(self, asked: Asked):
        answers: list = []
        inputs = np.asarray(floats(asked.batch["inputs"]))
        outputs, codes = asked.predictions["reconstruction"], [None] * len(inputs)
        if isinstance(asked.recipe.model, Encoding):
            codes = encode(asked.recipe, asked.variables, asked.batch["inputs"]).tolist()
        for source, x, output, code in zip(asked.inputs, inputs, outputs, codes, strict=True):
            values = {asked.noun: source, "mean_squared_error": float(np.mean((x - output) ** 2))}
            text = f"{source}: mean squared error {values['mean_squared_error']:.4f}"
            if asked.folder and x.ndim == 3:
                figure = figures.reconstructions(x[None], output[None])
                if path := figures.save_prediction(figure, asked.folder, source):
                    values["figure"] = str(path)
                    text += f", reconstruction in {path}"
            answers.append((text, values | ({"code": code} if code is not None else {})))
        return answers


def _has_classes(splits) -> bool:
    return splits.train.get("targets", np.zeros(0)).dtype.kind in "iu"


def _code_size(model, splits) -> int | None:
    """Returns the dimension of the model's codes; None if it has no codes."""
    if not isinstance(model, Encoding):
        return None
    x = jax.ShapeDtypeStruct((1, *splits.train["inputs"].shape[1:]), np.float32)
    initialize = functools.partial(model.init_with_output, jax.random.key(0), method="encode")
    return jax.eval_shape(initialize, x)[0].shape[-1]


def encode(recipe, variables, inputs) -> np.ndarray:
    """Returns the codes of inputs (n, ...), float32 (n, k)."""
    size = padded_size(len(inputs))
    padded = np.concatenate([inputs[:], np.repeat(inputs[:1], size - len(inputs), 0)])
    return np.asarray(_encode(recipe.model, variables, padded))[: len(inputs)]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, inputs):
    def encode_example(x):
        return model.apply(variables, floats(x[None]), method="encode")[0]

    return lax.map(encode_example, inputs, batch_size=256)


def _linear_probe(codes, test_codes, splits) -> float:
    """Returns the test accuracy of a logistic regression on codes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(codes, splits.train["targets"])
    return float(probe.score(test_codes, splits.test["targets"]))


def _reconstructions(tested):
    recipe, batch = tested.recipe, {"inputs": tested.splits.test["inputs"][:12]}
    if not any(getattr(change, "corrupts", False) for change in recipe.augment):
        inputs = np.asarray(floats(batch["inputs"]))
        return figures.reconstructions(inputs, tested.outputs[:12], None)
    corrupt = jax.jit(augment_batch, static_argnums=0)
    batch = corrupt(recipe, tested.hparams, batch, jax.random.key(0))
    noisy = np.asarray(batch["inputs"])
    return figures.reconstructions(np.asarray(batch["targets"]), tested.predict(noisy), noisy)


def _samples(tested, codes):
    rng, model = np.random.default_rng(0), tested.recipe.model
    if isinstance(model, Variational) and model.variational:
        samples = rng.normal(size=(50, codes.shape[1]))
    else:  # a plain autoencoder has no prior: the normal distribution fitted to the codes
        covariance = np.atleast_2d(np.cov(codes.T))
        samples = rng.multivariate_normal(codes.mean(0), covariance, 50)
    images = model.apply(tested.variables, np.float32(samples), method="decode")
    return figures.samples(np.asarray(images))


def _latent(codes, splits):
    points, axes = _project(codes[:5000])
    return figures.latent(points, splits.test["targets"][:5000], splits.class_names, axes)


def _project(codes):
    """Returns (codes as points (n, 2), title of the axes)."""
    if codes.shape[1] == 2:
        return codes, "the two numbers of the code"
    if codes.shape[1] == 1:
        return np.column_stack([codes, np.zeros(len(codes))]), "the number of the code"
    centered = codes - codes.mean(0)
    *_, axes = np.linalg.svd(centered, full_matrices=False)
    return centered @ axes[:2].T, f"the first two principal components of {codes.shape[1]}"
